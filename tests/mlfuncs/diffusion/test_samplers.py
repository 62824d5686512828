"""Samplers on Gaussian data, whose denoiser and flow are known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mlfuncs import diffusion

KEY = jax.random.key(3)
MEAN, SPREAD = 0.3, 0.5


def denoise(x, sigma):
    """E[x0 | x] for x0 ~ N(MEAN, SPREAD^2)."""
    sigma = sigma.reshape(-1, *[1] * (x.ndim - 1))
    return MEAN + SPREAD**2 / (SPREAD**2 + sigma**2) * (x - MEAN)


def flow(x, sigma, sigma_next):
    """Where the probability-flow equation takes x."""
    return MEAN + np.sqrt((SPREAD**2 + sigma_next**2) / (SPREAD**2 + sigma**2)) * (x - MEAN)


def counted(function):
    calls = []

    def wrapped(x, sigma):
        jax.debug.callback(lambda: calls.append(1))
        return function(x, sigma)

    return wrapped, calls


def error(sampler, num_steps):
    # A smooth grid that stays away from 0, where the order shows.
    with jax.enable_x64(True):
        sigmas = jnp.asarray(np.linspace(5.0, 0.5, num_steps + 1))
        x = jnp.asarray([[4.0]], jnp.float64)
        return abs(float(sampler(denoise, x, sigmas)[0, 0]) - flow(4.0, 5.0, 0.5))


@pytest.mark.parametrize(
    ("sampler", "order"),
    [
        (diffusion.sample_euler, 1),
        (diffusion.sample_heun, 2),
        (lambda d, x, s: diffusion.sample_heun_stochastic(KEY, d, x, s), 2),
    ],
    ids=["euler", "heun", "stochastic"],
)
def test_order_of_accuracy(sampler, order):
    ratio = error(sampler, 50) / error(sampler, 100)
    np.testing.assert_allclose(np.log2(ratio), order, atol=0.1)


@pytest.mark.parametrize("method", ["euler", "heun"])
def test_step_order_of_accuracy(method):
    def local_error(h):
        with jax.enable_x64(True):
            x = jnp.asarray([[2.0]], jnp.float64)
            return abs(float(diffusion.ode_step(denoise, x, 1.0, 1.0 - h, method=method)[0, 0]) - flow(2.0, 1.0, 1 - h))

    expected = {"euler": 2, "heun": 3}[method]  # of one step; one less over a whole path
    np.testing.assert_allclose(np.log2(local_error(0.04) / local_error(0.02)), expected, atol=0.1)


def test_samples_follow_the_data():
    num = 20_000
    sigmas = diffusion.karras_sigmas(40)
    x = diffusion.sample_heun(denoise, 80 * jax.random.normal(KEY, (num, 1)), sigmas)
    assert abs(float(x.mean()) - MEAN) < 5 * SPREAD / np.sqrt(num) + 0.005
    assert abs(float(x.std()) - SPREAD) < 5 * SPREAD / np.sqrt(2 * num) + 0.005


def test_stochastic_samples_follow_the_data():
    num = 20_000
    start = 80 * jax.random.normal(KEY, (num, 1))
    x = diffusion.sample_heun_stochastic(
        jax.random.key(9), denoise, start, diffusion.karras_sigmas(60), churn=20.0, churn_min=0.05, churn_max=50.0
    )
    assert abs(float(x.mean()) - MEAN) < 5 * SPREAD / np.sqrt(num) + 0.005
    assert abs(float(x.std()) - SPREAD) < 5 * SPREAD / np.sqrt(2 * num) + 0.01
    # The noise is fresh: samples forget where they began.
    assert np.corrcoef(start[:, 0], x[:, 0])[0, 1] < 0.999


def test_no_churn_is_heun_exactly():
    x, sigmas = 80 * jax.random.normal(KEY, (5, 2, 3)), diffusion.karras_sigmas(7)
    expected = diffusion.sample_heun(denoise, x, sigmas)
    np.testing.assert_array_equal(diffusion.sample_heun_stochastic(KEY, denoise, x, sigmas), expected)
    outside = diffusion.sample_heun_stochastic(KEY, denoise, x, sigmas, churn=10.0, churn_min=100.0)
    np.testing.assert_array_equal(outside, expected)


def test_lifted_level_by_hand():
    # One step with D = 0: x / sigma_hat * sigma_next after adding noise; variance 1 + (sigma_hat^2 - sigma^2) S^2.
    num, seen = 100_000, {}

    def zero(x, sigma):
        seen["sigma"] = sigma
        return jnp.zeros_like(x)

    out = diffusion.sample_heun_stochastic(
        KEY, zero, jnp.zeros((num, 1)), jnp.array([2.0, 1.0]), churn=0.25, noise_scale=1.5
    )
    sigma_hat = 2.5
    spread = np.sqrt(sigma_hat**2 - 4) * 1.5
    np.testing.assert_allclose(jnp.std(out), spread / sigma_hat, rtol=5 / np.sqrt(2 * num))


def test_stochastic_noise_depends_on_the_index_alone():
    x = 80 * jax.random.normal(KEY, (6, 4))
    sigmas = diffusion.karras_sigmas(5)
    many = diffusion.sample_heun_stochastic(KEY, denoise, x, sigmas, churn=2.0)
    few = diffusion.sample_heun_stochastic(KEY, denoise, x[:2], sigmas, churn=2.0)
    np.testing.assert_allclose(few, many[:2], rtol=1e-5)


@pytest.mark.parametrize(
    ("sampler", "evaluations"), [(diffusion.sample_euler, 6), (diffusion.sample_heun, 11)], ids=["euler", "heun"]
)
def test_number_of_evaluations(sampler, evaluations):
    function, calls = counted(denoise)
    sampler(function, jnp.ones((2, 2)), diffusion.karras_sigmas(6)).block_until_ready()
    jax.effects_barrier()
    assert len(calls) == evaluations


def test_grids_that_end_above_zero_and_traced_grids():
    x = 80 * jax.random.normal(KEY, (3, 2))
    sigmas = diffusion.karras_sigmas(8)
    for sampler in (diffusion.sample_euler, diffusion.sample_heun):
        # Two halves are the whole.
        half = sampler(denoise, x, sigmas[:5])
        np.testing.assert_allclose(sampler(denoise, half, sigmas[4:]), sampler(denoise, x, sigmas), rtol=1e-5)
        traced = jax.jit(lambda s, sampler=sampler: sampler(denoise, x, s))(sigmas)
        np.testing.assert_allclose(traced, sampler(denoise, x, sigmas), rtol=1e-5)


def test_gradients_through_a_sampler_are_finite():
    def end(scale):
        x = diffusion.sample_heun_stochastic(KEY, denoise, scale * jnp.ones((2, 2)), diffusion.karras_sigmas(4))
        return jnp.sum(x)

    assert np.isfinite(jax.grad(end)(80.0))
    through_levels = jax.grad(
        lambda s: jnp.sum(diffusion.sample_heun(denoise, jnp.ones((1, 1)), jnp.array([2.0, 1.0, 0.0]) * s))
    )
    assert np.isfinite(through_levels(1.0))


def test_sharded_equals_one_device():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    x, sigmas = 80 * jax.random.normal(KEY, (16, 3)), diffusion.karras_sigmas(5)
    sample = jax.jit(lambda x: diffusion.sample_heun_stochastic(KEY, denoise, x, sigmas, churn=3.0))
    sharded = sample(jax.device_put(x, NamedSharding(mesh, PartitionSpec("data"))))
    assert len(sharded.sharding.device_set) == 8
    np.testing.assert_allclose(sharded, sample(x), rtol=1e-5)


def test_euler_step_by_hand():
    x, denoised = jnp.array([[3.0, 5.0]]), jnp.array([[1.0, 1.0]])
    np.testing.assert_allclose(diffusion.euler_step(x, denoised, 2.0, 1.0), [[2.0, 3.0]])
    np.testing.assert_allclose(diffusion.euler_step(x, denoised, jnp.array([2.0]), 0.0), denoised)


def test_heun_step_to_zero_is_euler_and_asks_nothing_at_zero():
    asked = []

    def watched(x, sigma):
        jax.debug.callback(lambda s: asked.append(np.asarray(s)), sigma)
        return denoise(x, sigma)

    x = jnp.ones((2, 3))
    stepped = diffusion.ode_step(watched, x, jnp.array([2.0, 2.0]), jnp.array([0.0, 1.0]))
    jax.effects_barrier()
    assert min(s.min() for s in asked) > 0
    np.testing.assert_allclose(stepped[0], denoise(x, jnp.full(2, 2.0))[0], rtol=1e-6)


def test_ddim_round_trip_and_agreement_with_euler():
    z, noise = jax.random.normal(KEY, (2, 3, 4))
    forward = diffusion.ddim_step(z, noise, jnp.array([0.9, 0.5, 0.99]), 0.2)
    np.testing.assert_allclose(
        diffusion.ddim_step(forward, noise, 0.2, jnp.array([0.9, 0.5, 0.99])), z, rtol=1e-4, atol=1e-5
    )
    # In VE form it is the Euler step.
    here, there = 0.3, 0.7
    sigma, sigma_next = (float(diffusion.sigma_from_alpha_bar(a)) for a in (here, there))
    x = diffusion.variance_exploding_from_preserving(z, here)
    stepped = diffusion.euler_step(x, diffusion.denoised_from_noise(x, noise, sigma), sigma, sigma_next)
    np.testing.assert_allclose(
        diffusion.variance_preserving_from_exploding(stepped, sigma_next),
        diffusion.ddim_step(z, noise, here, there),
        rtol=1e-4,
        atol=1e-5,
    )


def test_ddim_by_hand():
    # alpha_bar 0.36 -> 0.64: clean = (1 - 0.8 * 0.5) / 0.6 = 1, then 0.8 * 1 + 0.6 * 0.5.
    np.testing.assert_allclose(
        diffusion.ddim_step(jnp.array([[1.0]]), jnp.array([[0.5]]), 0.36, 0.64), [[1.1]], rtol=1e-6
    )


X = jnp.zeros((2, 3))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: diffusion.euler_step(X, jnp.zeros((2, 2)), 1.0, 0.5), "denoised"),
        (lambda: diffusion.euler_step(X, X, 0.0, 0.5), "sigma"),
        (lambda: diffusion.euler_step(X, X, 1.0, -0.5), "sigma_next"),
        (lambda: diffusion.euler_step(X, X, jnp.ones(3), 0.5), "sigma"),
        (lambda: diffusion.ode_step(denoise, X, 1.0, 0.5, method="rk4"), "euler, heun"),
        (lambda: diffusion.ode_step(denoise, X, 0.0, 0.5), "sigma"),
        (lambda: diffusion.ode_step(denoise, X, 1.0, jnp.ones((2, 1))), "sigma_next"),
        (lambda: diffusion.sample_euler(denoise, X, jnp.array([1.0])), "at least 2"),
        (lambda: diffusion.sample_euler(denoise, X, jnp.array([1.0, 2.0])), "decreasing"),
        (lambda: diffusion.sample_heun(denoise, X, jnp.array([1.0, -2.0])), "sigmas"),
        (lambda: diffusion.sample_heun(denoise, X, jnp.ones((2, 2))), "sigmas"),
        (lambda: diffusion.sample_heun(denoise, jnp.zeros(()), jnp.array([1.0, 0.0])), "x"),
        (lambda: diffusion.sample_heun_stochastic(KEY, denoise, X, jnp.array([1.0, 0.0]), churn=-1.0), "churn"),
        (
            lambda: diffusion.sample_heun_stochastic(KEY, denoise, X, jnp.array([1.0, 0.0]), noise_scale=-1.0),
            "noise_scale",
        ),
        (lambda: diffusion.ddim_step(X, jnp.zeros(3), 0.5, 0.6), "noise"),
        (lambda: diffusion.ddim_step(X, X, 0.0, 0.6), "alpha_bar"),
        (lambda: diffusion.ddim_step(X, X, 0.5, 1.6), "alpha_bar_next"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_ddim_gradients_are_finite_at_no_noise():
    x, noise = jnp.ones((2, 3)), jnp.arange(6.0).reshape(2, 3)
    for slot in (0, 1):
        fractions = [0.5, 0.5]

        def total(fraction, slot=slot, fractions=fractions):
            given = [*fractions]
            given[slot] = fraction
            return jnp.sum(diffusion.ddim_step(x, noise, *given))

        assert np.isfinite(jax.grad(total)(1.0))
        np.testing.assert_allclose(jax.grad(total)(0.5), (total(0.501) - total(0.499)) / 0.002, rtol=1e-2)
