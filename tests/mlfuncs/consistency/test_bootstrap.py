"""Bootstrap distillation: exact trajectories of Gaussians and points, gradients, the law of the pairs of levels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mlfuncs import consistency, diffusion

KEY = jax.random.key(2)
VARIANCE = 0.25  # of the data, N(0, VARIANCE)
TOP = 80.0


def column(sigma, x):
    return sigma.reshape(-1, *[1] * (x.ndim - 1))


def denoise(x, sigma):
    return x * VARIANCE / (VARIANCE + column(sigma, x) ** 2)


def exact_signal(noise, sigma):
    """y(sigma) of the trajectory that starts, at TOP, at the teacher's estimate from pure noise."""
    start = TOP * (1 + VARIANCE / (VARIANCE + TOP**2))
    return noise * (start * jnp.sqrt((VARIANCE + sigma**2) / (VARIANCE + TOP**2)) - sigma)


def test_signal_step_by_hand():
    signal, denoised = jnp.array([[3.0, 1.0]]), jnp.array([[1.0, 2.0]])
    np.testing.assert_allclose(consistency.signal_step(signal, denoised, 4.0, 1.0), [[1.5, 1.75]])
    np.testing.assert_array_equal(consistency.signal_step(signal, denoised, jnp.array([4.0]), 0.0), denoised)
    np.testing.assert_allclose(consistency.signal_step(signal, denoised, 4.0, 4.0), signal)


def test_signal_step_is_the_euler_step_without_its_noise():
    signal, denoised, noise = jax.random.normal(KEY, (3, 4, 2, 2))
    sigma, sigma_next = jnp.array([5.0, 2.0, 1.0, 0.1]), jnp.array([4.0, 0.0, 0.5, 0.01])
    expected = diffusion.euler_step(signal + column(sigma, noise) * noise, denoised, sigma, sigma_next)
    stepped = consistency.signal_step(signal, denoised, sigma, sigma_next)
    np.testing.assert_allclose(stepped + column(sigma_next, noise) * noise, expected, rtol=1e-5, atol=1e-5)


def test_steps_from_the_boundary_follow_the_exact_signal():
    """200 levels: the largest error 7.1e-3 of the noise, the end 0.491 against 0.498, and first order."""

    def errors(num):
        with jax.enable_x64(True):
            levels = consistency.karras_levels(num).astype(jnp.float64)[::-1]
            noise = jnp.ones((1, 1), jnp.float64)

            def step(signal, pair):
                sigma, sigma_next = pair
                denoised = denoise(signal + sigma * noise, sigma[None])
                signal = consistency.signal_step(signal, denoised, sigma, sigma_next)
                return signal, abs(signal[0, 0] - exact_signal(1.0, sigma_next))

            start = denoise(levels[0] * noise, levels[:1])
            end, apart = jax.lax.scan(step, start, (levels[:-1], levels[1:]))
            return float(end[0, 0]), float(jnp.max(apart))

    end, worst = errors(200)
    np.testing.assert_allclose(end, 0.491, atol=5e-4)
    np.testing.assert_allclose(exact_signal(1.0, 0.002), 0.498, atol=5e-4)
    np.testing.assert_allclose(worst, 7.1e-3, rtol=0.01)
    np.testing.assert_allclose(worst / errors(400)[1], 2.0, rtol=0.05)


def test_losses_by_hand():
    noise, sigma, sigma_next = jnp.array([[1.0, -1.0]]), jnp.array([2.0]), jnp.array([1.0])
    student = lambda noise, sigma: column(sigma, noise) * noise  # noqa: E731
    teacher = lambda x, sigma: 0.5 * x  # noqa: E731
    # y = (2, -2), x = (4, -4), D = (2, -2) = target; the student says (1, -1); weight 1 / (1 - 1/2)^2.
    loss = lambda **kw: consistency.bootstrap_loss(student, teacher, noise, sigma, sigma_next, **kw)  # noqa: E731
    np.testing.assert_allclose(loss(), [4.0])
    np.testing.assert_allclose(loss(max_weight=2.0), [2.0])
    np.testing.assert_allclose(loss(weight=3.0), [3.0])
    np.testing.assert_allclose(loss(weight=jnp.array([0.5])), [0.5])
    # At level 3 the student says (3, -3), the teacher half of (3, -3).
    np.testing.assert_allclose(consistency.bootstrap_boundary_loss(student, teacher, noise, sigma_max=3.0), [2.25])


def test_a_point_mass_leaves_only_the_beginning_open():
    """Data at c: any y = c + sigma * a moves as the teacher says; the boundary asks for a = 0."""
    noise = jax.random.normal(KEY, (5, 3))
    teacher = lambda x, sigma: jnp.full_like(x, 0.4)  # noqa: E731
    sigma, sigma_next = jnp.array([80.0, 10.0, 1.0, 0.1, 2.0]), jnp.array([60.0, 9.0, 0.5, 0.002, 0.0])
    for a in (0.0, 0.5):
        student = lambda noise, sigma, a=a: 0.4 + column(sigma, noise) * a * noise  # noqa: E731
        loss = consistency.bootstrap_loss(student, teacher, noise, sigma, sigma_next)
        np.testing.assert_allclose(loss, np.zeros(5), atol=1e-7)
        boundary = consistency.bootstrap_boundary_loss(student, teacher, noise)
        np.testing.assert_allclose(boundary, jnp.mean((80 * a * noise) ** 2, axis=1), rtol=1e-5)


def test_the_chain_of_teacher_steps_has_no_loss():
    levels = consistency.karras_levels(21)
    noise = jax.random.normal(KEY, (20, 3))
    factors = [VARIANCE * TOP / (VARIANCE + TOP**2)]
    for sigma, sigma_next in zip(np.asarray(levels)[:0:-1], np.asarray(levels)[-2::-1], strict=True):
        estimate = (factors[-1] + sigma) * VARIANCE / (VARIANCE + sigma**2)
        factors.append(estimate + sigma_next / sigma * (factors[-1] - estimate))
    table = jnp.asarray(factors[::-1], jnp.float32)
    student = lambda noise, sigma: noise * table[jnp.argmin(abs(sigma[:, None] - levels), axis=1)][:, None]  # noqa: E731
    loss = consistency.bootstrap_loss(student, denoise, noise, levels[1:], levels[:-1])
    np.testing.assert_allclose(loss, np.zeros(20), atol=1e-9)
    np.testing.assert_allclose(consistency.bootstrap_boundary_loss(student, denoise, noise), np.zeros(20), atol=1e-9)


def test_the_exact_student_has_the_velocity_error_of_one_step():
    """With its weight the root of the loss is an error of velocity: of first order in the stride."""

    def error(gap):
        with jax.enable_x64(True):
            noise, sigma = jnp.ones((1, 1), jnp.float64), jnp.ones(1, jnp.float64)
            student = lambda noise, sigma: exact_signal(noise, column(sigma, noise))  # noqa: E731
            return float(jnp.sqrt(consistency.bootstrap_loss(student, denoise, noise, sigma, (1 - gap) * sigma)[0]))

    np.testing.assert_allclose(error(0.04) / error(0.02), 2.0, rtol=0.05)


def smooth(params):
    return lambda noise, sigma: params["a"] * jnp.tanh(params["b"] * noise / (1 + column(sigma, noise)))


PARAMS = {"a": jnp.float32(0.7), "b": jnp.float32(1.3)}
SIGMA, SIGMA_NEXT = jnp.array([80.0, 5.0, 0.5, 0.01]), jnp.array([60.0, 4.9, 0.002, 0.0])


def test_gradient_passes_through_the_student_at_the_lower_level_alone():
    noise = jax.random.normal(KEY, (4, 2, 2))

    def loss(params, spread):
        teacher = lambda x, sigma: x / (1 + spread * column(sigma, x) ** 2)  # noqa: E731
        inner = consistency.bootstrap_loss(smooth(params), teacher, noise, SIGMA, SIGMA_NEXT)
        return jnp.sum(inner + consistency.bootstrap_boundary_loss(smooth(params), teacher, noise))

    # The same with targets as numbers.
    teacher = lambda x, sigma: x / (1 + 4.0 * column(sigma, x) ** 2)  # noqa: E731
    signal = smooth(PARAMS)(noise, SIGMA)
    denoised = teacher(signal + column(SIGMA, noise) * noise, SIGMA)
    target = consistency.signal_step(signal, denoised, SIGMA, SIGMA_NEXT)
    top = jnp.full(4, TOP)
    weight = jnp.minimum((1 - SIGMA_NEXT / SIGMA) ** -2.0, 1e4)

    def plain(params):
        inner = jnp.mean((smooth(params)(noise, SIGMA_NEXT) - target) ** 2, axis=(1, 2))
        boundary = jnp.mean((smooth(params)(noise, top) - teacher(TOP * noise, top)) ** 2, axis=(1, 2))
        return jnp.sum(weight * inner + boundary)

    student, spread = jax.grad(loss, argnums=(0, 1))(PARAMS, 4.0)
    assert spread == 0
    for name, value in jax.grad(plain)(PARAMS).items():
        np.testing.assert_allclose(student[name], value, rtol=1e-4)


def test_the_weight_is_capped_with_finite_slopes():
    noise = jnp.ones((2, 3))
    near = jnp.array([1.0, 1.0]) - jnp.array([1e-3, 2**-24])
    student = lambda noise, sigma: noise + column(sigma, noise)  # noqa: E731
    total = lambda s: jnp.sum(consistency.bootstrap_loss(student, denoise, noise, jnp.ones(2), s))  # noqa: E731
    assert np.isfinite(total(near))
    assert np.all(np.isfinite(jax.grad(total)(near)))
    # Traced levels may meet: the weight is then the cap, the loss finite.
    assert np.isfinite(jax.jit(total)(jnp.ones(2)))
    assert np.all(np.isfinite(jax.jit(jax.grad(total))(jnp.ones(2))))


def inverse(sigma, sigma_min=0.002, sigma_max=80.0, rho=7.0):
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return (np.asarray(sigma, np.float64) ** (1 / rho) - low) / (high - low)


def test_law_of_the_pairs():
    """Kolmogorov distance of u from uniform; the bound fails in 1 of 10^9 (Dvoretzky-Kiefer-Wolfowitz)."""
    num = 20_000
    sigma, sigma_next = consistency.sample_level_pairs(KEY, num, delta=0.1)
    u, lower = inverse(sigma), inverse(sigma_next)
    ranks = np.sort(u)
    distance = np.max(np.abs(ranks - (np.arange(num) + 0.5) / num))
    assert distance < np.sqrt(np.log(2e9) / (2 * num)) + 1e-4
    inside = u > 0.1 + 1e-5
    np.testing.assert_allclose(u[inside] - lower[inside], 0.1, atol=1e-5)
    assert 0 < np.sum(~inside) < num / 5
    np.testing.assert_array_equal(np.asarray(sigma_next)[u < 0.1 - 1e-5], np.float32(0.002))


@pytest.mark.parametrize(
    "options",
    [{}, {"delta": 1e-7}, {"delta": 0.999}, {"sigma_min": 1.0, "sigma_max": 1.0001}, {"rho": 1.0}, {"delta": 1e-12}],
)
def test_pairs_never_meet_or_leave_the_range(options):
    sigma, sigma_next = consistency.sample_level_pairs(KEY, 5000, **options)
    low, high = np.float32(options.get("sigma_min", 0.002)), np.float32(options.get("sigma_max", 80.0))
    assert np.all(np.asarray(sigma_next) < np.asarray(sigma))
    assert np.min(sigma_next) >= low
    assert np.max(sigma) <= high
    loss = consistency.bootstrap_loss(smooth(PARAMS), denoise, jnp.ones((5000, 1)), sigma, sigma_next)
    assert np.all(np.isfinite(loss))


def test_pairs_depend_on_their_index_alone_and_take_a_traced_stride():
    many = consistency.sample_level_pairs(KEY, 10)
    few = consistency.sample_level_pairs(KEY, 3)
    traced = jax.jit(lambda delta: consistency.sample_level_pairs(KEY, 10, delta=delta))(0.04)
    for i in range(2):
        np.testing.assert_allclose(few[i], many[i][:3], rtol=1e-6)
        np.testing.assert_allclose(traced[i], many[i], rtol=1e-4)


def test_half_precision_batches_of_one_and_nan():
    half = lambda noise, sigma: noise.astype(jnp.bfloat16)  # noqa: E731
    noise = jnp.ones((1, 4), jnp.bfloat16)
    loss = consistency.bootstrap_loss(half, half, noise, jnp.ones(1), jnp.zeros(1))
    assert loss.shape == (1,)
    assert loss.dtype == jnp.float32
    assert consistency.bootstrap_boundary_loss(half, half, noise).dtype == jnp.float32
    teacher = lambda x, sigma: x.at[1].set(jnp.nan)  # noqa: E731
    loss = consistency.bootstrap_loss(smooth(PARAMS), teacher, jnp.ones((4, 2)), SIGMA, SIGMA_NEXT)
    np.testing.assert_array_equal(np.isnan(loss), np.arange(4) == 1)


def test_sharded_equals_one_device():
    sharding = NamedSharding(
        jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)), PartitionSpec("data")
    )
    noise = jax.random.normal(KEY, (16, 3))
    pairs = consistency.sample_level_pairs(KEY, 16)

    def loss(noise, sigma, sigma_next):
        boundary = consistency.bootstrap_boundary_loss(smooth(PARAMS), denoise, noise)
        return boundary + consistency.bootstrap_loss(smooth(PARAMS), denoise, noise, sigma, sigma_next)

    sharded = jax.jit(loss)(*(jax.device_put(value, sharding) for value in (noise, *pairs)))
    np.testing.assert_allclose(sharded, loss(noise, *pairs), rtol=1e-4, atol=1e-6)


X, TWO = jnp.ones((2, 3)), jnp.ones(2)
GOOD = {"student": lambda noise, sigma: noise, "denoise": denoise, "noise": X, "sigma": 2 * TWO, "sigma_next": TWO}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"sigma": 0 * TWO}, "sigma"),
        ({"sigma_next": -TWO}, "sigma_next"),
        ({"sigma_next": 2 * TWO}, "sigma_next must be < sigma"),
        ({"sigma": jnp.ones(3)}, "sigma"),
        ({"sigma": 2.0}, "sigma"),
        ({"sigma_next": jnp.ones((2, 1))}, "sigma_next"),
        ({"student": lambda noise, sigma: noise[:, :1]}, "student"),
        ({"denoise": lambda x, sigma: x[:, :1]}, "denoise"),
        ({"weight": jnp.ones(3)}, "weight"),
        ({"max_weight": 0.0}, "max_weight"),
        ({"noise": jnp.ones(())}, "noise"),
    ],
)
def test_bad_input_of_the_loss(changes, match):
    with pytest.raises(ValueError, match=match):
        consistency.bootstrap_loss(**{**GOOD, **changes})


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: consistency.signal_step(X, X[:1], 1.0, 0.5), "denoised"),
        (lambda: consistency.signal_step(X, X, 0.0, 0.0), "sigma"),
        (lambda: consistency.signal_step(X, X, 1.0, 2.0), "sigma_next must be <= sigma"),
        (lambda: consistency.signal_step(X, X, 1.0, -1.0), "sigma_next"),
        (lambda: consistency.signal_step(X, X, jnp.ones(3), 0.5), "sigma"),
        (lambda: consistency.bootstrap_boundary_loss(GOOD["student"], denoise, X, sigma_max=0.0), "sigma_max"),
        (lambda: consistency.bootstrap_boundary_loss(GOOD["student"], denoise, X, sigma_max=TWO), "sigma_max"),
        (lambda: consistency.bootstrap_boundary_loss(lambda n, s: n[:1], denoise, X), "student"),
        (lambda: consistency.sample_level_pairs(KEY, 0), "batch"),
        (lambda: consistency.sample_level_pairs(KEY, 2, delta=0.0), "delta"),
        (lambda: consistency.sample_level_pairs(KEY, 2, delta=1.0), "delta"),
        (lambda: consistency.sample_level_pairs(KEY, 2, sigma_min=0.0), "sigma_min"),
        (lambda: consistency.sample_level_pairs(KEY, 2, sigma_max=0.001), "sigma_min"),
        (lambda: consistency.sample_level_pairs(KEY, 2, rho=0.0), "rho"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
