"""Normal distributions in closed form: ancestral transitions, their densities, scores of noised Gaussians."""

import math

import jax.numpy as jnp
import jax.scipy.linalg
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks
from mlfuncs._arrays import as_float, expand_like, per_example_axes, safe_sqrt
from mlfuncs.diffusion.samplers import euler_step


def ancestral_transition(
    x: ArrayLike, denoised: ArrayLike, sigma: ArrayLike, sigma_next: ArrayLike
) -> dict[str, Array]:
    r"""Normal distribution of the next state in Euler-ancestral sampling.

    .. math:: \mu = D + \frac{\sigma_{\downarrow}}{\sigma}(x - D), \quad \sigma_{\downarrow} = \frac{\sigma'^2}{\sigma},
              \qquad \mathrm{std} = \sqrt{\frac{\sigma'^2 (\sigma^2 - \sigma'^2)}{\sigma^2}}

    The two parts of the noise make the next level, :math:`\sigma_{\downarrow}^2 + \mathrm{std}^2 = \sigma'^2`. Models
    that add all noise anew have another transition, mean D and std sigma'.

    Args:
      x: [B, ...] noisy examples in VE form.
      denoised: D(x, sigma), like `x`.
      sigma: current level, scalar or [B], > 0.
      sigma_next: next level, scalar or [B], in [0, sigma]; 0 gives mean D and std 0.

    Returns:
      {"mean": like `x`, "std": [B]}, in at least float32. std is 0, and its gradient taken as 0, also where the levels
      are equal.

    Raises:
      ValueError: shapes do not fit, or concrete levels are out of range or not in order.

    References:
      Ho et al., arXiv:2006.11239; in this form k-diffusion's Euler ancestral sampler, whose transitions Miao et al., Tuning
      Timestep-Distilled Diffusion Models Using Pairwise Sample Optimization, arXiv:2410.03190, train on.
    """
    _checks.same_shape("x", x, "denoised", denoised)
    _checks.batched("x", x)
    x, sigma, sigma_next = as_float(x), as_float(sigma), as_float(sigma_next)
    for name, value in (("sigma", sigma), ("sigma_next", sigma_next)):
        _checks.scalar_or_per_example(name, value, x.shape[0])
    _checks.positive("sigma", sigma)
    _checks.non_negative("sigma_next", sigma_next)
    _checks.ordered("sigma_next", sigma_next, "sigma", sigma, strict=False)
    ratio = sigma_next / sigma
    std = sigma_next * safe_sqrt((1 - ratio) * (1 + ratio))
    return {
        "mean": euler_step(x, denoised, sigma, sigma_next * ratio),
        "std": jnp.broadcast_to(std, x.shape[:1]),
    }


def gaussian_log_prob(sample: ArrayLike, mean: ArrayLike, std: ArrayLike) -> Array:
    r"""Log density of an isotropic normal distribution, averaged over the values of an example.

    .. math:: \overline{-\frac{(z - \mu)^2}{2 s^2}} - \log s - \tfrac12 \log 2\pi

    The mean, not the sum: ratios of such densities stay near 1 however large an example is, which the clipping and the
    temperature of pairwise sample optimisation count on. Times the number of values, it is the true log density.

    Args:
      sample: z, [B, ...].
      mean: mu, like `sample`.
      std: s, [B], > 0. A deterministic transition (std 0) has no density: leave it out, or mask its result where std is
        traced.

    Returns:
      [B] mean log densities, in at least float32.

    Raises:
      ValueError: shapes do not fit, or a concrete std is not positive.

    References:
      Miao et al., arXiv:2410.03190; Black et al., Training Diffusion Models with Reinforcement Learning, arXiv:2305.13301.
    """
    _checks.same_shape("sample", sample, "mean", mean)
    _checks.batched("sample", sample)
    _checks.per_example("std", std, np.shape(sample)[0])
    _checks.positive("std", std)
    sample, mean, std = as_float(sample), as_float(mean), as_float(std)
    scaled = (sample - mean) / expand_like(std, sample)
    return -jnp.mean(scaled**2, axis=per_example_axes(sample)) / 2 - jnp.log(std) - math.log(2 * math.pi) / 2


def _check_regular(factor: ArrayLike, alpha: ArrayLike, sigma: ArrayLike) -> None:
    """Where there is no noise the data's own covariance must be regular."""
    if not all(_checks.is_concrete(value) for value in (factor, alpha, sigma)) or np.all(np.asarray(sigma)):
        return
    scaled = np.asarray(alpha, np.float32)[..., None, None] * np.asarray(factor, np.float32)
    if np.any((np.asarray(sigma) == 0) & (np.linalg.matrix_rank(scaled) < scaled.shape[-1])):
        raise ValueError("sigma must be > 0 where alpha * factor is singular, got 0")


def gaussian_score(
    x: ArrayLike, mean: ArrayLike, factor: ArrayLike, *, alpha: ArrayLike = 1.0, sigma: ArrayLike
) -> Array:
    r"""Exact score of Gaussian data under diffusion, :math:`-(\alpha^2 L L^\top + \sigma^2 I)^{-1}(x - \alpha\mu)`.

    The gradient of the log density of :math:`\alpha x_0 + \sigma n` with :math:`x_0 \sim N(\mu, L L^\top)`. L = 0 is a
    point mass, with score :math:`(\alpha\mu - x)/\sigma^2`. Solved with the triangular factor of a QR decomposition of
    :math:`[\alpha L, \sigma I]`: the covariance, whose condition is the square of that of its factor, is never formed.

    Args:
      x: [B, D] noised points.
      mean: mu, [D] or [B, D].
      factor: L, [D, D] or [B, D, D], any square matrix.
      alpha: scale of the signal, scalar or [B]. Default: the VE form.
      sigma: level of the noise, scalar or [B], >= 0; 0 needs a regular alpha * L.

    Returns:
      [B, D] scores, in at least float32.

    Raises:
      ValueError: shapes do not fit, a concrete sigma is negative, or is 0 where alpha * L is singular.

    References:
      Wang et al., Taming Mode Collapse in Score Distillation for Text-to-3D Generation, arXiv:2401.00909.
    """
    _checks.rank("x", x, 2)
    x, mean, factor, alpha, sigma = (as_float(value) for value in (x, mean, factor, alpha, sigma))
    batch, size = x.shape
    if mean.shape not in ((size,), (batch, size)):
        raise ValueError(f"mean must have shape ({size},) or ({batch}, {size}), got {mean.shape}")
    if factor.shape not in ((size, size), (batch, size, size)):
        raise ValueError(f"factor must have shape ({size}, {size}) or ({batch}, {size}, {size}), got {factor.shape}")
    for name, value in (("alpha", alpha), ("sigma", sigma)):
        _checks.scalar_or_per_example(name, value, batch)
    _checks.non_negative("sigma", sigma)
    _check_regular(factor, alpha, sigma)

    residual = x - expand_like(alpha, x) * mean
    signal = alpha[..., None, None] * factor
    noise = sigma[..., None, None] * jnp.eye(size, dtype=x.dtype)
    shared = signal.ndim == 2 and noise.ndim == 2
    leading = () if shared else (batch,)
    # R^T R = alpha^2 L L^T + sigma^2 I.
    stacked = jnp.concatenate(
        [jnp.broadcast_to(jnp.swapaxes(part, -1, -2), (*leading, size, size)) for part in (signal, noise)], axis=-2
    )
    triangle = jnp.linalg.qr(stacked, mode="r")
    columns = residual.T if shared else residual[..., None]
    half = jax.scipy.linalg.solve_triangular(triangle, columns, trans="T")
    solved = jax.scipy.linalg.solve_triangular(triangle, half)
    return -(solved.T if shared else solved[..., 0])
