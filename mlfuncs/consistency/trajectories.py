r"""Consistency trajectory models: one network that jumps from any level of a trajectory to any lower one.

The network is a predictor g(x, s, u), a clean estimate for the jump from level s down to level u; the jump itself is
:math:`G(x, s \to u) = \tfrac us x + (1 - \tfrac us)\, g(x, s, u)`.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks, diffusion, robust
from mlfuncs._arrays import as_float, example_noise, expand_like, safe_sqrt

Predictor = Callable[[Array, Array, Array], Array]  # (x [B, ...], sigma [B], sigma_to [B]) -> clean estimate

ROUNDING = 1e-6  # a float32 grid may end a rounding below the sigma_min it was made for


def _jump(predict: Predictor, x: Array, sigma: Array, sigma_to: Array) -> Array:
    estimate = predict(x, sigma, sigma_to)
    _checks.same_shape("x", x, "the result of predict", estimate)
    ratio = expand_like(sigma_to / sigma, x)
    # Not `diffusion.euler_step`, the same line written so that only its lower end is exact: here both ends must be.
    return ratio * x + (1 - ratio) * as_float(estimate)


def _frozen_jump(predict: Predictor, x: Array, sigma: Array, sigma_to: Array) -> Array:
    """A jump with gradient through its arguments but none through the parameters that `predict` closes over."""
    converted, held = jax.closure_convert(predict, x, sigma, sigma_to)
    held = [jax.lax.stop_gradient(value) for value in held]
    return _jump(lambda *arguments: converted(*arguments, *held), x, sigma, sigma_to)


def trajectory_jump(predict: Predictor, x: ArrayLike, sigma: ArrayLike, sigma_to: ArrayLike) -> Array:
    r"""Jump along a trajectory, :math:`G(x, s \to u) = \tfrac us x + (1 - \tfrac us)\, g(x, s, u)`.

    The identity for u = s, whatever g is, and g itself for u = 0.

    Args:
      predict: g(x [B, ...], sigma [B], sigma_to [B]) -> clean estimate, like x.
      x: [B, ...] noisy examples in VE form at level `sigma`.
      sigma: s, scalar or [B], > 0.
      sigma_to: u, scalar or [B], in [0, sigma].

    Returns:
      The examples at level `sigma_to`, like `x`, in at least float32.

    Raises:
      ValueError: shapes do not fit, or concrete levels are out of range or not in order.

    References:
      Kim et al., Consistency Trajectory Models, arXiv:2310.02279.
    """
    _checks.batched("x", x)
    x, sigma, sigma_to = as_float(x), as_float(sigma), as_float(sigma_to)
    for name, value in (("sigma", sigma), ("sigma_to", sigma_to)):
        _checks.scalar_or_per_example(name, value, x.shape[0])
    _checks.positive("sigma", sigma)
    _checks.non_negative("sigma_to", sigma_to)
    _checks.ordered("sigma_to", sigma_to, "sigma", sigma, strict=False)
    return _jump(predict, x, jnp.broadcast_to(sigma, x.shape[:1]), jnp.broadcast_to(sigma_to, x.shape[:1]))


def gamma_step(
    predict: Predictor,
    x: ArrayLike,
    sigma: ArrayLike,
    sigma_next: ArrayLike,
    noise: ArrayLike,
    *,
    gamma: ArrayLike = 0.0,
) -> Array:
    r"""One step of gamma-sampling: jump below the next level, then add the noise that is missing.

    .. math:: x' = G(x, s \to \sqrt{1 - \gamma^2}\, n) + \gamma n\, \epsilon

    gamma 0 follows the trajectory, gamma 1 goes to the data and adds all noise anew, as multistep consistency sampling
    does. At 1 `predict` is asked for level 0, which training above sigma_min never shows it: stay slightly below, or
    pass a predictor that knows level 0.

    Args:
      predict: g(x [B, ...], sigma [B], sigma_to [B]) -> clean estimate, like x.
      x: [B, ...] noisy examples in VE form at level `sigma`.
      sigma: s, scalar or [B], > 0.
      sigma_next: n, scalar or [B], in [0, sigma].
      noise: unit normal epsilon, like `x`; unused at gamma 0.
      gamma: scalar or [B], in [0, 1]. The deterministic default is what distilled latent optimisation decodes with.

    Returns:
      The examples at level `sigma_next`, like `x`, in at least float32.

    Raises:
      ValueError: shapes do not fit, or concrete values are out of range or not in order.

    References:
      Kim et al., Consistency Trajectory Models, arXiv:2310.02279. (The authors' code measures both levels from sigma_min.)
    """
    _checks.same_shape("x", x, "noise", noise)
    _checks.batched("x", x)
    x, sigma, sigma_next, gamma = as_float(x), as_float(sigma), as_float(sigma_next), as_float(gamma)
    for name, value in (("sigma", sigma), ("sigma_next", sigma_next), ("gamma", gamma)):
        _checks.scalar_or_per_example(name, value, x.shape[0])
    _checks.non_negative("sigma_next", sigma_next)
    _checks.ordered("sigma_next", sigma_next, "sigma", sigma, strict=False)
    _checks.within("gamma", gamma, 0, 1)
    below = safe_sqrt((1 - gamma) * (1 + gamma)) * sigma_next
    return trajectory_jump(predict, x, sigma, below) + expand_like(gamma * sigma_next, x) * as_float(noise)


def trajectory_sample(
    key: Array,
    predict: Predictor,
    latent: ArrayLike,
    *,
    sigmas: Sequence[float] | ArrayLike,
    gamma: ArrayLike = 0.0,
    sigma_min: float = 0.002,
) -> Array:
    r"""Samples by gamma-steps through the levels and a last jump to sigma_min; one evaluation a level.

    One level is the one-step generator; gamma 0 is a deterministic map from the latent, so that a latent found with one
    level decodes with several. The noise of example i depends on the key, the step and i alone.

    Args:
      key: a PRNG key; unused at gamma 0.
      predict: g(x [B, ...], sigma [B], sigma_to [B]) -> clean estimate, like x.
      latent: [B, ...] starting noise, of standard deviation sigmas[0].
      sigmas: [T] strictly decreasing levels, T >= 1, from sigma_max down, all >= sigma_min.
      gamma: scalar or [B], in [0, 1], of `gamma_step`. The last jump adds no noise.
      sigma_min: level of the result, >= 0. The usual EDM default.

    Returns:
      Samples, like `latent`, in at least float32.

    Raises:
      ValueError: no level, or concrete values that are out of range or do not decrease.

    References:
      Kim et al., arXiv:2310.02279; Novack et al., DITTO-2, arXiv:2405.20289.
    """
    _checks.batched("latent", latent)
    x = as_float(latent)
    _checks.rank("sigmas", sigmas, 1)
    if np.shape(sigmas)[0] == 0:
        raise ValueError("sigmas must hold at least one level, got none")
    _checks.positive("sigmas", sigmas)
    if _checks.is_concrete(sigmas) and np.any(np.diff(np.asarray(sigmas)) >= 0):
        raise ValueError(f"sigmas must strictly decrease, got {sigmas!r}")
    _checks.non_negative("sigma_min", sigma_min)
    if _checks.is_concrete(sigma_min):
        _checks.at_least("sigmas", sigmas, float(sigma_min) * (1 - ROUNDING))
    _checks.scalar_or_per_example("gamma", gamma, x.shape[0])
    _checks.within("gamma", gamma, 0, 1)
    levels = as_float(sigmas)  # type: ignore[arg-type]
    deterministic = _checks.is_concrete(gamma) and not np.any(np.asarray(gamma))

    def step(x: Array, scanned: tuple[Array, Array, Array]) -> tuple[Array, None]:
        index, sigma, sigma_next = scanned
        noise = jnp.zeros_like(x) if deterministic else example_noise(jax.random.fold_in(key, index), x.shape)
        return gamma_step(predict, x, sigma, sigma_next, noise, gamma=gamma), None

    x = jax.lax.scan(step, x, (jnp.arange(levels.shape[0] - 1), levels[:-1], levels[1:]))[0]
    batch = x.shape[:1]
    return _jump(predict, x, jnp.broadcast_to(levels[-1], batch), jnp.broadcast_to(as_float(sigma_min), batch))


def trajectory_distillation_loss(
    predict: Predictor,
    denoise: Callable[[Array, Array], Array],
    x: ArrayLike,
    sigma: ArrayLike,
    sigma_mid: ArrayLike,
    sigma_low: ArrayLike,
    *,
    teacher_predict: Predictor | None = None,
    sigma_min: float = 0.002,
    method: str = "heun",
    distance: Callable[[Array, Array], Array] | None = None,
) -> Array:
    r"""Distils a diffusion model into a trajectory model: a long jump equals a teacher step and a shorter jump.

    .. math:: d\big(G_{\theta^-}(G_\theta(x_s, s \to l), l \to \sigma_{\min}),\;
              \mathrm{sg}[G_{\theta^-}(G_{\theta^-}(\hat x_m, m \to l), l \to \sigma_{\min})]\big), \quad
              \hat x_m = \mathrm{step}_D(x_s, s \to m)

    Both sides are compared at sigma_min. The gradient passes through the student's jump s -> l alone: through the
    outer jump as a map of its input, but not to its parameters. Pure consistency: no adversarial or denoising term.
    The official trajectory-model code takes the current student for the target's inner jump, and several teacher steps.

    Args:
      predict: g(x [B, ...], sigma [B], sigma_to [B]) -> clean estimate, closed over the student's parameters.
      denoise: D(x [B, ...], sigma [B]) -> clean estimate, the frozen diffusion model (guided, where guidance is to be
        distilled too).
      x: [B, ...] noisy examples in VE form at level `sigma`.
      sigma: [B] levels s.
      sigma_mid: [B] levels m of the teacher's step, in [sigma_low, sigma]; at `sigma` the loss is 0.
      sigma_low: [B] levels l, in [sigma_min, sigma_mid].
      teacher_predict: g of the teacher's parameters (a moving average of the student's); None: the student's own.
        Gradients never pass to what it closes over.
      sigma_min: level of the comparison, > 0. The usual EDM default.
      method: "heun" (two evaluations of the teacher) or "euler" (one).
      distance: d(a, b) -> [B]; None: mean squared error over the values of an example.

    Returns:
      [B] losses.

    Raises:
      ValueError: shapes do not fit, concrete levels are out of range or not in order, or the method is unknown.

    References:
      Novack et al., DITTO-2: Distilled Diffusion Inference-Time T-Optimization for Music Generation, arXiv:2405.20289;
      Kim et al., Consistency Trajectory Models, arXiv:2310.02279.
    """
    _checks.batched("x", x)
    x, sigma, sigma_mid, sigma_low = as_float(x), as_float(sigma), as_float(sigma_mid), as_float(sigma_low)
    for name, value in (("sigma", sigma), ("sigma_mid", sigma_mid), ("sigma_low", sigma_low)):
        _checks.per_example(name, value, x.shape[0])
    _checks.positive("sigma_min", sigma_min)
    if _checks.is_concrete(sigma_min):
        _checks.at_least("sigma_low", sigma_low, float(sigma_min) * (1 - ROUNDING))
    _checks.ordered("sigma_low", sigma_low, "sigma_mid", sigma_mid, strict=False)
    _checks.ordered("sigma_mid", sigma_mid, "sigma", sigma, strict=False)
    teacher = predict if teacher_predict is None else teacher_predict
    sigma_end = jnp.full_like(sigma_low, sigma_min)

    x_mid = diffusion.ode_step(denoise, x, sigma, sigma_mid, method=method)
    target = _jump(teacher, _jump(teacher, x_mid, sigma_mid, sigma_low), sigma_low, sigma_end)
    estimate = _frozen_jump(teacher, _jump(predict, x, sigma, sigma_low), sigma_low, sigma_end)
    return (robust.mean_squared if distance is None else distance)(estimate, jax.lax.stop_gradient(target))
