"""The EDM denoiser: coefficients, loss and level distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlfuncs import diffusion

KEY = jax.random.key(1)


def test_coefficients_by_hand():
    c = diffusion.edm_coefficients(jnp.array([0.0, 0.5]), sigma_data=0.5)
    np.testing.assert_allclose(c["skip"], [1.0, 0.5], rtol=1e-6)
    np.testing.assert_allclose(c["out"], [0.0, 0.25 / np.sqrt(0.5)], rtol=1e-6)
    np.testing.assert_allclose(c["in"], [2.0, 1 / np.sqrt(0.5)], rtol=1e-6)
    np.testing.assert_allclose(c["noise"], [np.log(1e-8) / 4, np.log(0.5) / 4], rtol=1e-6)


def test_network_sees_unit_variance_and_is_asked_for_unit_variance():
    # Data of variance sigma_data^2: input c_in x and effective target (x0 - c_skip x) / c_out both have variance 1.
    sigma, num = jnp.logspace(-2, 1.5, 5), 200_000
    data, noise = 0.7 * jax.random.normal(KEY, (num,)), jax.random.normal(jax.random.key(2), (num,))
    c = diffusion.edm_coefficients(sigma, sigma_data=0.7)
    x = data + sigma[:, None] * noise
    error = 5 * np.sqrt(2 / num)  # 5 standard errors of a variance
    np.testing.assert_allclose(jnp.var(c["in"][:, None] * x, axis=1), 1, atol=error)
    target = (data - c["skip"][:, None] * x) / c["out"][:, None]
    np.testing.assert_allclose(jnp.var(target, axis=1), 1, atol=error)


def test_denoiser_at_level_zero_is_the_identity():
    x = jax.random.normal(KEY, (3, 4, 4, 1))
    denoised = diffusion.preconditioned_denoise(lambda x, c_noise: x + 7, x, 0.0)
    np.testing.assert_allclose(denoised, x, rtol=1e-6)


@pytest.mark.parametrize("sigma", [2.0, jnp.full(3, 2.0)])
def test_denoiser_by_hand(sigma):
    seen = {}

    def network(x, c_noise):
        seen.update(x=x, c_noise=c_noise)
        return jnp.ones_like(x)

    x = jax.random.normal(KEY, (3, 2, 5))
    denoised = diffusion.preconditioned_denoise(network, x, sigma, sigma_data=1.0)
    np.testing.assert_allclose(denoised, x / 5 + 2 / np.sqrt(5), rtol=1e-5)
    np.testing.assert_allclose(seen["x"], x / np.sqrt(5), rtol=1e-5)
    np.testing.assert_allclose(seen["c_noise"], np.full(3, np.log(2) / 4), rtol=1e-5)


def test_loss_weights_make_all_levels_equal_for_an_untrained_network():
    # F = 0: the loss is the variance of the effective target, 1 at every level.
    num = 4000
    data, noise = 0.5 * jax.random.normal(KEY, (num, 16)), jax.random.normal(jax.random.key(2), (num, 16))
    for level in (0.01, 0.5, 10.0):
        denoise = lambda x, sigma: diffusion.preconditioned_denoise(lambda x, c: 0 * x, x, sigma)  # noqa: E731
        losses = diffusion.edm_loss(denoise, data, noise, jnp.full(num, level))
        assert losses.shape == (num,)
        np.testing.assert_allclose(jnp.mean(losses), 1, atol=5 * np.sqrt(2 / (16 * num)))


def test_loss_by_hand():
    # Error 3 at each value, sigma = 2, sigma_data = 1: weight 5 / 4.
    data = jnp.zeros((1, 2, 2))
    loss = diffusion.edm_loss(lambda x, s: jnp.full_like(x, 3.0), data, data, jnp.array([2.0]), sigma_data=1.0)
    np.testing.assert_allclose(loss, [9 * 5 / 4], rtol=1e-6)


def test_loss_gradient_is_finite_and_low_precision_is_accumulated_in_float32():
    data = jax.random.normal(KEY, (4, 8)).astype(jnp.bfloat16)
    gradient = jax.grad(
        lambda w: jnp.sum(diffusion.edm_loss(lambda x, s: w * x, data, data, jnp.array([1e-3, 0.1, 1.0, 80.0])))
    )(0.3)
    assert np.isfinite(gradient)
    assert diffusion.edm_loss(lambda x, s: x, data, data, jnp.ones(4)).dtype == jnp.float32


def test_level_distribution():
    num = 100_000
    logs = np.log(diffusion.sample_training_sigmas(KEY, (num,), mean=-0.4, std=0.7))
    assert abs(logs.mean() + 0.4) < 5 * 0.7 / np.sqrt(num)
    assert abs(logs.std() - 0.7) < 5 * 0.7 / np.sqrt(2 * num)
    defaults = np.log(diffusion.sample_training_sigmas(KEY, (num,)))
    assert abs(defaults.mean() + 1.2) < 5 * 1.2 / np.sqrt(num)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: diffusion.edm_coefficients(-1.0), "sigma"),
        (lambda: diffusion.edm_coefficients(1.0, sigma_data=0.0), "sigma_data"),
        (lambda: diffusion.preconditioned_denoise(lambda x, c: x, jnp.zeros((2, 3)), jnp.ones(3)), "sigma"),
        (lambda: diffusion.preconditioned_denoise(lambda x, c: x, jnp.zeros(()), 1.0), "x"),
        (lambda: diffusion.sample_training_sigmas(KEY, (2,), std=0.0), "std"),
        (lambda: diffusion.edm_loss(lambda x, s: x, jnp.zeros((2, 3)), jnp.zeros((2, 4)), jnp.ones(2)), "noise"),
        (lambda: diffusion.edm_loss(lambda x, s: x, jnp.zeros((2, 3)), jnp.zeros((2, 3)), jnp.ones(3)), "sigma"),
        (lambda: diffusion.edm_loss(lambda x, s: x, jnp.zeros((2, 3)), jnp.zeros((2, 3)), jnp.zeros(2)), "sigma"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
