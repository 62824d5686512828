"""Losses that make a network consistent along the trajectories of the probability-flow equation."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks, diffusion, robust
from mlfuncs._arrays import as_float, expand_like, per_example_axes
from mlfuncs.consistency.levels import inverse_gap_weight

ConsistencyFunction = Callable[[Array, Array], Array]  # (x [B, ...], sigma [B]) -> estimate of the clean x
Distance = Callable[[Array, Array], Array]  # (a [B, ...], b [B, ...]) -> [B]

HUBER_FACTOR = 0.00054  # c = 0.00054 sqrt(values per example), arXiv:2310.14189


def _default_distance(prediction: Array, target: Array) -> Array:
    return robust.pseudo_huber(prediction, target, c=HUBER_FACTOR * math.sqrt(math.prod(prediction.shape[1:])))


def _check_pair(data: ArrayLike, noise: ArrayLike, sigma_low: ArrayLike, sigma_high: ArrayLike) -> None:
    _checks.same_shape("data", data, "noise", noise)
    _checks.batched("data", data)
    batch = jnp.shape(data)[0]
    _checks.per_example("sigma_low", sigma_low, batch)
    _checks.per_example("sigma_high", sigma_high, batch)
    _checks.non_negative("sigma_low", sigma_low)
    # Equal levels are left to the weight: one that is given may be finite there, and the loss is then 0.
    _checks.ordered("sigma_low", sigma_low, "sigma_high", sigma_high, strict=False)


def _weights(weight: ArrayLike | None, sigma_low: ArrayLike, sigma_high: ArrayLike) -> Array:
    if weight is None:
        return inverse_gap_weight(sigma_low, sigma_high)
    _checks.scalar_or_per_example("weight", weight, jnp.shape(sigma_low)[0])
    return as_float(weight)


def _target(teacher_fn: ConsistencyFunction, x_low: Array, sigma_low: Array, sigma_high: Array) -> Array:
    """Teacher's estimate from the lower level, without gradient; at level 0 that is x_low itself."""
    at_zero = sigma_low <= 0
    estimate = teacher_fn(x_low, jnp.where(at_zero, sigma_high, sigma_low))
    return jax.lax.stop_gradient(jnp.where(expand_like(at_zero, x_low), x_low, estimate))


def consistency_training_loss(
    consistency_fn: ConsistencyFunction,
    data: ArrayLike,
    noise: ArrayLike,
    sigma_low: ArrayLike,
    sigma_high: ArrayLike,
    *,
    teacher_fn: ConsistencyFunction | None = None,
    distance: Distance | None = None,
    weight: ArrayLike | None = None,
) -> Array:
    r"""Consistency training: neighbouring points of one trajectory get one answer, learnt from data alone.

    .. math:: \lambda\; d\big(f_\theta(x + \sigma_{high} z, \sigma_{high}),\;
              \mathrm{sg}[f_{\theta^-}(x + \sigma_{low} z, \sigma_{low})]\big)

    With its defaults this is improved consistency training (iCT); with `robust.mean_squared`, weight 1 and a
    moving-average teacher it is the original one.

    Args:
      consistency_fn: f(x [B, ...], sigma [B]), closed over the student's parameters and dropout key.
      data: [B, ...] clean examples x.
      noise: like `data`, unit normal z; both levels share it.
      sigma_low: [B] lower levels >= 0; where 0 the target is the clean example and the teacher is not asked.
      sigma_high: [B] upper levels, not below `sigma_low`; above it for the default weight.
      teacher_fn: f of the teacher's parameters; None: the student's own. Gradients never pass through it.
      distance: d(a, b) -> [B]; None: `robust.pseudo_huber` with c = 0.00054 sqrt(values per example).
      weight: scalar or [B]; None: 1 / (sigma_high - sigma_low).

    Returns:
      [B] losses.

    Raises:
      ValueError: shapes do not fit, or concrete levels are negative or not in order.

    References:
      Song et al., arXiv:2303.01469; Song and Dhariwal, arXiv:2310.14189.
    """
    _check_pair(data, noise, sigma_low, sigma_high)
    data, noise = as_float(data), as_float(noise)
    sigma_low, sigma_high = as_float(sigma_low), as_float(sigma_high)
    prediction = consistency_fn(data + expand_like(sigma_high, data) * noise, sigma_high)
    x_low = data + expand_like(sigma_low, data) * noise
    target = _target(consistency_fn if teacher_fn is None else teacher_fn, x_low, sigma_low, sigma_high)
    return _weights(weight, sigma_low, sigma_high) * (_default_distance if distance is None else distance)(
        prediction, target
    )


def consistency_distillation_loss(
    consistency_fn: ConsistencyFunction,
    denoise: Callable[[Array, Array], Array],
    data: ArrayLike,
    noise: ArrayLike,
    sigma_low: ArrayLike,
    sigma_high: ArrayLike,
    *,
    teacher_fn: ConsistencyFunction | None = None,
    method: str = "heun",
    distance: Distance | None = None,
    weight: ArrayLike | None = None,
) -> Array:
    r"""Consistency distillation: consistency training whose lower point is one step of a diffusion model away.

    .. math:: \lambda\; d\big(f_\theta(x_{high}, \sigma_{high}),\; \mathrm{sg}[f_{\theta^-}(\hat x_{low}, \sigma_{low})]
              \big), \quad \hat x_{low} = \mathrm{step}_D(x_{high}, \sigma_{high} \to \sigma_{low})

    Args:
      consistency_fn: f(x [B, ...], sigma [B]), closed over the student's parameters and dropout key.
      denoise: D(x [B, ...], sigma [B]) -> estimate of the clean x, the frozen diffusion model.
      data: [B, ...] clean examples.
      noise: like `data`, unit normal.
      sigma_low: [B] lower levels >= 0.
      sigma_high: [B] upper levels, not below `sigma_low`; above it for the default weight.
      teacher_fn: f of the teacher's parameters; None: the student's own. Gradients never pass through it.
      method: "heun" (the paper's default) or "euler".
      distance: d(a, b) -> [B]; None: pseudo-Huber as in `consistency_training_loss`.
      weight: scalar or [B]; None: 1 / (sigma_high - sigma_low).

    Returns:
      [B] losses.

    Raises:
      ValueError: shapes do not fit, concrete levels are negative or not in order, or the method is unknown.

    References:
      Song et al., Consistency Models, arXiv:2303.01469.
    """
    _check_pair(data, noise, sigma_low, sigma_high)
    data, noise = as_float(data), as_float(noise)
    sigma_low, sigma_high = as_float(sigma_low), as_float(sigma_high)
    x_high = data + expand_like(sigma_high, data) * noise
    x_low = jax.lax.stop_gradient(diffusion.ode_step(denoise, x_high, sigma_high, sigma_low, method=method))
    prediction = consistency_fn(x_high, sigma_high)
    target = _target(consistency_fn if teacher_fn is None else teacher_fn, x_low, sigma_low, sigma_high)
    return _weights(weight, sigma_low, sigma_high) * (_default_distance if distance is None else distance)(
        prediction, target
    )


def robust_consistency_loss(
    consistency_fn: ConsistencyFunction,
    data: ArrayLike,
    noise: ArrayLike,
    sigma_low: ArrayLike,
    sigma_high: ArrayLike,
    level: ArrayLike,
    num_levels: ArrayLike,
    *,
    c: ArrayLike,
    teacher_fn: ConsistencyFunction | None = None,
    distance: Distance | None = None,
    weight: ArrayLike | None = None,
    diffusion_fraction: float = 0.25,
    diffusion_weight: float = 1.0,
) -> Array:
    r"""Latent consistency training with a Cauchy distance and a diffusion loss on the lowest levels.

    .. math:: \lambda \log\Big(1 + \frac{\|f_\theta(x_{high}) - \mathrm{sg} f_{\theta^-}(x_{low})\|_2^2}{2c^2}\Big)
              + \lambda_{diff}\,[\,i < \lfloor r N \rfloor\,]\; \overline{(f_\theta(x_{high}) - x)^2}

    The second term anchors the levels near the data, whose errors travel upwards.

    Args:
      consistency_fn: f(x [B, ...], sigma [B]), closed over the student's parameters and dropout key.
      data: [B, ...] clean (latent) examples x.
      noise: like `data`, unit normal; couple it first with `transport.minibatch_coupling`.
      sigma_low: [B] lower levels >= 0.
      sigma_high: [B] upper levels, not below `sigma_low`; above it for the default weight.
      level: [B] integer, 0-based index i of the interval.
      num_levels: current number N >= 2 of levels (may be traced).
      c: scale of the Cauchy distance, > 0 (`adaptive_robust_scale`; may be traced).
      teacher_fn: f of the teacher's parameters; None: the student's own. Gradients never pass through it.
      distance: (prediction, target) -> [B] in place of the Cauchy distance, for comparisons; `c` is then not used.
      weight: scalar or [B], for the consistency term alone; None: 1 / (sigma_high - sigma_low).
      diffusion_fraction: r in [0, 1]; intervals below floor(r N) get the diffusion term. The paper's default.
      diffusion_weight: lambda_diff >= 0.

    Returns:
      [B] losses.

    Raises:
      ValueError: shapes do not fit, or a concrete argument is out of range.

    References:
      Dao et al., Improved Training Technique for Latent Consistency Models, arXiv:2502.01441.
    """
    _check_pair(data, noise, sigma_low, sigma_high)
    data, noise = as_float(data), as_float(noise)
    sigma_low, sigma_high = as_float(sigma_low), as_float(sigma_high)
    _checks.per_example("level", level, data.shape[0])
    _checks.at_least("num_levels", num_levels, 2)
    _checks.within("diffusion_fraction", diffusion_fraction, 0, 1)
    _checks.non_negative("diffusion_weight", diffusion_weight)

    prediction = consistency_fn(data + expand_like(sigma_high, data) * noise, sigma_high)
    x_low = data + expand_like(sigma_low, data) * noise
    target = _target(consistency_fn if teacher_fn is None else teacher_fn, x_low, sigma_low, sigma_high)
    apart = robust.cauchy(prediction, target, c=c) if distance is None else distance(prediction, target)
    consistency = _weights(weight, sigma_low, sigma_high) * apart
    early = jnp.asarray(level) < jnp.floor(diffusion_fraction * as_float(num_levels))
    return consistency + diffusion_weight * jnp.where(early, robust.mean_squared(prediction, data), 0.0)


def _check_tangent(x: ArrayLike, sigma: ArrayLike, slope: ArrayLike) -> None:
    _checks.same_shape("x", x, "slope", slope)
    _checks.batched("x", x)
    _checks.per_example("sigma", sigma, jnp.shape(x)[0])


def _value_and_tangent(
    consistency_fn: ConsistencyFunction, x: ArrayLike, sigma: ArrayLike, slope: ArrayLike
) -> tuple[Array, Array]:
    _check_tangent(x, sigma, slope)
    x, sigma = as_float(x), as_float(sigma)
    return jax.jvp(consistency_fn, (x, sigma), (as_float(slope), jnp.ones_like(sigma)))


def trajectory_tangent(consistency_fn: ConsistencyFunction, x: ArrayLike, sigma: ArrayLike, slope: ArrayLike) -> Array:
    r"""Derivative of the consistency function along a trajectory, :math:`\partial_\sigma f + (\partial_x f)\,v`.

    Zero everywhere for a perfect consistency model. One forward-mode pass.

    Args:
      consistency_fn: f(x [B, ...], sigma [B]); must support forward-mode differentiation.
      x: [B, ...] noisy points.
      sigma: [B] their levels.
      slope: like `x`, dx/dsigma of the trajectory: the noise itself for consistency training, (x - D(x, sigma)) / sigma
        for distillation.

    Returns:
      Tangents, like `x`.

    Raises:
      ValueError: shapes do not fit.

    References:
      Song et al., Consistency Models, arXiv:2303.01469, section on continuous time.
    """
    return _value_and_tangent(consistency_fn, x, sigma, slope)[1]


def continuous_consistency_loss(
    consistency_fn: ConsistencyFunction,
    x: ArrayLike,
    sigma: ArrayLike,
    slope: ArrayLike,
    *,
    mode: str = "stop_gradient",
) -> Array:
    r"""Consistency loss in continuous time, with g the tangent of `trajectory_tangent`.

    `stop_gradient`: :math:`\sum \mathrm{sg}(g) \cdot f`, whose gradient is the limit of the squared-L2 loss as the
    number of levels grows (up to a factor 2 and the weight); its value has no meaning and can be negative.
    `norm`: :math:`\|g\|_2`, with gradient through g.

    Args:
      consistency_fn: f(x [B, ...], sigma [B]), closed over the student's parameters.
      x: [B, ...] noisy points.
      sigma: [B] their levels.
      slope: like `x`, dx/dsigma of the trajectory.
      mode: "stop_gradient" or "norm".

    Returns:
      [B] losses.

    Raises:
      ValueError: shapes do not fit, or the mode is unknown.

    References:
      Song et al., Consistency Models, arXiv:2303.01469, section on continuous time.
    """
    _checks.one_of("mode", mode, ("norm", "stop_gradient"))
    value, tangent = _value_and_tangent(consistency_fn, x, sigma, slope)
    if mode == "norm":
        return robust.pseudo_huber(tangent, jnp.zeros_like(tangent), c=0.0)
    return jnp.sum(jax.lax.stop_gradient(as_float(tangent)) * as_float(value), axis=per_example_axes(value))
