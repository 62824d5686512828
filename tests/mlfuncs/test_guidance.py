"""Guidance: mixtures of predictions, the law of random scales, searches in closed form, masked errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from mlfuncs import consistency, diffusion, guidance

KEY = jax.random.key(7)


def test_guidance_by_hand():
    u, c = jnp.array([[1.0, 2.0], [0.0, -1.0]]), jnp.array([[2.0, 0.0], [1.0, 1.0]])
    np.testing.assert_allclose(guidance.classifier_free_guidance(u, c, scale=3.0), [[4.0, -4.0], [3.0, 5.0]])
    each = guidance.classifier_free_guidance(u, c, scale=jnp.array([0.0, -1.0]))
    np.testing.assert_allclose(each, [[1.0, 2.0], [-1.0, -3.0]])
    np.testing.assert_allclose(guidance.classifier_free_guidance(u, c, scale=1.0), c)


def test_guidance_of_noise_is_guidance_of_clean_estimates():
    x, u, c = jax.random.normal(KEY, (3, 4, 2, 2))
    sigma, scale = jnp.array([0.1, 1.0, 5.0, 80.0]), jnp.array([0.5, 1.0, 4.0, 7.5])
    noise = guidance.classifier_free_guidance(u, c, scale=scale)
    clean = guidance.classifier_free_guidance(
        diffusion.denoised_from_noise(x, u, sigma), diffusion.denoised_from_noise(x, c, sigma), scale=scale
    )
    np.testing.assert_allclose(diffusion.denoised_from_noise(x, noise, sigma), clean, rtol=1e-4, atol=1e-3)


def test_guided_gaussians_in_closed_form():
    """Two unit Gaussians: the guided score is that of N(m_u + w (m_c - m_u), 1)."""
    x = jax.random.normal(KEY, (5, 2))
    score = lambda mean: diffusion.gaussian_score(x, jnp.full(2, mean), jnp.eye(2), sigma=0.5)  # noqa: E731
    guided = guidance.classifier_free_guidance(score(-0.2), score(0.4), scale=3.0)
    np.testing.assert_allclose(guided, score(-0.2 + 3 * 0.6), rtol=1e-4, atol=1e-5)


def test_guidance_gradients_precision_and_nan():
    u, c = jax.random.normal(KEY, (2, 3, 4))
    gradients = jax.grad(lambda u, c, w: jnp.sum(guidance.classifier_free_guidance(u, c, scale=w)), argnums=(0, 1, 2))(
        u, c, 4.0
    )
    np.testing.assert_allclose(gradients[0], np.full((3, 4), -3.0))
    np.testing.assert_allclose(gradients[1], np.full((3, 4), 4.0))
    np.testing.assert_allclose(gradients[2], jnp.sum(c - u), rtol=1e-5)
    half = guidance.classifier_free_guidance(u.astype(jnp.bfloat16), c.astype(jnp.bfloat16), scale=4.0)
    assert half.dtype == jnp.float32
    assert np.isnan(guidance.classifier_free_guidance(u, c.at[1, 2].set(jnp.nan), scale=0.0)[1, 2])


def test_scales_are_uniform():
    """Kolmogorov distance; the bound fails in 1 of 10^9 (Dvoretzky-Kiefer-Wolfowitz)."""
    num = 20_000
    for low, high in ((0.5, 4.0), (-1.0, 3.0)):
        scales = np.sort(guidance.sample_guidance_scale(KEY, (num,), low=low, high=high))
        assert low <= scales[0]
        assert scales[-1] <= high
        distance = np.max(np.abs((scales - low) / (high - low) - (np.arange(num) + 0.5) / num))
        assert distance < np.sqrt(np.log(2e9) / (2 * num)) + 1e-4
    default = guidance.sample_guidance_scale(KEY, (2, 3))
    np.testing.assert_array_equal(default, guidance.sample_guidance_scale(KEY, (2, 3), low=0.5, high=4.0))
    assert default.dtype == jnp.float32
    assert guidance.sample_guidance_scale(KEY, ()).shape == ()
    np.testing.assert_array_equal(guidance.sample_guidance_scale(KEY, (3,), low=2.0, high=2.0), np.full(3, 2.0))
    traced = jax.jit(lambda low, high: guidance.sample_guidance_scale(KEY, (2, 3), low=low, high=high))(0.5, 4.0)
    np.testing.assert_allclose(traced, default, rtol=1e-6)


def test_masked_error_by_hand():
    x = jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    target = jnp.zeros((2, 3))
    mask = jnp.array([[1, 0, 1], [0, 0, 0]])
    np.testing.assert_allclose(guidance.masked_reconstruction_loss(x, target, mask), [(1 + 9) / 2, 0.0])
    shared = guidance.masked_reconstruction_loss(x, target, jnp.array([True, True, False]))
    np.testing.assert_allclose(shared, [5 / 2, 41 / 2])
    # Soft masks weigh; less than one value in all is not scaled up.
    soft = guidance.masked_reconstruction_loss(x, target, jnp.array([[0.5, 0.0, 0.0], [0.5, 1.0, 0.0]]))
    np.testing.assert_allclose(soft, [0.5, (8 + 25) / 1.5])
    # One mask value for several entries counts once for each.
    image = jnp.full((1, 2, 3), 2.0)
    np.testing.assert_allclose(
        guidance.masked_reconstruction_loss(image, 0 * image, jnp.array([[[1.0], [0.0]]])), [4.0]
    )


def test_masked_error_looks_at_the_known_part_alone():
    x = jnp.array([[1.0, 2.0, 3.0]])
    mask = jnp.array([[1.0, 0.0, 0.0]])
    for unknown in (jnp.nan, jnp.inf, 9.0):
        target = jnp.array([[0.0, unknown, 1.0]])
        value, slope = jax.value_and_grad(lambda x, t=target: guidance.masked_reconstruction_loss(x, t, mask)[0])(x)
        assert value == 1
        np.testing.assert_array_equal(slope, [[2.0, 0.0, 0.0]])
    assert np.isnan(guidance.masked_reconstruction_loss(x, jnp.array([[jnp.nan, 0.0, 0.0]]), mask)[0])
    empty = jax.grad(lambda x: guidance.masked_reconstruction_loss(x, 0 * x, 0 * mask)[0])(x)
    np.testing.assert_array_equal(empty, np.zeros((1, 3)))


def squared(target):
    return lambda x: jnp.sum((x - target) ** 2, axis=tuple(range(1, x.ndim)))


def test_gradient_descent_in_closed_form():
    """sample(z) = 2 z, loss (2 z - y)^2: each step of rate r shrinks 2 z - y by 1 - 8 r."""
    latent, target = jax.random.normal(KEY, (2, 4, 3))
    found = guidance.optimize_latent(lambda z: 2 * z, squared(target), latent, num_steps=6, optimizer=optax.sgd(0.02))
    powers = (1 - 8 * 0.02) ** np.arange(7)
    start = np.asarray(squared(target)(2 * latent))
    assert found["losses"].shape == (6, 4)
    np.testing.assert_allclose(found["losses"], powers[:6, None] ** 2 * start, rtol=1e-4)
    np.testing.assert_allclose(2 * found["latent"], target + powers[6] * (2 * latent - target), rtol=1e-4, atol=1e-5)


def test_adam_takes_its_rate_at_first():
    latent = jnp.array([[1.0, -2.0]])
    found = guidance.optimize_latent(lambda z: z, squared(0.0), latent, num_steps=1)
    np.testing.assert_allclose(found["latent"], [[1 - 5e-3, -2 + 5e-3]], rtol=1e-6)
    schedule = guidance.optimize_latent(
        lambda z: z, squared(0.0), latent, num_steps=2, learning_rate=optax.piecewise_constant_schedule(0.1, {1: 0.0})
    )
    np.testing.assert_allclose(schedule["latent"], [[0.9, -1.9]], rtol=1e-5)
    traced = jax.jit(
        lambda rate: guidance.optimize_latent(lambda z: z, squared(0.0), latent, num_steps=1, learning_rate=rate)
    )(0.1)
    np.testing.assert_allclose(traced["latent"], [[0.9, -1.9]], rtol=1e-5)
    assert guidance.optimize_latent(lambda z: z, squared(0.0), latent)["losses"].shape == (70, 1)


def test_examples_do_not_know_each_other():
    latent, target = jax.random.normal(KEY, (2, 5, 3))
    sample = lambda z: jnp.tanh(z) + 0.1 * z  # noqa: E731
    run = lambda z, y: guidance.optimize_latent(sample, squared(y), z, num_steps=20, learning_rate=0.1)  # noqa: E731
    together = run(latent, target)
    alone = run(latent[:1], target[:1])
    np.testing.assert_allclose(alone["latent"], together["latent"][:1], rtol=1e-5)
    np.testing.assert_allclose(alone["losses"], together["losses"][:, :1], rtol=1e-5)
    spoiled = run(latent.at[2].set(jnp.nan), target)
    np.testing.assert_array_equal(np.isnan(spoiled["latent"]).any(axis=1), np.arange(5) == 2)


def test_renormalised_latents_keep_their_norms():
    latent = jax.random.normal(KEY, (4, 2, 3)).at[3].set(0.0)
    target = 5 * jax.random.normal(jax.random.key(1), (4, 2, 3))
    norm = lambda z: np.linalg.norm(np.reshape(z, (4, -1)), axis=1)  # noqa: E731
    search = lambda renormalize: guidance.optimize_latent(  # noqa: E731
        lambda z: z, squared(target), latent, num_steps=300, optimizer=optax.sgd(0.05), renormalize=renormalize
    )["latent"]
    np.testing.assert_allclose(norm(search(True)), norm(latent), rtol=1e-5)
    # On the sphere the nearest point to a target is its direction.
    np.testing.assert_allclose(
        search(True)[:3] / norm(latent)[:3, None, None], target[:3] / norm(target)[:3, None, None], atol=1e-4
    )
    assert np.all(np.abs(norm(search(False)) - norm(latent)) > 0.5)


def test_renormalised_adam_ends_at_signs_where_the_control_is_out_of_reach():
    latent, direction = jax.random.normal(KEY, (2, 3, 64))
    unit = lambda z: z / jnp.linalg.norm(z, axis=1, keepdims=True)  # noqa: E731
    cosines = lambda a, b: np.sum(unit(a) * unit(b), axis=1)  # noqa: E731
    search = lambda radius, **given: guidance.optimize_latent(  # noqa: E731
        lambda z: z, squared(radius * unit(direction)), latent, num_steps=1000, renormalize=True, **given
    )["latent"]
    far, own = 400.0, jnp.linalg.norm(latent, axis=1, keepdims=True)  # 50 times the norms, and they themselves
    adam = search(far, learning_rate=0.05)
    assert np.all(cosines(adam, jnp.sign(far * unit(direction) - adam)) > 0.97)
    assert np.all(cosines(adam, direction) < 0.87)
    assert np.all(cosines(search(far, optimizer=optax.sgd(0.01)), direction) > 0.999)
    # A control within reach leaves no gradient to follow.
    assert np.all(cosines(search(own, learning_rate=0.05), direction) > 0.999)


def test_a_search_through_one_step_serves_many():
    """Outpainting on an exact Gaussian trajectory: what one jump finds (its error halves a step), four levels decode."""
    spread = 0.5

    def predict(x, sigma, sigma_to):
        s, u = sigma[:, None], sigma_to[:, None]
        ratio = jnp.sqrt((spread**2 + u**2) / (spread**2 + s**2))
        return x * spread**2 * (s + u) / ((spread**2 + s**2) * (s * ratio + u))

    sample = lambda z, sigmas: consistency.trajectory_sample(KEY, predict, 80 * z, sigmas=sigmas)  # noqa: E731
    latent, wanted = jax.random.normal(KEY, (2, 3, 6))
    target, mask = spread * wanted, jnp.arange(6) < 3
    control = lambda x: guidance.masked_reconstruction_loss(x, target, mask)  # noqa: E731
    found = guidance.optimize_latent(
        lambda z: sample(z, (80.0,)), control, latent, num_steps=30, optimizer=optax.sgd(3.0)
    )["latent"]
    decoded = sample(found, (80.0, 10.0, 1.0, 0.1))
    np.testing.assert_allclose(decoded[:, :3], target[:, :3], atol=1e-4)
    # Nothing pulls at the rest.
    np.testing.assert_array_equal(found[:, 3:], latent[:, 3:])
    assert np.all(control(decoded) < 0.01 * control(sample(latent, (80.0,))))


def test_searches_run_inside_shard_map():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    latent, target = jax.random.normal(KEY, (2, 16, 3))

    def run(z, y):
        return guidance.optimize_latent(jnp.tanh, squared(y), z, num_steps=5, learning_rate=0.1, renormalize=True)

    spec = PartitionSpec("data")
    mapped = jax.jit(
        jax.shard_map(run, mesh=mesh, in_specs=spec, out_specs={"latent": spec, "losses": PartitionSpec(None, "data")})
    )(latent, target)
    expected = run(latent, target)
    for name, value in expected.items():
        np.testing.assert_allclose(mapped[name], value, rtol=1e-5, atol=1e-6)


def test_half_precision_latents_are_searched_in_float32():
    found = guidance.optimize_latent(
        lambda z: z.astype(jnp.bfloat16), lambda x: squared(0.0)(x), jnp.ones((2, 3), jnp.bfloat16), num_steps=2
    )
    assert found["latent"].dtype == jnp.float32
    assert found["losses"].dtype == jnp.float32


X = jnp.ones((2, 3))


def search(**changes):
    return guidance.optimize_latent(
        **{"sample_fn": lambda z: z, "loss_fn": squared(0.0), "latent": X, "num_steps": 1, **changes}
    )


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: guidance.classifier_free_guidance(X, X[:1], scale=1.0), "conditional"),
        (lambda: guidance.classifier_free_guidance(X, X, scale=jnp.ones(3)), "scale"),
        (lambda: guidance.classifier_free_guidance(X, X, scale=jnp.ones((2, 1))), "scale"),
        (lambda: guidance.classifier_free_guidance(1.0, 2.0, scale=1.0), "unconditional"),
        (lambda: guidance.sample_guidance_scale(KEY, (2,), low=5.0), "low must be <= high"),
        (lambda: guidance.sample_guidance_scale(KEY, (2,), low=jnp.ones(2)), "low"),
        (lambda: guidance.masked_reconstruction_loss(X, X[:1], X), "target"),
        (lambda: guidance.masked_reconstruction_loss(X, X, jnp.ones(2)), "mask"),
        (lambda: guidance.masked_reconstruction_loss(X, X, jnp.ones((1, 2, 3))), "mask"),
        (lambda: guidance.masked_reconstruction_loss(X, X, -X), "mask"),
        (lambda: guidance.masked_reconstruction_loss(1.0, 1.0, 1.0), "x must"),
        (lambda: search(num_steps=0), "num_steps"),
        (lambda: search(learning_rate=0.0), "learning_rate"),
        (lambda: search(latent=jnp.ones(())), "latent"),
        (lambda: search(loss_fn=jnp.sum), "loss_fn"),
        (lambda: search(loss_fn=lambda x: x), "loss_fn"),
        (lambda: search(sample_fn=lambda z: z[:1]), "loss_fn"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
