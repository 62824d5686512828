"""Consistency losses: hand-worked values, gradients, the no-EMA argument of the paper, limits in continuous time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mlfuncs import consistency, robust

SIGMA_MIN = 0.002


def affine(scale):
    """f(x, sigma) = scale * x + sigma, no boundary condition: easy to work out by hand."""
    return lambda x, sigma: scale * x + sigma.reshape(-1, *[1] * (x.ndim - 1))


def problem(batch=6, shape=(3, 2), seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    data, noise = jax.random.normal(keys[0], (2, batch, *shape))
    grid = consistency.karras_levels(30)
    level = jax.random.randint(keys[1], (batch,), 0, 29)
    return data, noise, grid[level], grid[level + 1], level


def smooth(params):
    """A little network with the boundary condition."""

    def network(x, c_noise):
        hidden = jnp.tanh(x * params["a"] + c_noise.reshape(-1, *[1] * (x.ndim - 1)) + params["b"])
        return params["c"] * hidden

    return consistency.consistency_function(network)


PARAMS = {"a": jnp.float32(0.7), "b": jnp.float32(0.1), "c": jnp.float32(-1.3)}


def test_hand_worked_training_loss():
    # One example of two values: x = (1, 0), z = (3, 4), levels 1 and 2, f = x + sigma.
    arguments = (jnp.array([[1.0, 0.0]]), jnp.array([[3.0, 4.0]]), jnp.array([1.0]), jnp.array([2.0]))
    # high = (7, 8) + 2, low = (4, 4) + 1: residual (4, 5).
    loss = consistency.consistency_training_loss(
        affine(1.0), *arguments, distance=robust.mean_squared, weight=jnp.array([10.0])
    )
    np.testing.assert_allclose(loss, [10 * (16 + 25) / 2], rtol=1e-6)
    default = consistency.consistency_training_loss(affine(1.0), *arguments)
    np.testing.assert_allclose(default, [np.sqrt(41) - 0.00054 * np.sqrt(2)], rtol=1e-5)
    half_teacher = consistency.consistency_training_loss(
        affine(1.0), *arguments, teacher_fn=affine(0.5), distance=robust.mean_squared, weight=1.0
    )
    # teacher: (2, 2) + 1; residual (6, 7)
    np.testing.assert_allclose(half_teacher, [(36 + 49) / 2], rtol=1e-6)


def test_level_zero_uses_the_clean_example():
    data, noise = jnp.array([[1.0, 0.0]]), jnp.array([[3.0, 4.0]])

    def function(x, sigma):
        return jnp.log(sigma)[:, None] + x  # infinite at 0

    loss = consistency.consistency_training_loss(
        function, data, noise, jnp.array([0.0]), jnp.array([1.0]), distance=robust.mean_squared, weight=1.0
    )
    np.testing.assert_allclose(loss, [(9 + 16) / 2], rtol=1e-6)


def test_a_consistent_function_has_no_loss():
    data, noise, low, high, _ = problem()
    loss = consistency.consistency_training_loss(lambda x, sigma: 0 * x, data, noise, low, high)
    np.testing.assert_array_equal(loss, np.zeros(6))


def test_gradient_passes_through_the_student_only():
    data, noise, low, high, _ = problem()

    def loss(student, teacher):
        return consistency.consistency_training_loss(
            smooth(student), data, noise, low, high, teacher_fn=smooth(teacher)
        ).mean()

    student, teacher = jax.grad(loss, argnums=(0, 1))(PARAMS, PARAMS)
    assert all(float(abs(g)) > 0 for g in student.values())
    assert all(float(g) == 0 for g in teacher.values())

    def shared(params):
        return consistency.consistency_training_loss(smooth(params), data, noise, low, high).mean()

    for name, value in jax.grad(shared)(PARAMS).items():
        np.testing.assert_allclose(value, student[name], rtol=1e-5)


@pytest.mark.parametrize("c", [0.0, 1e-6, 0.03])
def test_gradients_are_finite_at_the_edges(c):
    data, noise, _, _, _ = problem()
    low = jnp.array([0.0, SIGMA_MIN, SIGMA_MIN, 1.0, 50.0, 79.0])
    high = jnp.array([SIGMA_MIN, SIGMA_MIN * 1.001, 0.003, 1.0001, 80.0, 80.0])

    def loss(params):
        distance = lambda a, b: robust.pseudo_huber(a, b, c=c)  # noqa: E731
        return consistency.consistency_training_loss(smooth(params), data, noise, low, high, distance=distance).mean()

    value, gradient = jax.value_and_grad(loss)(PARAMS)
    assert np.isfinite(value)
    assert all(np.isfinite(g) for g in gradient.values())


def test_distillation_from_the_clean_example_is_training():
    data, noise, low, high, _ = problem()
    expected = consistency.consistency_training_loss(smooth(PARAMS), data, noise, low, high)
    for method in ("euler", "heun"):
        loss = consistency.consistency_distillation_loss(
            smooth(PARAMS), lambda x, sigma: data, data, noise, low, high, method=method
        )
        # Rounding of x_high at sigma 80 is carried into x_low.
        np.testing.assert_allclose(loss, expected, rtol=2e-3)


def test_distillation_of_the_exact_model_has_little_loss():
    """For N(0, s^2) data both D and f are known; the Heun step's error is of third order in the gap."""
    spread, spread_sq = 0.5, 0.25
    column = lambda sigma: sigma[:, None]  # noqa: E731
    denoise = lambda x, sigma: x * spread_sq / (spread_sq + column(sigma) ** 2)  # noqa: E731
    function = lambda x, sigma: x * spread / jnp.sqrt(spread_sq + column(sigma) ** 2)  # noqa: E731
    data, noise = jax.random.normal(jax.random.key(0), (2, 64, 3))
    errors = {}
    for method in ("euler", "heun"):
        for gap in (0.2, 0.1):
            loss = consistency.consistency_distillation_loss(
                function, denoise, spread * data, noise, jnp.full(64, 1 - gap), jnp.full(64, 1.0),
                method=method, distance=robust.mean_squared, weight=1.0,
            )  # fmt: skip
            errors[method, gap] = float(jnp.sqrt(jnp.mean(loss)))
    # One step: Euler's error is of order 2, Heun's of order 3.
    assert 1.7 < np.log2(errors["euler", 0.2] / errors["euler", 0.1]) < 2.3
    assert 2.6 < np.log2(errors["heun", 0.2] / errors["heun", 0.1]) < 3.6


def point_mass_gradients(lag):
    """|gradient| / gap in the middle of ever finer grids; data is a point at 0, theta = 1.5, the teacher lags behind."""
    theta = 1.5

    def function(theta):
        return lambda x, sigma: SIGMA_MIN / sigma[:, None] * x + (1 - SIGMA_MIN / sigma[:, None]) * theta

    results = []
    for intervals in (10, 20, 40, 80, 160, 320, 640, 1280):
        grid = consistency.karras_levels(intervals + 1)
        low, high = grid[intervals // 2][None], grid[intervals // 2 + 1][None]

        def loss(value, low=low, high=high):
            return consistency.consistency_training_loss(
                function(value), jnp.zeros((1, 1)), jnp.ones((1, 1)), low, high,
                teacher_fn=function(theta - lag), distance=robust.mean_squared,
            )[0]  # fmt: skip

        results.append(abs(float(jax.grad(loss)(theta))))
    return np.array(results)


def test_teacher_without_average_converges():
    gradients = point_mass_gradients(lag=0.0)
    # The difference that remains is of order 1e-3 of numbers of order 1, over gaps of 1e-2: float32 keeps 3 digits.
    np.testing.assert_allclose(gradients[:3], [4.1e-4, 6.1e-4, 7.6e-4], rtol=0.02)
    np.testing.assert_allclose(gradients[-1], 9.4e-4, rtol=0.03)
    assert np.all(np.diff(gradients[:6]) > 0)


def test_lagging_teacher_blows_up():
    gradients = point_mass_gradients(lag=0.1)
    np.testing.assert_allclose(gradients[[0, 1, 6, 7]], [0.061, 0.147, 5.6, 11.3], rtol=0.02)
    np.testing.assert_allclose(gradients[4:] / gradients[3:-1], 2.0, rtol=0.06)


def test_robust_loss_is_training_with_cauchy_and_the_early_term():
    data, noise, low, high, level = problem()
    distance = lambda a, b: robust.cauchy(a, b, c=0.02)  # noqa: E731
    plain = consistency.consistency_training_loss(smooth(PARAMS), data, noise, low, high, distance=distance)
    arguments = (smooth(PARAMS), data, noise, low, high, level, 30)
    np.testing.assert_allclose(
        consistency.robust_consistency_loss(*arguments, c=0.02, diffusion_fraction=0.0), plain, rtol=1e-6
    )
    prediction = smooth(PARAMS)(data + high[:, None, None] * noise, high)
    full = consistency.robust_consistency_loss(*arguments, c=0.02, diffusion_fraction=1.0, diffusion_weight=3.0)
    np.testing.assert_allclose(full - plain, 3 * robust.mean_squared(prediction, data), rtol=1e-3, atol=1e-3)
    some = consistency.robust_consistency_loss(*arguments, c=0.02, diffusion_fraction=0.5)
    expected = jnp.where(level < 15, robust.mean_squared(prediction, data), 0)
    np.testing.assert_allclose(some - plain, expected, rtol=1e-3, atol=1e-3)


def test_robust_loss_with_traced_curriculum():
    data, noise, low, high, level = problem()

    def loss(num_levels):
        c = consistency.adaptive_robust_scale(num_levels)
        return consistency.robust_consistency_loss(smooth(PARAMS), data, noise, low, high, level, num_levels, c=c)

    np.testing.assert_allclose(jax.jit(loss)(30), loss(30), rtol=2e-5)


def test_tangent_against_finite_differences():
    data, noise, _, _, _ = problem()
    sigma = jnp.array([0.05, 0.2, 0.5, 1.0, 2.0, 5.0])
    function = smooth(PARAMS)
    at = lambda s: function(data + s[:, None, None] * noise, s)  # noqa: E731
    h = 1e-2 * sigma
    numeric = (at(sigma + h) - at(sigma - h)) / (2 * h[:, None, None])
    tangent = consistency.trajectory_tangent(function, data + sigma[:, None, None] * noise, sigma, noise)
    np.testing.assert_allclose(tangent, numeric, rtol=2e-2, atol=2e-3)


def test_exact_consistency_function_has_no_tangent():
    """Along the exact trajectory of a Gaussian the exact consistency function is constant."""
    spread = 0.5
    function = lambda x, sigma: x * spread / jnp.sqrt(spread**2 + sigma[:, None] ** 2)  # noqa: E731
    sigma = jnp.array([0.01, 0.5, 3.0])
    x = jax.random.normal(jax.random.key(0), (3, 4)) * jnp.sqrt(spread**2 + sigma**2)[:, None]
    slope = x * (sigma / (spread**2 + sigma**2))[:, None]  # (x - D(x)) / sigma
    np.testing.assert_allclose(consistency.trajectory_tangent(function, x, sigma, slope), np.zeros((3, 4)), atol=1e-6)
    loss = consistency.continuous_consistency_loss(function, x, sigma, slope, mode="norm")
    np.testing.assert_allclose(loss, np.zeros(3), atol=1e-6)


def test_stop_gradient_mode_is_the_limit_of_the_squared_loss():
    data, noise, _, _, _ = problem()
    sigma = jnp.array([0.3, 0.5, 0.8, 1.0, 2.0, 3.0])
    gap = 1e-2 * sigma

    def discrete(params):
        loss = consistency.consistency_training_loss(
            smooth(params), data, noise, sigma - gap, sigma, distance=robust.mean_squared
        )
        return jnp.sum(loss) * data[0].size / 2  # sum over elements, without the 2 of the square

    def continuous(params):
        x = data + sigma[:, None, None] * noise
        return jnp.sum(consistency.continuous_consistency_loss(smooth(params), x, sigma, noise))

    limit = jax.grad(continuous)(PARAMS)
    for name, value in jax.grad(discrete)(PARAMS).items():
        np.testing.assert_allclose(value, limit[name], rtol=0.05)


def test_norm_mode_has_finite_gradient_at_zero_tangent():
    gradient = jax.grad(
        lambda a: consistency.continuous_consistency_loss(
            lambda x, sigma: a * x, jnp.ones((2, 3)), jnp.ones(2), jnp.zeros((2, 3)), mode="norm"
        ).sum()
    )(1.0)
    assert np.isfinite(gradient)


@pytest.mark.parametrize("name", ["training", "distillation", "robust", "continuous"])
def test_sharded_equals_one_device(name):
    assert jax.device_count() == 8
    data, noise, low, high, level = problem(batch=16)
    losses = {
        "training": lambda x, z, lo, hi, i: consistency.consistency_training_loss(smooth(PARAMS), x, z, lo, hi),
        "distillation": lambda x, z, lo, hi, i: consistency.consistency_distillation_loss(
            smooth(PARAMS), lambda y, s: jnp.tanh(y), x, z, lo, hi
        ),
        "robust": lambda x, z, lo, hi, i: consistency.robust_consistency_loss(
            smooth(PARAMS), x, z, lo, hi, i, 30, c=0.1
        ),
        "continuous": lambda x, z, lo, hi, i: consistency.continuous_consistency_loss(smooth(PARAMS), x, hi, z),
    }
    mesh = jax.make_mesh((8,), ("data",))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    arguments = (data, noise, low, high, level)
    sharded = jax.jit(losses[name])(*(jax.device_put(a, sharding) for a in arguments))
    np.testing.assert_allclose(sharded, losses[name](*arguments), rtol=1e-4, atol=1e-5)


def loss_call(**changes):
    data, noise, low, high, level = problem()
    given = {"data": data, "noise": noise, "sigma_low": low, "sigma_high": high, **changes}
    options = {
        name: given.pop(name) for name in list(given) if name not in ("data", "noise", "sigma_low", "sigma_high")
    }
    return given, options, level


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"noise": jnp.zeros((6, 3))}, "noise"),
        ({"sigma_low": jnp.zeros(5)}, "sigma_low"),
        ({"sigma_high": 1.0}, "sigma_high"),
        ({"sigma_low": jnp.full(6, 90.0)}, "sigma_low"),
        ({"sigma_low": jnp.full(6, -1.0)}, "sigma_low"),
        ({"weight": jnp.ones(3)}, "weight"),
    ],
)
def test_bad_input_of_every_loss(changes, match):
    given, options, level = loss_call(**changes)
    function = smooth(PARAMS)
    with pytest.raises(ValueError, match=match):
        consistency.consistency_training_loss(function, **given, **options)
    with pytest.raises(ValueError, match=match):
        consistency.consistency_distillation_loss(function, function, **given, **options)
    with pytest.raises(ValueError, match=match):
        consistency.robust_consistency_loss(function, **given, level=level, num_levels=30, c=0.1, **options)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"c": 0.0}, "c must"),
        ({"num_levels": 1}, "num_levels"),
        ({"level": jnp.zeros(3, jnp.int32)}, "level"),
        ({"diffusion_fraction": 1.5}, "diffusion_fraction"),
        ({"diffusion_weight": -1.0}, "diffusion_weight"),
    ],
)
def test_bad_input_of_the_robust_loss(changes, match):
    given, _, level = loss_call()
    with pytest.raises(ValueError, match=match):
        consistency.robust_consistency_loss(
            smooth(PARAMS), **given, **{"level": level, "num_levels": 30, "c": 0.1, **changes}
        )


def test_unknown_method_and_mode():
    given, _, _ = loss_call()
    with pytest.raises(ValueError, match="method"):
        consistency.consistency_distillation_loss(smooth(PARAMS), smooth(PARAMS), **given, method="rk4")
    x = jnp.ones((2, 3))
    with pytest.raises(ValueError, match="mode"):
        consistency.continuous_consistency_loss(smooth(PARAMS), x, jnp.ones(2), x, mode="huber")
    with pytest.raises(ValueError, match="slope"):
        consistency.trajectory_tangent(smooth(PARAMS), x, jnp.ones(2), jnp.ones((2, 4)))
    with pytest.raises(ValueError, match="sigma"):
        consistency.trajectory_tangent(smooth(PARAMS), x, jnp.ones(3), x)


def test_nan_stays_in_its_example():
    data, noise, low, high, _ = problem()
    loss = consistency.consistency_training_loss(smooth(PARAMS), data.at[2].set(jnp.nan), noise, low, high)
    np.testing.assert_array_equal(np.isnan(loss), np.arange(6) == 2)


def test_batch_of_one_flat_data():
    loss = consistency.consistency_training_loss(
        smooth(PARAMS), jnp.ones((1, 4)), jnp.ones((1, 4)), jnp.array([SIGMA_MIN]), jnp.array([0.003])
    )
    assert loss.shape == (1,)
    assert np.isfinite(loss[0])


def test_equal_levels_have_no_loss_under_a_given_weight():
    data, noise, low, _, _ = problem()
    loss = consistency.consistency_training_loss(smooth(PARAMS), data, noise, low, low, weight=1.0)
    np.testing.assert_array_equal(loss, np.zeros(6))
    with pytest.raises(ValueError, match="sigma_low"):
        consistency.consistency_training_loss(smooth(PARAMS), data, noise, low, low)


def test_half_precision_networks_give_losses_in_float32():
    data, noise, _, high, _ = problem()
    half = lambda x, sigma: (x * sigma[:, None, None]).astype(jnp.bfloat16)  # noqa: E731
    for mode in ("norm", "stop_gradient"):
        assert consistency.continuous_consistency_loss(half, data, high, noise, mode=mode).dtype == jnp.float32
