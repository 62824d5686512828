r"""Noise levels and schedules, and the two ways to write one noisy example.

Variance exploding (VE): :math:`x = x_0 + \sigma n`. Variance preserving (VP):
:math:`z = \sqrt{\bar\alpha}\, x_0 + \sqrt{1 - \bar\alpha}\, n`. They are one process:
:math:`\sigma^2 = (1 - \bar\alpha) / \bar\alpha` and :math:`x = z / \sqrt{\bar\alpha}`.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks
from mlfuncs._arrays import as_float, expand_like, safe_sqrt


def karras_sigmas(num_steps: int, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Array:
    r"""Decreasing noise levels of the sampling grid, with a final 0.

    .. math:: \sigma_i = \Big(\sigma_{\max}^{1/\rho} + \tfrac{i}{N-1}
              (\sigma_{\min}^{1/\rho} - \sigma_{\max}^{1/\rho})\Big)^\rho, \; i = 0..N-1, \qquad \sigma_N = 0

    The increasing training grid of consistency models is `consistency.karras_levels`.

    Args:
      num_steps: N >= 1 sampling steps; 1 gives [sigma_max, 0].
      sigma_min: lowest level but 0, > 0, in data units. The paper's default.
      sigma_max: highest level, >= sigma_min. The paper's default.
      rho: > 0; larger values put more levels near sigma_min. The paper's default.

    Returns:
      [N + 1] float32 levels.

    Raises:
      ValueError: an argument is out of range.

    References:
      Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, arXiv:2206.00364.
    """
    _checks.count("num_steps", num_steps)
    _checks.positive("sigma_min", sigma_min)
    _checks.ordered("sigma_min", sigma_min, "sigma_max", sigma_max, strict=False)
    _checks.positive("rho", rho)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    sigmas = (high + np.arange(num_steps) / max(num_steps - 1, 1) * (low - high)) ** rho
    return jnp.asarray(np.append(sigmas, 0.0), jnp.float32)


def _check_betas(num_steps: int, beta_start: float, beta_end: float) -> None:
    _checks.count("num_steps", num_steps)
    _checks.positive("beta_start", beta_start)
    _checks.ordered("beta_start", beta_start, "beta_end", beta_end, strict=False)


def linear_betas(num_steps: int, *, beta_start: float = 1e-4, beta_end: float = 0.02) -> Array:
    r"""Linear variance schedule :math:`\beta_1..\beta_T`, both ends scaled by 1000 / T.

    Args:
      num_steps: T >= 1.
      beta_start: first variance at T = 1000, > 0. The paper's default.
      beta_end: last variance at T = 1000, >= beta_start. The paper's default.

    Returns:
      [T] float32 variances; index 0 adds the least noise. Below T = 20 the rule of the published code leads to values
      above 1, which `alpha_bars` refuses.

    Raises:
      ValueError: an argument is out of range.

    References:
      Ho et al., arXiv:2006.11239; scaling to other T from Dhariwal and Nichol, arXiv:2105.05233.
    """
    _check_betas(num_steps, beta_start, beta_end)
    scale = 1000 / num_steps
    return jnp.asarray(np.linspace(scale * beta_start, scale * beta_end, num_steps), jnp.float32)


def scaled_linear_betas(num_steps: int, *, beta_start: float = 0.00085, beta_end: float = 0.012) -> Array:
    r"""Variance schedule whose square roots are linear, :math:`\sqrt{\beta_t}` from one end to the other.

    Args:
      num_steps: T >= 1.
      beta_start: first variance, > 0. Default of Stable Diffusion.
      beta_end: last variance, in [beta_start, 1). Default of Stable Diffusion.

    Returns:
      [T] float32 variances; index 0 adds the least noise.

    Raises:
      ValueError: an argument is out of range.

    References:
      Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models, arXiv:2112.10752.
    """
    _check_betas(num_steps, beta_start, beta_end)
    _checks.ordered("beta_end", beta_end, "1", 1.0)
    return jnp.asarray(np.linspace(beta_start**0.5, beta_end**0.5, num_steps) ** 2, jnp.float32)


def cosine_betas(num_steps: int, *, offset: float = 0.008, max_beta: float = 0.999) -> Array:
    r"""Cosine schedule, :math:`\beta_i = \min(1 - f(\tfrac{i+1}{T}) / f(\tfrac{i}{T}), \beta_{\max})`.

    .. math:: f(u) = \cos^2\Big(\frac{u + s}{1 + s} \cdot \frac\pi2\Big)

    Args:
      num_steps: T >= 1.
      offset: s >= 0, keeps the first variances from vanishing. The paper's default.
      max_beta: largest variance, in (0, 1]. The paper's default.

    Returns:
      [T] float32 variances; index 0 adds the least noise.

    Raises:
      ValueError: an argument is out of range.

    References:
      Nichol and Dhariwal, Improved Denoising Diffusion Probabilistic Models, arXiv:2102.09672.
    """
    _checks.count("num_steps", num_steps)
    _checks.non_negative("offset", offset)
    _checks.within_half_open("max_beta", max_beta, 0, 1)
    u = np.arange(num_steps + 1) / num_steps
    f = np.cos((u + offset) / (1 + offset) * np.pi / 2) ** 2
    return jnp.asarray(np.minimum(1 - f[1:] / f[:-1], max_beta), jnp.float32)


def alpha_bars(betas: ArrayLike) -> Array:
    r"""Cumulative signal fractions :math:`\bar\alpha_t = \prod_{s \le t} (1 - \beta_s)`.

    Args:
      betas: [T] variances in [0, 1].

    Returns:
      [T] signal fractions, decreasing.

    Raises:
      ValueError: not one axis, empty, or concrete values outside [0, 1].

    References:
      Ho et al., Denoising Diffusion Probabilistic Models, arXiv:2006.11239.
    """
    _checks.rank("betas", betas, 1)
    if np.shape(betas)[0] == 0:
        raise ValueError("betas must hold at least one variance, got none")
    _checks.within("betas", betas, 0, 1)
    return jnp.cumprod(1 - as_float(betas))


def sigma_from_alpha_bar(alpha_bar: ArrayLike) -> Array:
    r"""VE noise level of a VP signal fraction, :math:`\sigma = \sqrt{(1 - \bar\alpha) / \bar\alpha}`.

    Args:
      alpha_bar: scalar or array of any shape, in (0, 1].

    Returns:
      Levels, like `alpha_bar`. At 1 the level is 0 and its gradient, infinite in truth, is given as 0.

    Raises:
      ValueError: a concrete value is outside (0, 1].

    References:
      Karras et al., arXiv:2206.00364; Song et al., arXiv:2010.02502.
    """
    _checks.within_half_open("alpha_bar", alpha_bar, 0, 1)
    if not isinstance(alpha_bar, Array):  # numbers of the host near 1 keep their digits only in float64
        exact = np.asarray(alpha_bar, np.float64)
        return safe_sqrt(jnp.asarray((1 - exact) / exact, jnp.float32))
    alpha_bar = as_float(alpha_bar)
    return safe_sqrt((1 - alpha_bar) / alpha_bar)


def alpha_bar_from_sigma(sigma: ArrayLike) -> Array:
    r"""VP signal fraction of a VE noise level, :math:`\bar\alpha = 1 / (1 + \sigma^2)`.

    Args:
      sigma: scalar or array of any shape, >= 0.

    Returns:
      Fractions in (0, 1], like `sigma`.

    Raises:
      ValueError: a concrete value is negative.

    References:
      Karras et al., arXiv:2206.00364; Song et al., arXiv:2010.02502.
    """
    _checks.non_negative("sigma", sigma)
    return 1 / (1 + as_float(sigma) ** 2)


def variance_exploding_from_preserving(z: ArrayLike, alpha_bar: ArrayLike) -> Array:
    r"""The VE form of a VP example, :math:`x = z / \sqrt{\bar\alpha}`.

    Args:
      z: [B, ...] noisy examples in VP form.
      alpha_bar: scalar or [B], in (0, 1].

    Returns:
      Like `z`, at level `sigma_from_alpha_bar(alpha_bar)`.

    Raises:
      ValueError: shapes do not fit, or a concrete value is outside (0, 1].

    References:
      Karras et al., arXiv:2206.00364.
    """
    z, alpha_bar = as_float(z), _batch_scalar("alpha_bar", alpha_bar, z)
    _checks.within_half_open("alpha_bar", alpha_bar, 0, 1)
    return z / jnp.sqrt(expand_like(alpha_bar, z))


def variance_preserving_from_exploding(x: ArrayLike, sigma: ArrayLike) -> Array:
    r"""The VP form of a VE example, :math:`z = x / \sqrt{1 + \sigma^2}`.

    Args:
      x: [B, ...] noisy examples in VE form.
      sigma: scalar or [B], >= 0.

    Returns:
      Like `x`, at signal fraction `alpha_bar_from_sigma(sigma)`.

    Raises:
      ValueError: shapes do not fit, or a concrete level is negative.

    References:
      Karras et al., arXiv:2206.00364.
    """
    x, sigma = as_float(x), _batch_scalar("sigma", sigma, x)
    _checks.non_negative("sigma", sigma)
    return x / jnp.sqrt(1 + expand_like(sigma, x) ** 2)


def _batch_scalar(name: str, value: ArrayLike, x: ArrayLike) -> Array:
    _checks.batched("x", x)
    _checks.scalar_or_per_example(name, value, np.shape(x)[0])
    return as_float(value)


def noise_from_denoised(x: ArrayLike, denoised: ArrayLike, sigma: ArrayLike) -> Array:
    r"""Predicted unit noise of a VE example, :math:`\epsilon = (x - D) / \sigma`.

    Args:
      x: [B, ...] noisy examples in VE form.
      denoised: D, like `x`.
      sigma: scalar or [B], > 0.

    Returns:
      Like `x`.

    Raises:
      ValueError: shapes do not fit, or a concrete level is not positive.

    References:
      Karras et al., arXiv:2206.00364.
    """
    _checks.same_shape("x", x, "denoised", denoised)
    x, sigma = as_float(x), _batch_scalar("sigma", sigma, x)
    _checks.positive("sigma", sigma)
    return (x - as_float(denoised)) / expand_like(sigma, x)


def denoised_from_noise(x: ArrayLike, noise: ArrayLike, sigma: ArrayLike) -> Array:
    r"""Clean estimate of a VE example from its predicted unit noise, :math:`D = x - \sigma \epsilon`.

    Args:
      x: [B, ...] noisy examples in VE form.
      noise: epsilon, like `x`.
      sigma: scalar or [B], >= 0.

    Returns:
      Like `x`.

    Raises:
      ValueError: shapes do not fit, or a concrete level is negative.

    References:
      Karras et al., arXiv:2206.00364.
    """
    _checks.same_shape("x", x, "noise", noise)
    x, sigma = as_float(x), _batch_scalar("sigma", sigma, x)
    _checks.non_negative("sigma", sigma)
    return x - expand_like(sigma, x) * as_float(noise)


def _check_vp(beta_d: float, beta_min: float) -> None:
    _checks.positive("beta_d", beta_d)
    _checks.positive("beta_min", beta_min)


def vp_sigma(t: ArrayLike, *, beta_d: float = 19.9, beta_min: float = 0.1) -> Array:
    r"""VE level of the continuous VP process, :math:`\sigma(t) = \sqrt{e^{\beta_d t^2 / 2 + \beta_{\min} t} - 1}`.

    Args:
      t: time, scalar or array of any shape, >= 0; the process runs from 0 to 1.
      beta_d: growth of the rate, > 0. The papers' default.
      beta_min: rate at 0, > 0. The papers' default.

    Returns:
      Levels, like `t`, accurate for small t. At 0 the gradient, infinite in truth, is given as 0.

    Raises:
      ValueError: an argument is out of range.

    References:
      Song et al., arXiv:2011.13456; in this form Karras et al., arXiv:2206.00364.
    """
    _check_vp(beta_d, beta_min)
    _checks.non_negative("t", t)
    t = as_float(t)
    return safe_sqrt(jnp.expm1(beta_d * t**2 / 2 + beta_min * t))


def vp_time(sigma: ArrayLike, *, beta_d: float = 19.9, beta_min: float = 0.1) -> Array:
    r"""Time of a level in the continuous VP process, the inverse of `vp_sigma`.

    .. math:: t = \big(\sqrt{\beta_{\min}^2 + 2\beta_d \log(1 + \sigma^2)} - \beta_{\min}\big) / \beta_d

    Args:
      sigma: levels, scalar or array of any shape, >= 0.
      beta_d: growth of the rate, > 0.
      beta_min: rate at 0, > 0.

    Returns:
      Times, like `sigma`, accurate for small sigma.

    Raises:
      ValueError: an argument is out of range.

    References:
      Karras et al., arXiv:2206.00364.
    """
    _check_vp(beta_d, beta_min)
    _checks.non_negative("sigma", sigma)
    exponent = jnp.log1p(as_float(sigma) ** 2)
    # The conjugate form: the difference of the root and beta_min cancels for small sigma.
    return 2 * exponent / (jnp.sqrt(beta_min**2 + 2 * beta_d * exponent) + beta_min)
