"""Distilling several guided steps of a diffusion model into one unguided step of a student."""

from collections.abc import Callable

import jax
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks, diffusion, guidance, robust
from mlfuncs._arrays import as_float, expand_like

Denoiser = Callable[[Array, Array], Array]  # (x [B, ...], sigma [B]) -> estimate of the clean x


def _check_levels(levels: ArrayLike, batch: int) -> Array:
    _checks.rank("levels", levels, 2)
    if np.shape(levels)[0] < 2 or np.shape(levels)[1] != batch:
        raise ValueError(f"levels must have shape (m + 1, {batch}) with m >= 1, got {np.shape(levels)}")
    _checks.non_negative("levels", levels)
    if _checks.is_concrete(levels) and np.any(np.diff(np.asarray(levels), axis=0) >= 0):
        raise ValueError(f"levels must strictly decrease along their first axis, got {levels!r}")
    return as_float(levels)


def guided_multistep_target(
    positive_denoise: Denoiser,
    negative_denoise: Denoiser,
    x: ArrayLike,
    levels: ArrayLike,
    *,
    scale: ArrayLike,
) -> dict[str, Array]:
    r"""Where m guided Euler steps lead, and the clean estimate with which one step leads there too.

    .. math:: x_{j+1} = D_w + \tfrac{s_{j+1}}{s_j}(x_j - D_w), \quad D_w = D_- + w (D_+ - D_-), \qquad
              \hat x_0 = x_m + \frac{s_m}{s_0 - s_m}(x_m - x)

    With m = 1 the estimate is the guided one, D_w(x, s_0). The same target, without guidance, is that of progressive
    distillation.

    Args:
      positive_denoise: D_+(x [B, ...], sigma [B]) -> clean estimate, under the prompt.
      negative_denoise: D_-, likewise, under the negative or the empty prompt.
      x: [B, ...] noisy examples in VE form at level levels[0].
      levels: [m + 1, B] strictly decreasing levels s_0 > ... > s_m >= 0, m >= 1.
      scale: guidance scale w, scalar or [B]; 1 is the positive branch, 0 the negative one; negative moves away.

    Returns:
      {"end": x_m, like `x`, "denoised": the implied clean estimate, like `x`}; equal where s_m = 0. Gradients pass.

    Raises:
      ValueError: shapes do not fit, or concrete levels are negative or do not decrease.

    References:
      Chai et al., SpeedUpNet, arXiv:2312.08887 (our reading of its multi-step consistency: no training code is public);
      Salimans and Ho, Progressive Distillation, arXiv:2202.00512.
    """
    _checks.batched("x", x)
    x = as_float(x)
    levels = _check_levels(levels, x.shape[0])
    _checks.scalar_or_per_example("scale", scale, x.shape[0])

    def step(current: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
        sigma, sigma_next = pair
        negative, positive = negative_denoise(current, sigma), positive_denoise(current, sigma)
        guided = guidance.classifier_free_guidance(negative, positive, scale=scale)
        return diffusion.euler_step(current, guided, sigma, sigma_next), None

    end = jax.lax.scan(step, x, (levels[:-1], levels[1:]))[0]
    ahead = expand_like(levels[-1] / (levels[0] - levels[-1]), x)
    return {"end": end, "denoised": end + ahead * (end - x)}


def multi_step_consistency_loss(
    student: Denoiser,
    positive_denoise: Denoiser,
    negative_denoise: Denoiser,
    x: ArrayLike,
    levels: ArrayLike,
    *,
    scale: ArrayLike,
) -> Array:
    r"""One step of the student against several guided steps of the teacher, :math:`\overline{(f(x, s_0) - \hat x_0)^2}`.

    One level difference (m = 1) distils guidance alone; m is raised during training, towards fewer steps.

    Args:
      student: f(x [B, ...], sigma [B]) -> clean estimate, closed over the student's parameters and both prompts.
      positive_denoise: D_+(x [B, ...], sigma [B]) -> clean estimate of the frozen teacher, under the prompt.
      negative_denoise: D_-, likewise, under the negative prompt.
      x: [B, ...] noisy examples in VE form at level levels[0].
      levels: [m + 1, B] strictly decreasing levels, the last may be 0.
      scale: guidance scale w, scalar or [B]; the paper distils 7.5.

    Returns:
      [B] losses, with gradient through the student alone.

    Raises:
      ValueError: shapes do not fit, or concrete levels are negative or do not decrease.

    References:
      Chai et al., SpeedUpNet: A Plug-and-Play Adapter Network for Accelerating Text-to-Image Diffusion Models,
      arXiv:2312.08887.
    """
    target = guided_multistep_target(positive_denoise, negative_denoise, x, levels, scale=scale)["denoised"]
    x = as_float(x)
    prediction = student(x, as_float(levels)[0])
    _checks.same_shape("x", x, "the result of student", prediction)
    return robust.mean_squared(prediction, jax.lax.stop_gradient(target))
