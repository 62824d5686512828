"""Steps and samplers of the probability-flow equation, with the EDM convention denoise(x, sigma [B]) -> clean x."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks
from mlfuncs._arrays import as_float, example_noise, expand_like, safe_sqrt

Denoiser = Callable[[Array, Array], Array]  # (x [B, ...], sigma [B]) -> estimate of the clean x

METHODS = ("euler", "heun")
LARGEST_CHURN = math.sqrt(2) - 1


def euler_step(x: ArrayLike, denoised: ArrayLike, sigma: ArrayLike, sigma_next: ArrayLike) -> Array:
    r"""One Euler step, :math:`x' = D + \tfrac{\sigma'}{\sigma} (x - D)`.

    Args:
      x: [B, ...] noisy examples in VE form.
      denoised: D(x, sigma), like `x`.
      sigma: current level, scalar or [B], > 0.
      sigma_next: next level, scalar or [B], >= 0; 0 returns `denoised`.

    Returns:
      Like `x`, in at least float32.

    Raises:
      ValueError: shapes do not fit, or concrete levels are out of range.

    References:
      Karras et al., arXiv:2206.00364, algorithm 1.
    """
    _checks.same_shape("x", x, "denoised", denoised)
    _checks.batched("x", x)
    for name, value in (("sigma", sigma), ("sigma_next", sigma_next)):
        _checks.scalar_or_per_example(name, value, np.shape(x)[0])
    _checks.positive("sigma", sigma)
    _checks.non_negative("sigma_next", sigma_next)
    x, denoised = as_float(x), as_float(denoised)
    return denoised + expand_like(as_float(sigma_next) / as_float(sigma), x) * (x - denoised)


def ode_step(
    denoise: Denoiser, x: ArrayLike, sigma: ArrayLike, sigma_next: ArrayLike, *, method: str = "heun"
) -> Array:
    r"""One step of the probability-flow equation :math:`dx/d\sigma = (x - D(x, \sigma)) / \sigma`.

    Heun averages the slope with the one at the Euler point; where the next level is 0 it takes the Euler step.

    Args:
      denoise: D(x [B, ...], sigma [B]) -> estimate of the clean x.
      x: [B, ...] noisy examples in VE form.
      sigma: current level, scalar or [B], > 0.
      sigma_next: next level, scalar or [B], >= 0; may lie above `sigma`.
      method: "heun" (two evaluations) or "euler" (one).

    Returns:
      Like `x`, in at least float32.

    Raises:
      ValueError: shapes do not fit, concrete levels are out of range, or the method is unknown.

    References:
      Karras et al., arXiv:2206.00364, algorithm 1.
    """
    _checks.one_of("method", method, METHODS)
    _checks.batched("x", x)
    x = as_float(x)
    batch = x.shape[:1]
    for name, value in (("sigma", sigma), ("sigma_next", sigma_next)):
        _checks.scalar_or_per_example(name, value, batch[0])
    _checks.positive("sigma", sigma)
    _checks.non_negative("sigma_next", sigma_next)
    sigma = jnp.broadcast_to(as_float(sigma), batch)
    sigma_next = jnp.broadcast_to(as_float(sigma_next), batch)

    denoised = as_float(denoise(x, sigma))
    euler = euler_step(x, denoised, sigma, sigma_next)
    if method == "euler":
        return euler
    # The second slope is never asked at 0, where it is 0/0: the denoiser sees the current level there instead.
    at_zero = sigma_next <= 0
    safe = jnp.where(at_zero, sigma, sigma_next)
    slope = (x - denoised) / expand_like(sigma, x)
    slope_next = (euler - as_float(denoise(euler, safe))) / expand_like(safe, x)
    heun = x + expand_like(sigma_next - sigma, x) * (slope + slope_next) / 2
    return jnp.where(expand_like(at_zero, x), euler, heun)


def _check_sigmas(sigmas: ArrayLike) -> Array:
    _checks.rank("sigmas", sigmas, 1)
    if np.shape(sigmas)[0] < 2:
        raise ValueError(f"sigmas must hold at least 2 levels, got {np.shape(sigmas)[0]}")
    _checks.non_negative("sigmas", sigmas)
    if _checks.is_concrete(sigmas) and np.any(np.diff(np.asarray(sigmas)) >= 0):
        raise ValueError("sigmas must be strictly decreasing (the sampling grid of karras_sigmas)")
    return as_float(sigmas)


def _ends_in_zero(sigmas: ArrayLike) -> bool:
    return _checks.is_concrete(sigmas) and float(np.asarray(sigmas)[-1]) == 0.0


def sample_euler(denoise: Denoiser, x: ArrayLike, sigmas: ArrayLike) -> Array:
    """Samples with Euler steps; one evaluation a step.

    Args:
      denoise: D(x [B, ...], sigma [B]) -> estimate of the clean x.
      x: [B, ...] starting noise, of standard deviation sigmas[0].
      sigmas: [N + 1] strictly decreasing levels, ending in 0 or not (`karras_sigmas`).

    Returns:
      Samples at level sigmas[-1], like `x`, in at least float32.

    Raises:
      ValueError: x has no batch axis; sigmas not 1-D, fewer than 2, or, where concrete, negative or not decreasing.

    References:
      Karras et al., arXiv:2206.00364, algorithm 1 without its second-order correction.
    """
    levels = _check_sigmas(sigmas)
    _checks.batched("x", x)

    def step(x: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
        return ode_step(denoise, x, *pair, method="euler"), None

    return jax.lax.scan(step, as_float(x), (levels[:-1], levels[1:]))[0]


def sample_heun(denoise: Denoiser, x: ArrayLike, sigmas: ArrayLike) -> Array:
    """Samples with Heun steps; the step to 0 is an Euler step: 2N - 1 evaluations for N steps that end in 0.

    Args:
      denoise: D(x [B, ...], sigma [B]) -> estimate of the clean x.
      x: [B, ...] starting noise, of standard deviation sigmas[0].
      sigmas: [N + 1] strictly decreasing levels, ending in 0 or not (`karras_sigmas`). Where they are traced, the last
        step costs a second evaluation, whose result is unused at 0.

    Returns:
      Samples at level sigmas[-1], like `x`, in at least float32.

    Raises:
      ValueError: x has no batch axis; sigmas not 1-D, fewer than 2, or, where concrete, negative or not decreasing.

    References:
      Karras et al., arXiv:2206.00364, algorithm 1.
    """
    levels = _check_sigmas(sigmas)
    _checks.batched("x", x)

    def step(x: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
        return ode_step(denoise, x, *pair, method="heun"), None

    pairs = (levels[:-1], levels[1:])
    if not _ends_in_zero(sigmas):
        return jax.lax.scan(step, as_float(x), pairs)[0]
    x = jax.lax.scan(step, as_float(x), (pairs[0][:-1], pairs[1][:-1]))[0]
    return ode_step(denoise, x, levels[-2], levels[-1], method="euler")


def sample_heun_stochastic(
    key: Array,
    denoise: Denoiser,
    x: ArrayLike,
    sigmas: ArrayLike,
    *,
    churn: ArrayLike = 0.0,
    churn_min: ArrayLike = 0.0,
    churn_max: ArrayLike = math.inf,
    noise_scale: ArrayLike = 1.0,
) -> Array:
    r"""Heun steps, each after lifting the level by fresh noise.

    .. math:: \gamma = \min(S_{churn} / N, \sqrt2 - 1), \quad \hat\sigma = (1 + \gamma)\sigma, \quad
              \hat x = x + \sqrt{\hat\sigma^2 - \sigma^2}\, S_{noise}\, n

    Noise is added at levels in [churn_min, churn_max]. With churn 0 this is `sample_heun`. The noise of example
    i depends on the key, the step and i alone.

    Args:
      key: a PRNG key.
      denoise: D(x [B, ...], sigma [B]) -> estimate of the clean x.
      x: [B, ...] starting noise, of standard deviation sigmas[0].
      sigmas: [N + 1] strictly decreasing levels, ending in 0 or not.
      churn: S_churn >= 0, total over the steps. The paper's default is deterministic.
      churn_min: S_tmin >= 0.
      churn_max: S_tmax >= 0.
      noise_scale: S_noise >= 0; the paper finds slightly above 1 best.

    Returns:
      Samples at level sigmas[-1], like `x`, in at least float32.

    Raises:
      ValueError: as `sample_heun`, or a concrete churn argument is negative.

    References:
      Karras et al., arXiv:2206.00364, algorithm 2.
    """
    levels = _check_sigmas(sigmas)
    _checks.batched("x", x)
    for name, value in (
        ("churn", churn),
        ("churn_min", churn_min),
        ("churn_max", churn_max),
        ("noise_scale", noise_scale),
    ):
        _checks.non_negative(name, value)
    num_steps = levels.shape[0] - 1
    strength = jnp.minimum(as_float(churn) / num_steps, LARGEST_CHURN)

    def lift(x: Array, index: Array, sigma: Array) -> tuple[Array, Array]:
        gamma = jnp.where((sigma >= churn_min) & (sigma <= churn_max), strength, 0.0)
        noise = example_noise(jax.random.fold_in(key, index), x.shape)
        # The root of (1 + gamma)^2 - 1.
        excess = gamma * (2 + gamma)
        spread = safe_sqrt(excess) * sigma
        return x + spread * noise_scale * noise, sigma * (1 + gamma)

    def step(x: Array, scanned: tuple[Array, Array, Array]) -> tuple[Array, None]:
        index, sigma, sigma_next = scanned
        return ode_step(denoise, *lift(x, index, sigma), sigma_next, method="heun"), None

    scanned = (jnp.arange(num_steps), levels[:-1], levels[1:])
    if not _ends_in_zero(sigmas):
        return jax.lax.scan(step, as_float(x), scanned)[0]
    x = jax.lax.scan(step, as_float(x), jax.tree.map(lambda values: values[:-1], scanned))[0]
    last = lift(x, jnp.asarray(num_steps - 1), levels[-2])
    return ode_step(denoise, *last, levels[-1], method="euler")


def ddim_step(x: ArrayLike, noise: ArrayLike, alpha_bar: ArrayLike, alpha_bar_next: ArrayLike) -> Array:
    r"""One deterministic DDIM step in VP form, in either direction.

    .. math:: z' = \sqrt{\bar\alpha'}\, \frac{z - \sqrt{1 - \bar\alpha}\, \epsilon}{\sqrt{\bar\alpha}}
              + \sqrt{1 - \bar\alpha'}\, \epsilon

    Towards the data where alpha_bar_next > alpha_bar, inversion where it is smaller. In VE form this is `euler_step`.

    Args:
      x: [B, ...] noisy examples z in VP form.
      noise: predicted unit noise, like `x`.
      alpha_bar: current signal fraction, scalar or [B], in (0, 1].
      alpha_bar_next: next signal fraction, scalar or [B], in (0, 1]; 1 returns the clean estimate.

    Returns:
      Like `x`, in at least float32.

    Raises:
      ValueError: shapes do not fit, or a concrete fraction is outside (0, 1].

    References:
      Song et al., Denoising Diffusion Implicit Models, arXiv:2010.02502.
    """
    _checks.same_shape("x", x, "noise", noise)
    _checks.batched("x", x)
    for name, value in (("alpha_bar", alpha_bar), ("alpha_bar_next", alpha_bar_next)):
        _checks.scalar_or_per_example(name, value, np.shape(x)[0])
        _checks.within_half_open(name, value, 0, 1)
    x, noise = as_float(x), as_float(noise)
    here, there = expand_like(as_float(alpha_bar), x), expand_like(as_float(alpha_bar_next), x)
    clean = (x - safe_sqrt(1 - here) * noise) / jnp.sqrt(here)
    return jnp.sqrt(there) * clean + safe_sqrt(1 - there) * noise
