"""Noise levels and schedules: hand-worked values, round trips, edges, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlfuncs import diffusion

KEY = jax.random.key(0)


def test_karras_sigmas_by_hand():
    # rho = 1 is a straight line.
    np.testing.assert_allclose(
        diffusion.karras_sigmas(3, sigma_min=1.0, sigma_max=5.0, rho=1.0), [5.0, 3.0, 1.0, 0.0], rtol=1e-6
    )
    # (i-th root) rho = 2: roots 3, 2, 1 squared.
    np.testing.assert_allclose(
        diffusion.karras_sigmas(3, sigma_min=1.0, sigma_max=9.0, rho=2.0), [9.0, 4.0, 1.0, 0.0], rtol=1e-6
    )
    np.testing.assert_allclose(diffusion.karras_sigmas(1), [80.0, 0.0], rtol=1e-6)
    assert np.all(np.diff(diffusion.karras_sigmas(500)) < 0)


def test_betas_by_hand():
    np.testing.assert_allclose(diffusion.linear_betas(1000)[jnp.array([0, -1])], [1e-4, 0.02], rtol=1e-6)
    # A tenth of the steps, each ten times as strong: the same amount of noise in the end, to first order.
    np.testing.assert_allclose(diffusion.linear_betas(100)[jnp.array([0, -1])], [1e-3, 0.2], rtol=1e-6)
    middle = ((0.00085**0.5 + 0.012**0.5) / 2) ** 2
    np.testing.assert_allclose(diffusion.scaled_linear_betas(3), [0.00085, middle, 0.012], rtol=1e-6)
    half = np.cos(0.508 / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(diffusion.cosine_betas(2), [1 - half, 0.999], rtol=1e-5)


def test_the_linear_rule_of_very_few_steps_leads_beyond_variances():
    betas = diffusion.linear_betas(10)
    np.testing.assert_allclose(betas, np.linspace(0.01, 2.0, 10), rtol=1e-6)
    with pytest.raises(ValueError, match="betas"):
        diffusion.alpha_bars(betas)


@pytest.mark.parametrize("betas", [diffusion.linear_betas, diffusion.scaled_linear_betas, diffusion.cosine_betas])
@pytest.mark.parametrize("num_steps", [1, 25, 1000])
def test_betas_are_variances(betas, num_steps):
    values = np.asarray(betas(num_steps))
    assert values.shape == (num_steps,)
    assert np.all((values > 0) & (values < 1))
    signal = np.asarray(diffusion.alpha_bars(values))
    assert np.all(np.diff(signal) < 0)
    np.testing.assert_allclose(signal, np.cumprod(1 - values.astype(np.float64)), rtol=1e-4)


def test_signal_fraction_and_level_are_inverse():
    sigma = jnp.logspace(-3, 2, 30)
    np.testing.assert_allclose(
        diffusion.sigma_from_alpha_bar(diffusion.alpha_bar_from_sigma(sigma)), sigma, rtol=0.06
    )  # 1 - alpha_bar holds few digits in float32 at sigma = 1e-3
    large = sigma[sigma > 0.05]
    np.testing.assert_allclose(diffusion.sigma_from_alpha_bar(diffusion.alpha_bar_from_sigma(large)), large, rtol=1e-4)
    np.testing.assert_allclose(diffusion.sigma_from_alpha_bar(jnp.array([1.0, 0.5, 0.2])), [0.0, 1.0, 2.0], rtol=1e-6)
    np.testing.assert_allclose(diffusion.alpha_bar_from_sigma(jnp.array([0.0, 1.0, 2.0])), [1.0, 0.5, 0.2], rtol=1e-6)


@pytest.mark.parametrize("level", [0.4, jnp.array([0.1, 0.9, 1.0])])
def test_two_forms_of_one_example(level):
    data, noise = jax.random.normal(KEY, (2, 3, 4, 2))
    alpha_bar = jnp.broadcast_to(jnp.asarray(level), 3).reshape(3, 1, 1)
    z = jnp.sqrt(alpha_bar) * data + jnp.sqrt(1 - alpha_bar) * noise
    x = diffusion.variance_exploding_from_preserving(z, level)
    sigma = diffusion.sigma_from_alpha_bar(level)
    np.testing.assert_allclose(x, data + jnp.reshape(sigma, (-1, 1, 1)) * noise, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(diffusion.variance_preserving_from_exploding(x, sigma), z, rtol=1e-5, atol=1e-6)


def test_noise_and_denoised_are_inverse():
    x, noise = jax.random.normal(KEY, (2, 3, 5))
    sigma = jnp.array([0.1, 1.0, 40.0])
    denoised = diffusion.denoised_from_noise(x, noise, sigma)
    np.testing.assert_allclose(denoised[1], x[1] - noise[1], rtol=1e-6)
    np.testing.assert_allclose(diffusion.noise_from_denoised(x, denoised, sigma), noise, rtol=1e-4, atol=1e-5)


def test_vp_time_and_level_are_inverse():
    t = jnp.concatenate([jnp.zeros(1), jnp.logspace(-6, 0, 40)])
    np.testing.assert_allclose(diffusion.vp_time(diffusion.vp_sigma(t)), t, rtol=1e-5)
    np.testing.assert_allclose(diffusion.vp_sigma(1.0), np.sqrt(np.expm1(19.9 / 2 + 0.1)), rtol=1e-5)
    np.testing.assert_allclose(diffusion.vp_sigma(1e-8), np.sqrt(1e-9), rtol=1e-4)  # not lost to exp(x) - 1


def test_vp_level_is_the_integral_of_the_rate():
    # log(1 + sigma^2) = integral of beta(s) = beta_min + beta_d s.
    steps = np.linspace(0, 0.7, 20001)
    integral = np.trapezoid(0.1 + 19.9 * steps, steps)
    np.testing.assert_allclose(np.log1p(diffusion.vp_sigma(0.7) ** 2), integral, rtol=1e-5)


@pytest.mark.parametrize(
    ("function", "edge"),
    [
        (diffusion.sigma_from_alpha_bar, 1.0),
        (diffusion.alpha_bar_from_sigma, 0.0),
        (diffusion.vp_sigma, 0.0),
        (diffusion.vp_time, 0.0),
    ],
)
def test_gradients_are_finite_at_the_edge(function, edge):
    assert np.isfinite(jax.grad(function)(edge))
    assert np.isnan(function(jnp.nan))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: diffusion.karras_sigmas(0), "num_steps"),
        (lambda: diffusion.karras_sigmas(2.5), "num_steps"),
        (lambda: diffusion.karras_sigmas(3, sigma_min=0.0), "sigma_min"),
        (lambda: diffusion.karras_sigmas(3, sigma_min=2.0, sigma_max=1.0), "sigma_max"),
        (lambda: diffusion.karras_sigmas(3, rho=0.0), "rho"),
        (lambda: diffusion.linear_betas(0), "num_steps"),
        (lambda: diffusion.linear_betas(10, beta_start=0.0), "beta_start"),
        (lambda: diffusion.scaled_linear_betas(10, beta_end=1.5), "beta_end"),
        (lambda: diffusion.scaled_linear_betas(10, beta_start=0.1, beta_end=0.01), "beta_end"),
        (lambda: diffusion.cosine_betas(10, offset=-1.0), "offset"),
        (lambda: diffusion.cosine_betas(10, max_beta=0.0), "max_beta"),
        (lambda: diffusion.alpha_bars(jnp.zeros((2, 2))), "betas"),
        (lambda: diffusion.alpha_bars(jnp.zeros(0)), "betas"),
        (lambda: diffusion.alpha_bars(jnp.array([0.1, 1.1])), "betas"),
        (lambda: diffusion.sigma_from_alpha_bar(0.0), "alpha_bar"),
        (lambda: diffusion.sigma_from_alpha_bar(1.1), "alpha_bar"),
        (lambda: diffusion.alpha_bar_from_sigma(-1.0), "sigma"),
        (lambda: diffusion.variance_exploding_from_preserving(jnp.zeros((2, 3)), jnp.zeros(2)), "alpha_bar"),
        (lambda: diffusion.variance_exploding_from_preserving(jnp.zeros((2, 3)), jnp.ones(3)), "alpha_bar"),
        (lambda: diffusion.variance_preserving_from_exploding(jnp.zeros((2, 3)), -1.0), "sigma"),
        (lambda: diffusion.variance_preserving_from_exploding(jnp.zeros(()), 1.0), "x"),
        (lambda: diffusion.noise_from_denoised(jnp.zeros((2, 3)), jnp.zeros((2, 3)), 0.0), "sigma"),
        (lambda: diffusion.noise_from_denoised(jnp.zeros((2, 3)), jnp.zeros((3, 2)), 1.0), "denoised"),
        (lambda: diffusion.denoised_from_noise(jnp.zeros((2, 3)), jnp.zeros(2), 1.0), "noise"),
        (lambda: diffusion.denoised_from_noise(jnp.zeros((2, 3)), jnp.zeros((2, 3)), -1.0), "sigma"),
        (lambda: diffusion.vp_sigma(-0.1), "t"),
        (lambda: diffusion.vp_sigma(0.1, beta_d=0.0), "beta_d"),
        (lambda: diffusion.vp_time(0.1, beta_min=0.0), "beta_min"),
        (lambda: diffusion.vp_time(-0.1), "sigma"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()


@pytest.mark.parametrize("alpha_bar", [0.5, 0.9999, 0.99999, 0.9999999])
def test_level_of_a_fraction_near_one(alpha_bar):
    np.testing.assert_allclose(
        diffusion.sigma_from_alpha_bar(alpha_bar), np.sqrt((1 - alpha_bar) / alpha_bar), rtol=1e-6
    )
