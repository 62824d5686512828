r"""Bootstrap distillation: a one-step student learnt from noise alone, along the signal of the teacher's trajectories.

A noise array :math:`\epsilon` defines one trajectory of the probability-flow equation. In VE form its point at level
:math:`\sigma` is :math:`x = y + \sigma\epsilon`, and the student predicts the signal y(sigma), which moves from the mean
of the data at high levels to a clean example.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks, diffusion, robust
from mlfuncs._arrays import as_float, expand_like

Student = Callable[[Array, Array], Array]  # (noise [B, ...], sigma [B]) -> signal
Denoiser = Callable[[Array, Array], Array]  # (x [B, ...], sigma [B]) -> estimate of the clean x


def signal_step(signal: ArrayLike, denoised: ArrayLike, sigma: ArrayLike, sigma_next: ArrayLike) -> Array:
    r"""One step of the signal's equation, :math:`y' = D + \tfrac{\sigma'}{\sigma}(y - D)`.

    Exact where the clean estimate D is constant along the step. The Euler step of the noisy example, minus its noise:
    adding :math:`\sigma' \epsilon` to the result gives `diffusion.euler_step` of :math:`y + \sigma\epsilon`.

    Args:
      signal: y, [B, ...].
      denoised: D(y + sigma * noise, sigma), like `signal`.
      sigma: current level, scalar or [B], > 0.
      sigma_next: next level, scalar or [B], in [0, sigma]; 0 returns `denoised`.

    Returns:
      Like `signal`, in at least float32.

    Raises:
      ValueError: shapes do not fit, or concrete levels are out of range or not in order.

    References:
      Gu et al., BOOT: Data-free Distillation of Denoising Diffusion Models with Bootstrapping, arXiv:2306.05544.
    """
    _checks.same_shape("signal", signal, "denoised", denoised)
    _checks.batched("signal", signal)
    sigma, sigma_next = as_float(sigma), as_float(sigma_next)
    for name, value in (("sigma", sigma), ("sigma_next", sigma_next)):
        _checks.scalar_or_per_example(name, value, np.shape(signal)[0])
    _checks.ordered("sigma_next", sigma_next, "sigma", sigma, strict=False)
    return diffusion.euler_step(signal, denoised, sigma, sigma_next)


def _signal(student: Student, noise: Array, sigma: Array) -> Array:
    signal = student(noise, sigma)
    _checks.same_shape("noise", noise, "the result of student", signal)
    return as_float(signal)


def _denoised(denoise: Denoiser, x: Array, sigma: Array) -> Array:
    denoised = denoise(x, sigma)
    _checks.same_shape("noise", x, "the result of denoise", denoised)
    return as_float(denoised)


def bootstrap_loss(
    student: Student,
    denoise: Denoiser,
    noise: ArrayLike,
    sigma: ArrayLike,
    sigma_next: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    max_weight: float = 1e4,
) -> Array:
    r"""The student's signal at a level against its own signal at a higher one, moved on by the teacher.

    .. math:: w\; \overline{\big(g(\epsilon, \sigma') -
              \mathrm{sg}\big[D + \tfrac{\sigma'}{\sigma}(y - D)\big]\big)^2}, \quad
              y = g(\epsilon, \sigma), \; D = D(y + \sigma\epsilon, \sigma), \quad w = (1 - \sigma'/\sigma)^{-2}

    With this weight the loss is the squared error of the velocity that the pair implies. No data and no moving average
    are needed; errors travel down from the highest level, which `bootstrap_boundary_loss` anchors.

    Args:
      student: g(noise [B, ...], sigma [B]) -> signal, like noise, closed over the student's parameters. It runs at both
        levels; where it has dropout, that must be off.
      denoise: D(x [B, ...], sigma [B]) -> clean estimate, the frozen teacher (guided, where guidance is to be distilled
        too).
      noise: [B, ...] unit normal, both the student's input and the noise of the trajectory.
      sigma: [B] levels, > 0.
      sigma_next: [B] lower levels, in [0, sigma); at 0 the target is the teacher's clean estimate.
      weight: scalar or [B]; None: w above, at most `max_weight`.
      max_weight: > 0, cap of the default weight. Our default, reached by levels closer than 1 %.

    Returns:
      [B] losses. Gradients pass through the student at `sigma_next` alone.

    Raises:
      ValueError: shapes do not fit, or concrete levels are out of range or not in order.

    References:
      Gu et al., arXiv:2306.05544.
    """
    _checks.batched("noise", noise)
    noise, sigma, sigma_next = as_float(noise), as_float(sigma), as_float(sigma_next)
    for name, value in (("sigma", sigma), ("sigma_next", sigma_next)):
        _checks.per_example(name, value, noise.shape[0])
    _checks.positive("sigma", sigma)
    _checks.non_negative("sigma_next", sigma_next)
    _checks.ordered("sigma_next", sigma_next, "sigma", sigma)
    _checks.positive("max_weight", max_weight)
    if weight is None:
        gap = (sigma - sigma_next) / sigma
        weight = 1 / jnp.maximum(gap**2, 1 / as_float(max_weight))
    _checks.scalar_or_per_example("weight", weight, noise.shape[0])
    signal = _signal(student, noise, sigma)
    denoised = _denoised(denoise, signal + expand_like(sigma, noise) * noise, sigma)
    target = jax.lax.stop_gradient(signal_step(signal, denoised, sigma, sigma_next))
    return as_float(weight) * robust.mean_squared(_signal(student, noise, sigma_next), target)


def bootstrap_boundary_loss(
    student: Student, denoise: Denoiser, noise: ArrayLike, *, sigma_max: ArrayLike = 80.0
) -> Array:
    r"""The student at the highest level against the teacher's clean estimate from pure noise.

    .. math:: \overline{\big(g(\epsilon, \sigma_{\max}) -
              \mathrm{sg}[D(\sigma_{\max}\epsilon, \sigma_{\max})]\big)^2}

    Where every trajectory starts: `bootstrap_loss` alone fixes how the signal moves but not where it begins.

    Args:
      student: g(noise [B, ...], sigma [B]) -> signal, closed over the student's parameters.
      denoise: D(x [B, ...], sigma [B]) -> clean estimate, the frozen teacher.
      noise: [B, ...] unit normal.
      sigma_max: highest level, a scalar, > 0. The usual EDM default.

    Returns:
      [B] losses, to be added to those of `bootstrap_loss` (with weight 1, our default).

    Raises:
      ValueError: shapes do not fit, or a concrete level is not positive.

    References:
      Gu et al., arXiv:2306.05544.
    """
    _checks.batched("noise", noise)
    _checks.rank("sigma_max", sigma_max, 0)
    _checks.positive("sigma_max", sigma_max)
    noise, sigma_max = as_float(noise), as_float(sigma_max)
    sigma = jnp.full(noise.shape[:1], sigma_max)
    target = jax.lax.stop_gradient(_denoised(denoise, sigma_max * noise, sigma))
    return robust.mean_squared(_signal(student, noise, sigma), target)


def sample_level_pairs(
    key: Array,
    batch: int,
    *,
    delta: ArrayLike = 0.04,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
) -> tuple[Array, Array]:
    r"""Draws pairs of levels one stride apart, for `bootstrap_loss`.

    .. math:: u \sim U(0, 1], \quad \sigma = \sigma(u), \quad \sigma' = \sigma(\max(u - \delta, 0)), \quad
              \sigma(u) = \big(\sigma_{\min}^{1/\rho} + u (\sigma_{\max}^{1/\rho} - \sigma_{\min}^{1/\rho})\big)^\rho

    The pair of example i depends on the key and on i alone.

    Args:
      key: a PRNG key.
      batch: number of pairs B >= 1.
      delta: stride in the interpolation variable u, in (0, 1), a scalar; may be traced, to shrink over training. Our
        default: 1/25 of the range.
      sigma_min: lowest level, > 0. The usual EDM default.
      sigma_max: highest level, > sigma_min. The usual EDM default.
      rho: > 0; larger values put more levels near sigma_min. The usual EDM default.

    Returns:
      (sigma [B], sigma_next [B]), float32, with sigma_min <= sigma_next < sigma <= sigma_max in every pair.

    Raises:
      ValueError: an argument is out of range.

    References:
      Gu et al., arXiv:2306.05544; levels of Karras et al., arXiv:2206.00364.
    """
    _checks.count("batch", batch)
    _checks.rank("delta", delta, 0)
    _checks.positive("delta", delta)
    _checks.ordered("delta", delta, "1", 1.0)
    _checks.positive("sigma_min", sigma_min)
    _checks.ordered("sigma_min", sigma_min, "sigma_max", sigma_max)
    _checks.positive("rho", rho)
    draw = lambda example: jax.random.uniform(jax.random.fold_in(key, example))  # noqa: E731
    u = 1 - jax.vmap(draw)(jnp.arange(batch))
    bottom, top = as_float(sigma_min), as_float(sigma_max)
    low, high = bottom ** (1 / rho), top ** (1 / rho)
    level = lambda u: (low + u * (high - low)) ** rho  # noqa: E731
    # Rounding must not make the two levels of a pair equal: the weight of the loss is infinite there.
    sigma = jnp.clip(level(u), jnp.nextafter(bottom, jnp.inf), top)
    lower = jnp.clip(level(jnp.maximum(u - delta, 0.0)), bottom, jnp.nextafter(sigma, 0.0))
    return sigma, jnp.where(u > delta, lower, bottom)
