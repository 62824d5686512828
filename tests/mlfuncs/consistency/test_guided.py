"""Several guided steps in one: by hand, on points and Gaussians, and what gets gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mlfuncs import consistency, diffusion

KEY = jax.random.key(6)
VARIANCE = 0.25  # of the data, N(0, VARIANCE)


def column(sigma, x):
    return sigma.reshape(-1, *[1] * (x.ndim - 1))


def point(value):
    return lambda x, sigma: jnp.full_like(x, value)


def denoise(x, sigma):
    return x * VARIANCE / (VARIANCE + column(sigma, x) ** 2)


def levels(num, high=4.0, low=1.0, batch=1):
    return jnp.broadcast_to(jnp.linspace(high, low, num + 1)[:, None], (num + 1, batch))


def test_two_steps_by_hand():
    # D_w = 0 + 2 (1 - 0) = 2: 4 -> 2 + 1/2 * 2 = 3 -> 2 + 1/2 * 1 = 2.5; on by 1/3 of the way: 2.
    given = (point(1.0), point(0.0), jnp.array([[4.0]]), jnp.array([[4.0], [2.0], [1.0]]))
    target = consistency.guided_multistep_target(*given, scale=2.0)
    np.testing.assert_allclose(target["end"], [[2.5]], rtol=1e-6)
    np.testing.assert_allclose(target["denoised"], [[2.0]], rtol=1e-6)
    loss = consistency.multi_step_consistency_loss(lambda x, sigma: x - sigma[:, None] + 0.5, *given, scale=2.0)
    np.testing.assert_allclose(loss, [1.5**2], rtol=1e-5)


@pytest.mark.parametrize("num", [1, 3, 8])
@pytest.mark.parametrize("low", [0.0, 1.5])
def test_points_give_the_guided_point_however_many_steps(num, low):
    x = 5 * jax.random.normal(KEY, (3, 2, 2))
    scale = jnp.array([0.0, 1.0, 7.5])
    target = consistency.guided_multistep_target(point(0.3), point(-0.1), x, levels(num, low=low, batch=3), scale=scale)
    np.testing.assert_allclose(
        target["denoised"], np.broadcast_to(column(-0.1 + 0.4 * scale, x), x.shape), rtol=1e-4, atol=1e-5
    )
    if low == 0:
        np.testing.assert_array_equal(target["denoised"], target["end"])


def test_one_step_with_the_estimate_lands_on_the_end():
    x = 5 * jax.random.normal(KEY, (4, 3))
    grid = jnp.array([[5.0, 4.0, 3.0, 2.0], [3.0, 1.0, 2.9, 1.0], [1.0, 0.5, 0.1, 0.0]])
    shifted = lambda x, sigma: denoise(x, sigma) + 0.1  # noqa: E731
    target = consistency.guided_multistep_target(shifted, denoise, x, grid, scale=7.5)
    landed = diffusion.euler_step(x, target["denoised"], grid[0], grid[-1])
    np.testing.assert_allclose(landed, target["end"], rtol=1e-4, atol=1e-5)


def test_one_level_difference_is_guidance_alone():
    x = 5 * jax.random.normal(KEY, (4, 3))
    shifted = lambda x, sigma: jnp.tanh(x / column(sigma, x))  # noqa: E731
    target = consistency.guided_multistep_target(shifted, denoise, x, levels(1, batch=4), scale=7.5)
    sigma = jnp.full(4, 4.0)
    expected = denoise(x, sigma) + 7.5 * (shifted(x, sigma) - denoise(x, sigma))
    np.testing.assert_allclose(target["denoised"], expected, rtol=1e-4, atol=1e-5)
    for scale, branch in ((0.0, denoise), (1.0, shifted)):
        target = consistency.guided_multistep_target(shifted, denoise, x, levels(1, batch=4), scale=scale)
        np.testing.assert_allclose(target["denoised"], branch(x, sigma), rtol=1e-4, atol=1e-5)


def test_many_steps_tend_to_the_exact_trajectory():
    """First order in the number of steps, for any scale where both branches agree."""

    def error(num):
        with jax.enable_x64(True):
            x = jnp.array([[3.0]], jnp.float64)
            grid = jnp.asarray(np.linspace(4.0, 1.0, num + 1)[:, None])
            end = consistency.guided_multistep_target(denoise, denoise, x, grid, scale=7.5)["end"]
            return abs(float(end[0, 0]) - 3.0 * np.sqrt((VARIANCE + 1) / (VARIANCE + 16)))

    np.testing.assert_allclose(error(64) / error(128), 2.0, rtol=0.05)


def test_loss_is_zero_for_the_target_and_gradient_reaches_the_student_alone():
    x = 5 * jax.random.normal(KEY, (4, 3))
    grid = levels(3, batch=4)
    target = consistency.guided_multistep_target(denoise, point(0.0), x, grid, scale=2.0)["denoised"]

    def loss(student, teacher):
        return jnp.sum(
            consistency.multi_step_consistency_loss(
                lambda x, sigma: student * target,
                lambda x, sigma: teacher * denoise(x, sigma),
                lambda x, sigma: (1 - teacher) * x,
                x,
                grid,
                scale=2.0,
            )
        )

    assert loss(1.0, 1.0) < 1e-10
    student, teacher = jax.grad(loss, argnums=(0, 1))(1.5, 1.0)
    np.testing.assert_allclose(student, 2 * 0.5 * jnp.sum(jnp.mean(target**2, axis=1)), rtol=1e-4)
    assert teacher == 0
    # The target itself passes gradient.
    end = lambda t: jnp.sum(  # noqa: E731
        consistency.guided_multistep_target(point(t), point(0.0), x, grid, scale=2.0)["denoised"]
    )
    np.testing.assert_allclose(jax.grad(end)(0.3), 2.0 * x.size, rtol=1e-4)


def test_nan_precision_and_shards():
    x = jnp.ones((16, 3)).at[2].set(jnp.nan)
    grid = levels(2, low=0.0, batch=16)
    half = lambda x, sigma: (0.3 * x).astype(jnp.bfloat16)  # noqa: E731
    loss = lambda x, grid: consistency.multi_step_consistency_loss(half, half, denoise, x, grid, scale=7.5)  # noqa: E731
    plain = loss(x.astype(jnp.bfloat16), grid)
    assert plain.dtype == jnp.float32
    np.testing.assert_array_equal(np.isnan(plain), np.arange(16) == 2)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.jit(loss)(
        jax.device_put(x, NamedSharding(mesh, PartitionSpec("data"))),
        jax.device_put(grid, NamedSharding(mesh, PartitionSpec(None, "data"))),
    )
    np.testing.assert_allclose(sharded, loss(x, grid), rtol=1e-4)
    mapped = jax.shard_map(
        loss, mesh=mesh, in_specs=(PartitionSpec("data"), PartitionSpec(None, "data")), out_specs=PartitionSpec("data")
    )
    np.testing.assert_allclose(jax.jit(mapped)(x, grid), loss(x, grid), rtol=1e-4)


X = jnp.ones((2, 3))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"levels": jnp.ones((1, 2))}, "levels"),
        ({"levels": jnp.array([2.0, 1.0])}, "levels"),
        ({"levels": levels(2, batch=3)}, "levels"),
        ({"levels": jnp.array([[2.0, 2.0], [1.0, 2.0]])}, "decrease"),
        ({"levels": jnp.array([[2.0, 2.0], [0.0, 1.0], [0.0, 0.5]])}, "decrease"),
        ({"levels": jnp.array([[2.0, 2.0], [1.0, -1.0]])}, "levels"),
        ({"scale": jnp.ones(3)}, "scale"),
        ({"x": jnp.ones(())}, "x"),
        ({"positive_denoise": lambda x, sigma: x[:1]}, "conditional"),
        ({"student": lambda x, sigma: x[:1]}, "student"),
    ],
)
def test_bad_input(changes, match):
    good = {"student": denoise, "positive_denoise": denoise, "negative_denoise": denoise, "x": X}
    good |= {"levels": levels(2, batch=2), "scale": 7.5}
    consistency.multi_step_consistency_loss(**good)
    with pytest.raises(ValueError, match=match):
        consistency.multi_step_consistency_loss(**{**good, **changes})
    if "student" not in changes:
        target = {name: value for name, value in {**good, **changes}.items() if name != "student"}
        with pytest.raises(ValueError, match=match):
            consistency.guided_multistep_target(**target)
