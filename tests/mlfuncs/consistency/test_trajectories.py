"""Trajectory models: jumps by hand and on exact Gaussian trajectories, what gets gradient, laws of the samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mlfuncs import consistency, robust

KEY = jax.random.key(4)
VARIANCE = 0.25  # of the data, N(0, VARIANCE)


def column(sigma, x):
    return sigma.reshape(-1, *[1] * (x.ndim - 1))


def flow(x, sigma, sigma_to):
    """Where the probability-flow equation takes x."""
    return x * np.sqrt((VARIANCE + sigma_to**2) / (VARIANCE + sigma**2))


def exact(x, sigma, sigma_to):
    """The predictor whose jump is `flow`; at sigma_to = sigma it is the exact denoiser."""
    s, u = column(sigma, x), column(sigma_to, x)
    ratio = jnp.sqrt((VARIANCE + u**2) / (VARIANCE + s**2))
    return x * VARIANCE * (s + u) / ((VARIANCE + s**2) * (s * ratio + u))


def denoise(x, sigma):
    return x * VARIANCE / (VARIANCE + column(sigma, x) ** 2)


def constant(value):
    return lambda x, sigma, sigma_to: jnp.full_like(x, value)


def test_jump_and_gamma_step_by_hand():
    x = jnp.array([[3.0, -1.0]])
    np.testing.assert_allclose(consistency.trajectory_jump(constant(1.0), x, 2.0, 1.0), [[2.0, 0.0]])
    # gamma 0.6 from 2 to 1: a jump to 0.8, 0.4 x + 0.6 g, then 0.6 of the noise.
    stepped = consistency.gamma_step(constant(1.0), x, 2.0, 1.0, jnp.array([[5.0, 0.0]]), gamma=0.6)
    np.testing.assert_allclose(stepped, [[1.8 + 3.0, 0.2]], rtol=1e-6)


def test_both_ends_of_a_jump_are_exact():
    x = 80 * jax.random.normal(KEY, (3, 2, 2))
    sigma = jnp.array([80.0, 3.3, 0.1])
    wild = lambda x, sigma, sigma_to: jnp.sin(x) * 1e4  # noqa: E731
    np.testing.assert_array_equal(consistency.trajectory_jump(wild, x, sigma, sigma), x)
    np.testing.assert_array_equal(consistency.trajectory_jump(wild, x, sigma, 0.0), wild(x, sigma, sigma))


def test_exact_jumps_follow_and_compose():
    x = jnp.array([[40.0, -3.0], [0.2, 5.0]])
    there = consistency.trajectory_jump(exact, x, jnp.array([80.0, 4.0]), jnp.array([2.0, 0.3]))
    np.testing.assert_allclose(there[0], flow(np.asarray(x[0]), 80.0, 2.0), rtol=1e-5)
    np.testing.assert_allclose(there[1], flow(np.asarray(x[1]), 4.0, 0.3), rtol=1e-5)
    on = consistency.trajectory_jump(exact, there, jnp.array([2.0, 0.3]), 0.01)
    np.testing.assert_allclose(on, consistency.trajectory_jump(exact, x, jnp.array([80.0, 4.0]), 0.01), rtol=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.9, 1.0])
def test_gamma_step_keeps_the_law_of_the_level(gamma):
    """5 standard errors: a false alarm in 1 of 10^6."""
    num = 40_000
    start, noise = jax.random.normal(KEY, (2, num, 1))
    x = consistency.gamma_step(exact, start * np.sqrt(VARIANCE + 9.0), 3.0, 0.7, noise, gamma=gamma)
    np.testing.assert_allclose(jnp.std(x), np.sqrt(VARIANCE + 0.49), rtol=5 / np.sqrt(2 * num))
    # How much of the start is forgotten: the jump keeps (1 - gamma^2) of the noise alone.
    below = np.sqrt(1 - gamma**2) * 0.7
    expected = np.sqrt((VARIANCE + below**2) / (VARIANCE + 0.49))
    assert abs(np.corrcoef(start[:, 0], x[:, 0])[0, 1] - expected) < 5 / np.sqrt(num)


def test_deterministic_samples_do_not_depend_on_the_levels():
    latent = 80 * jax.random.normal(KEY, (5, 3))
    once = consistency.trajectory_sample(KEY, exact, latent, sigmas=(80.0,))
    np.testing.assert_allclose(once, flow(np.asarray(latent), 80.0, 0.002), rtol=1e-4)
    for sigmas in ((80.0, 1.0), jnp.array([80.0, 20.0, 2.0, 0.1, 0.002])):
        several = consistency.trajectory_sample(jax.random.key(1), exact, latent, sigmas=sigmas)
        np.testing.assert_allclose(several, once, rtol=1e-4)
    grid = consistency.karras_levels(4, sigma_min=0.005)[::-1]
    assert bool(jnp.all(jnp.isfinite(consistency.trajectory_sample(KEY, exact, latent, sigmas=grid, sigma_min=0.005))))


@pytest.mark.parametrize("gamma", [0.3, 1.0])
def test_stochastic_samples_follow_the_data(gamma):
    """5 standard errors: a false alarm in 1 of 10^6."""
    num = 40_000
    latent = 80 * jax.random.normal(jax.random.key(1), (num, 1))
    x = consistency.trajectory_sample(KEY, exact, latent, sigmas=(80.0, 5.0, 0.4), gamma=gamma)
    assert abs(float(jnp.mean(x))) < 5 * np.sqrt(VARIANCE / num)
    np.testing.assert_allclose(jnp.std(x), np.sqrt(VARIANCE), rtol=5 / np.sqrt(2 * num) + 1e-4)


def test_samples_depend_on_their_index_alone_and_take_traced_values():
    latent = 80 * jax.random.normal(KEY, (6, 2))
    sample = lambda z, s, g: consistency.trajectory_sample(KEY, exact, z, sigmas=s, gamma=g)  # noqa: E731
    sigmas = jnp.array([80.0, 2.0, 0.5])
    many = sample(latent, sigmas, 0.5)
    np.testing.assert_allclose(sample(latent[:2], sigmas, 0.5), many[:2], rtol=1e-5)
    np.testing.assert_allclose(jax.jit(sample)(latent, sigmas, 0.5), many, rtol=1e-5)
    mixed = sample(latent, sigmas, jnp.array([0.0, 0.5, 0.5, 0.5, 0.5, 1.0]))
    np.testing.assert_allclose(mixed[1:5], many[1:5], rtol=1e-5)
    np.testing.assert_allclose(mixed[0], sample(latent, sigmas, 0.0)[0], rtol=1e-5)


def test_one_evaluation_a_level():
    calls = []

    def counted(x, sigma, sigma_to):
        jax.debug.callback(lambda: calls.append(1))
        return exact(x, sigma, sigma_to)

    consistency.trajectory_sample(KEY, counted, jnp.ones((2, 2)), sigmas=(80.0, 2.0, 0.5)).block_until_ready()
    jax.effects_barrier()
    assert len(calls) == 3


HAND = {
    "x": jnp.array([[4.0]]),
    "sigma": jnp.array([4.0]),
    "sigma_mid": jnp.array([2.0]),
    "sigma_low": jnp.array([1.0]),
    "sigma_min": 0.5,
    "method": "euler",
}


def hand_loss(student, teacher):
    return consistency.trajectory_distillation_loss(
        constant(student),
        lambda x, sigma: jnp.full_like(x, 2.0),
        **HAND,
        teacher_predict=None if teacher is None else constant(teacher),
    )[0]


def test_distillation_by_hand():
    # Student: 4 -> 1/4 * 4 + 3/4 * 0 = 1, then 1/2 * 1 + 1/2 * 1 = 1. Teacher: 4 -> 3 -> 2 -> 1.5.
    np.testing.assert_allclose(hand_loss(0.0, 1.0), 0.25, rtol=1e-6)
    # Student alone: 1 -> 0.5 against 3 -> 1.5 -> 0.75.
    np.testing.assert_allclose(hand_loss(0.0, None), 0.0625, rtol=1e-6)


def test_gradient_passes_through_the_inner_jump_alone():
    # d estimate / d g of the inner jump = 1/2 * 3/4.
    for wrap in (lambda f: f, jax.jit):
        student, teacher = jax.grad(wrap(hand_loss), argnums=(0, 1))(0.0, 1.0)
        np.testing.assert_allclose(student, 2 * (1 - 1.5) * 3 / 8, rtol=1e-6)
        assert teacher == 0
        shared = wrap(lambda a: hand_loss(a, None))
        np.testing.assert_allclose(jax.grad(shared)(0.0), 2 * (0.5 - 0.75) * 3 / 8, rtol=1e-6)
        np.testing.assert_allclose(jax.jit(jax.grad(shared))(0.0), 2 * (0.5 - 0.75) * 3 / 8, rtol=1e-6)
        np.testing.assert_allclose(jax.vmap(jax.grad(shared))(jnp.zeros(2)), [-0.1875, -0.1875], rtol=1e-6)


def smooth(params):
    def predict(x, sigma, sigma_to):
        return params["c"] * jnp.tanh(params["a"] * x + params["b"] * jnp.log(column(sigma / (1 + sigma_to), x)))

    return predict


PARAMS = {"a": jnp.float32(0.7), "b": jnp.float32(0.1), "c": jnp.float32(-1.3)}


def levels(batch=6):
    high = jnp.linspace(0.5, 60.0, batch)
    return {"sigma": high, "sigma_mid": 0.8 * high, "sigma_low": 0.1 * high}


def test_the_students_own_parameters_as_teacher_get_the_gradient_of_a_copy():
    x = 3 * jax.random.normal(KEY, (6, 2, 2))

    def loss(student, teacher):
        given = None if teacher is None else smooth(teacher)
        return jnp.sum(
            consistency.trajectory_distillation_loss(smooth(student), denoise, x, **levels(), teacher_predict=given)
        )

    student, teacher = jax.grad(loss, argnums=(0, 1))(PARAMS, PARAMS)
    shared = jax.grad(lambda params: loss(params, None))(PARAMS)
    for name, value in student.items():
        assert abs(float(value)) > 0
        assert float(teacher[name]) == 0
        np.testing.assert_allclose(shared[name], value, rtol=1e-5)


def test_the_outer_jump_passes_gradient_as_a_map():
    """Against finite differences of the student's parameter with the outer map held at the old parameters."""
    with jax.enable_x64(True):
        x = 3 * jax.random.normal(KEY, (6, 2), jnp.float64)
        given = {name: value.astype(jnp.float64) for name, value in levels().items()}
        held = {name: jnp.float64(value) for name, value in PARAMS.items()}

        def loss(a, teacher=None):
            return jnp.sum(
                consistency.trajectory_distillation_loss(
                    smooth({**held, "a": a}), denoise, x, **given, teacher_predict=teacher
                )
            )

        frozen = smooth(held)
        numeric = (loss(held["a"] + 1e-5, frozen) - loss(held["a"] - 1e-5, frozen)) / 2e-5
        np.testing.assert_allclose(jax.grad(loss)(held["a"]), numeric, rtol=1e-6)


def test_a_point_mass_has_no_loss():
    x = 5 * jax.random.normal(KEY, (6, 3))
    point = lambda x, sigma: jnp.full_like(x, 0.4)  # noqa: E731
    for method in ("euler", "heun"):
        loss = consistency.trajectory_distillation_loss(constant(0.4), point, x, **levels(), method=method)
        np.testing.assert_allclose(loss, np.zeros(6), atol=1e-9)


@pytest.mark.parametrize(("method", "order"), [("euler", 2), ("heun", 3)])
def test_the_exact_model_has_the_loss_of_one_teacher_step(method, order):
    def error(gap):
        with jax.enable_x64(True):
            one = jnp.ones(1, jnp.float64)
            loss = consistency.trajectory_distillation_loss(
                exact, denoise, one[:, None], one, (1 - gap) * one, 0.3 * one, method=method
            )
            return float(jnp.sqrt(loss[0]))

    np.testing.assert_allclose(np.log2(error(0.04) / error(0.02)), order, atol=0.15)


def test_other_distances_and_edges():
    x = 3 * jax.random.normal(KEY, (3, 2))
    edges = {
        "sigma": jnp.array([80.0, 0.002, 1.0]),
        "sigma_mid": jnp.array([0.002, 0.002, 1.0]),
        "sigma_low": jnp.array([0.002, 0.002, 1.0]),
    }

    def loss(params, distance):
        return consistency.trajectory_distillation_loss(smooth(params), denoise, x, **edges, distance=distance)

    huber = lambda a, b: robust.pseudo_huber(a, b, c=0.0)  # noqa: E731
    value = loss(PARAMS, huber)
    np.testing.assert_allclose(value**2 / 2, loss(PARAMS, None), rtol=1e-4, atol=1e-9)
    assert float(value[1]) == 0
    assert float(value[2]) < 1e-6  # no teacher step
    for distance in (huber, None):
        gradient = jax.grad(lambda params, d=distance: jnp.sum(loss(params, d)))(PARAMS)
        assert all(np.isfinite(g) for g in gradient.values())
    through_gamma = jax.grad(
        lambda g: jnp.sum(consistency.gamma_step(exact, jnp.ones((2, 2)), 2.0, 1.0, jnp.ones((2, 2)), gamma=g))
    )
    assert np.isfinite(through_gamma(1.0))
    assert np.isfinite(through_gamma(0.0))
    half = x.astype(jnp.bfloat16)
    assert consistency.trajectory_jump(smooth(PARAMS), half, 2.0, 1.0).dtype == jnp.float32


def test_nan_stays_in_its_example():
    x = jnp.ones((6, 2)).at[2].set(jnp.nan)
    loss = consistency.trajectory_distillation_loss(smooth(PARAMS), denoise, x, **levels())
    np.testing.assert_array_equal(np.isnan(loss), np.arange(6) == 2)


def test_sharded_equals_one_device():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    x, given = 3 * jax.random.normal(KEY, (16, 3)), levels(16)

    def both(x, given):
        loss = consistency.trajectory_distillation_loss(smooth(PARAMS), denoise, x, **given)
        return loss, consistency.trajectory_sample(KEY, exact, x, sigmas=(80.0, 2.0), gamma=0.5)

    run = jax.jit(both)
    sharded, whole = run(jax.device_put(x, sharding), jax.device_put(given, sharding)), run(x, given)
    for ours, theirs in zip(sharded, whole, strict=True):
        assert len(ours.sharding.device_set) == 8
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    mapped = jax.shard_map(
        lambda x, given: consistency.trajectory_distillation_loss(smooth(PARAMS), denoise, x, **given),
        mesh=mesh, in_specs=PartitionSpec("data"), out_specs=PartitionSpec("data"),
    )  # fmt: skip
    np.testing.assert_allclose(jax.jit(mapped)(x, given), whole[0], rtol=1e-4, atol=1e-6)


X = jnp.ones((2, 3))
TWO = jnp.ones(2)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: consistency.trajectory_jump(exact, X, 0.0, 0.0), "sigma"),
        (lambda: consistency.trajectory_jump(exact, X, 1.0, -0.1), "sigma_to"),
        (lambda: consistency.trajectory_jump(exact, X, 1.0, 1.1), "sigma_to must be <= sigma"),
        (lambda: consistency.trajectory_jump(exact, X, jnp.ones(3), 0.5), "sigma"),
        (lambda: consistency.trajectory_jump(exact, jnp.ones(()), 1.0, 0.5), "x"),
        (lambda: consistency.trajectory_jump(lambda x, s, u: x[:1], X, 1.0, 0.5), "predict"),
        (lambda: consistency.gamma_step(exact, X, 2.0, 1.0, X[:1]), "noise"),
        (lambda: consistency.gamma_step(exact, X, 2.0, 1.0, X, gamma=1.1), "gamma"),
        (lambda: consistency.gamma_step(exact, X, 2.0, 1.0, X, gamma=-0.1), "gamma"),
        (lambda: consistency.gamma_step(exact, X, 2.0, 3.0, X, gamma=1.0), "sigma_next must be <= sigma"),
        (lambda: consistency.gamma_step(exact, X, 0.0, 0.0, X), "sigma"),
        (lambda: consistency.trajectory_sample(KEY, exact, X, sigmas=()), "at least one"),
        (lambda: consistency.trajectory_sample(KEY, exact, X, sigmas=(1.0, 1.0)), "decrease"),
        (lambda: consistency.trajectory_sample(KEY, exact, X, sigmas=(1.0, 0.001)), "sigmas"),
        (lambda: consistency.trajectory_sample(KEY, exact, X, sigmas=3.0), "sigmas"),
        (lambda: consistency.trajectory_sample(KEY, exact, X, sigmas=(1.0,), sigma_min=-1.0), "sigma_min"),
        (lambda: consistency.trajectory_sample(KEY, exact, X, sigmas=(1.0,), gamma=2.0), "gamma"),
        (lambda: consistency.trajectory_sample(KEY, exact, jnp.ones(()), sigmas=(1.0,)), "latent"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"sigma": jnp.ones(3)}, "sigma"),
        ({"sigma_mid": 3 * TWO}, "sigma_mid must be <= sigma"),
        ({"sigma_low": 1.8 * TWO}, "sigma_low must be <= sigma_mid"),
        ({"sigma_low": 0.001 * TWO}, "sigma_low"),
        ({"sigma_min": 0.0}, "sigma_min"),
        ({"method": "rk4"}, "method"),
        ({"x": jnp.ones(())}, "x"),
        ({"predict": lambda x, s, u: x[:, :1]}, "predict"),
    ],
)
def test_bad_input_of_the_loss(changes, match):
    good = {"predict": exact, "denoise": denoise, "x": X, "sigma": 2 * TWO, "sigma_mid": 1.5 * TWO, "sigma_low": TWO}
    consistency.trajectory_distillation_loss(**good)
    with pytest.raises(ValueError, match=match):
        consistency.trajectory_distillation_loss(**{**good, **changes})
