"""Masks that keep (True, 1) or drop (False, 0) units: how they are drawn and what they do to an array."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from mlfuncs import _checks
from mlfuncs._arrays import absolute, as_float, float_dtype, sum_over


def _drawn_shape(shape: Sequence[int], shared_axes: Sequence[int]) -> tuple[int, ...]:
    """`shape` with 1 in place of the axes along which all units share one draw."""
    for axis in shared_axes:
        if not -len(shape) <= axis < len(shape):
            raise ValueError(f"shared_axes must lie within the {len(shape)} axes of shape {tuple(shape)}, got {axis}")
    shared = {axis % len(shape) for axis in shared_axes}
    return tuple(1 if axis in shared else length for axis, length in enumerate(shape))


def bernoulli_mask(
    key: Array,
    shape: Sequence[int],
    *,
    rate: ArrayLike = 0.5,
    shared_axes: Sequence[int] = (),
    dtype: DTypeLike = bool,
) -> Array:
    r"""Independent keep-masks, :math:`m \sim \operatorname{Bernoulli}(1 - r)`.

    Args:
      key: a PRNG key. Inside `shard_map` or `pmap`, where shapes are those of a device, fold the global index of the
        examples into it: devices that share a key share their masks.
      shape: of the mask.
      rate: probability of dropping r in [0, 1]; an array that broadcasts to `shape` gives each unit its own (and is not
        checked). 0 keeps all, 1 drops all. Default 0.5, as in the paper.
      shared_axes: axes along which all units share one draw: 0 for one mask a batch, (1, 2) of [B, H, W, C] for channel
        dropout. An average over such an axis is no less random for its length.
      dtype: of the mask; bool takes a byte a unit.

    Returns:
      `shape` mask, True (1) where a unit is kept.

    Raises:
      ValueError: `rate` is a number outside [0, 1] or does not broadcast, or a shared axis is out of range.

    References:
      Srivastava et al., Dropout, JMLR 15 (2014); Inoue, Multi-Sample Dropout, arXiv:1905.09788.
    """
    _checks.rate("rate", rate)
    drawn = _drawn_shape(shape, shared_axes)
    _checks.broadcasts("rate", rate, "draws", drawn)
    return jnp.broadcast_to(_kept(key, drawn, as_float(rate)), tuple(shape)).astype(dtype)


def _kept(key: Array, shape: tuple[int, ...], rate: Array) -> Array:
    """Bool `shape`: u >= r with u in [0, 1), exactly always true at r = 0 and never at r = 1.

    Random bits are most of what a mask costs, so each word of them serves two units, half the last axis apart: as it is,
    and with its halves exchanged. Both have all their bits, and depend on each other by less than 2^-15: only where the
    leading half is a tie.
    """
    if not shape:
        return jax.random.uniform(key, shape) >= rate
    half = -(-shape[-1] // 2)
    words = jax.random.bits(key, (*shape[:-1], half), jnp.uint32)
    rates = [rate, rate]
    if rate.ndim and rate.shape[-1] > 1:
        rates = [rate[..., :half], jnp.pad(rate[..., half:], [(0, 0)] * (rate.ndim - 1) + [(0, shape[-1] % 2)])]
    # Compared before they are joined: XLA would draw once for each side of a join of the words.
    kept = [_unit(bits) >= r for bits, r in zip((words, (words << 16) | (words >> 16)), rates, strict=True)]
    return jnp.concatenate(kept, axis=-1)[..., : shape[-1]]


def _unit(bits: Array) -> Array:
    """uint32 -> float32 in [0, 1): 23 bits of mantissa behind the exponent of 1, less 1."""
    return jax.lax.bitcast_convert_type((bits >> 9) | np.float32(1).view(np.uint32), jnp.float32) - 1


def apply_mask(x: ArrayLike, mask: ArrayLike, *, rate: ArrayLike = 0.0, fill_value: ArrayLike = 0.0) -> Array:
    r"""Drops units of x and rescales the kept ones, :math:`m \odot x / (1 - r) + (1 - m) \odot f`.

    With r the probability of dropping, the expectation is x and inference needs no mask (inverted scaling).

    Args:
      x: floats of any shape.
      mask: broadcasts to `x`. Bool: x where True, fill where False, so that dropped NaN and infinities vanish. Floats in
        [0, 1] blend the two.
      rate: r, for the scale alone; 0 (default) does not rescale. May be an array that broadcasts to `x`.
      fill_value: f, what dropped units become; never scaled.

    Returns:
      like `x`, in its dtype (float32 for integers); the scale is computed in at least float32. At rate 1 every unit is
      fill, with gradient 0.

    Raises:
      ValueError: `mask`, `rate` or `fill_value` does not broadcast to `x`, or `rate` is a number outside [0, 1].

    References:
      Inoue, Multi-Sample Dropout, arXiv:1905.09788.
    """
    x, mask = jnp.asarray(x), jnp.asarray(mask)
    _checks.rate("rate", rate)
    for name, value in (("mask", mask), ("rate", rate), ("fill_value", fill_value)):
        _checks.broadcasts(name, value, "x", x.shape)
    kept = 1 - as_float(rate)
    usable = ~(kept <= 0)  # written so that NaN stays NaN
    scale = 1 / jnp.where(usable, kept, 1.0)
    fill = as_float(fill_value)
    if mask.dtype == jnp.bool_:
        alive = mask & usable
        # The inner choice keeps a dropped NaN out of the gradient of the rate.
        return jnp.where(alive, jnp.where(alive, as_float(x), 0.0) * scale, fill).astype(float_dtype(x))
    mask = jnp.where(usable, as_float(mask), 0.0)
    return (mask * (jnp.where(usable, as_float(x), 0.0) * scale) + (1 - mask) * fill).astype(float_dtype(x))


def dropout(key: Array, x: ArrayLike, *, rate: ArrayLike = 0.5, shared_axes: Sequence[int] = ()) -> Array:
    r"""Dropout with inverted scaling: `apply_mask` of a `bernoulli_mask`.

    Args:
      key: a PRNG key.
      x: floats of any shape.
      rate: probability of dropping, in [0, 1].
      shared_axes: axes along which all units share one draw.

    Returns:
      like `x`, in its dtype (float32 for integers), with expectation `x` for rates below 1.

    Raises:
      ValueError: as `bernoulli_mask`.

    References:
      Srivastava et al., Dropout, JMLR 15 (2014).
    """
    return apply_mask(x, bernoulli_mask(key, np.shape(x), rate=rate, shared_axes=shared_axes), rate=rate)


def protect(mask: ArrayLike, protected: ArrayLike) -> Array:
    """A keep-mask in which the protected units are always kept.

    Args:
      mask: bool or float keep-mask.
      protected: bool, broadcasts to `mask`: True where a unit must stay, such as the special tokens of a sequence.

    Returns:
      like `mask`.

    Raises:
      ValueError: `protected` does not broadcast to `mask`.
    """
    mask, protected = jnp.asarray(mask), jnp.asarray(protected)
    _checks.broadcasts("protected", protected, "mask", mask.shape)
    return jnp.where(protected.astype(bool), jnp.ones((), mask.dtype), mask)


def temporal_mask(
    key: Array, shape: tuple[int, int], *, rate: ArrayLike, valid: ArrayLike | None = None, min_kept: int = 0
) -> Array:
    """Keep-masks of whole time steps, independent for each example.

    Args:
      key: a PRNG key.
      shape: (B, T), examples and time steps.
      rate: probability of dropping a step, in [0, 1].
      valid: bool [B, T], False where a step is missing already: it stays dropped. None: all are there.
      min_kept: so many valid steps at least are kept, those with the largest draws. Default 0: all may be dropped, with
        probability rate^T.

    Returns:
      bool [B, T, 1], to be broadcast over features with `apply_mask(x, mask)`; no rescaling, as in the paper.

    Raises:
      ValueError: `shape` is not (B, T), `rate` outside [0, 1], `valid` of another shape, or `min_kept` outside [0, T].

    References:
      Miranda et al., Monte Carlo temporal dropout, arXiv:2504.06915.
    """
    if len(shape) != 2:
        raise ValueError(f"shape must be (examples, time steps), got {tuple(shape)}")
    _checks.rate("rate", rate)
    _checks.count("min_kept", min_kept, 0)
    if min_kept > shape[1]:
        raise ValueError(f"min_kept must be at most the {shape[1]} time steps, got {min_kept}")
    if valid is not None and np.shape(valid) != tuple(shape):
        raise ValueError(f"valid must have shape {tuple(shape)}, got {np.shape(valid)}")
    _checks.broadcasts("rate", rate, "steps", tuple(shape))
    there = jnp.ones(shape, bool) if valid is None else jnp.asarray(valid, bool)
    uniform = jnp.where(there, jax.random.uniform(key, tuple(shape)), -1.0)
    kept = uniform >= as_float(rate)
    if min_kept:
        places = jnp.argsort(jnp.argsort(-uniform, axis=1), axis=1)
        kept = kept | (places < min_kept)
    return (kept & there)[..., None]


def concrete_mask(
    uniform: ArrayLike, rate_logit: ArrayLike, *, temperature: ArrayLike = 0.1, eps: float = 1e-7
) -> Array:
    r"""Soft keep-masks with a gradient to the rate, :math:`1 - \sigma((\rho + \operatorname{logit} u) / \tau)`.

    A unit is dropped by more than one half with probability exactly :math:`\sigma(\rho)`, at every temperature.

    Args:
      uniform: draws u in [0, 1], of any shape.
      rate_logit: the logit rho of the rate, a real that can be learned; infinities keep (-inf) or drop (+inf) all.
      temperature: tau > 0; small values make masks nearly binary and the gradient noisy. Default 0.1, of concrete dropout.
      eps: draws are clipped to [eps, 1 - eps].

    Returns:
      masks in [0, 1], like `uniform`, in at least float32.

    Raises:
      ValueError: a concrete `temperature` is not > 0, or `rate_logit` does not broadcast.

    References:
      Miranda et al., arXiv:2504.06915; Gal, Hron and Kendall, Concrete Dropout, arXiv:1705.07832.
    """
    _checks.positive("temperature", temperature)
    u = jnp.clip(as_float(uniform), eps, 1 - eps)
    _checks.broadcasts("rate_logit", rate_logit, "draws", u.shape)
    logit = as_float(rate_logit) + jnp.log(u) - jnp.log1p(-u)
    return jax.nn.sigmoid(-logit / as_float(temperature))


def sample_concrete_mask(
    key: Array,
    shape: Sequence[int],
    rate_logit: ArrayLike,
    *,
    temperature: ArrayLike = 0.1,
    shared_axes: Sequence[int] = (),
) -> Array:
    """`concrete_mask` of fresh draws.

    Args:
      key: a PRNG key.
      shape: of the mask.
      rate_logit: logit of the rate.
      temperature: > 0.
      shared_axes: axes along which all units share one draw.

    Returns:
      float32 `shape` masks in [0, 1].

    Raises:
      ValueError: as `concrete_mask`, or a shared axis is out of range.

    References:
      Miranda et al., arXiv:2504.06915.
    """
    drawn = _drawn_shape(shape, shared_axes)
    # float32 whatever the data: in bfloat16, 1 - eps would round to 1.
    mask = concrete_mask(jax.random.uniform(key, drawn, jnp.float32), rate_logit, temperature=temperature)
    return jnp.broadcast_to(mask, tuple(shape))


def rate_entropy(rate_logit: ArrayLike) -> Array:
    r"""Entropy of a Bernoulli rate from its logit, :math:`\operatorname{softplus}(\rho) - \rho\,\sigma(\rho)`.

    The regulariser of concrete dropout, which keeps a learned rate from going to 0.

    Args:
      rate_logit: any shape.

    Returns:
      nats, like `rate_logit`; 0 at infinite logits.

    References:
      Gal, Hron and Kendall, Concrete Dropout, arXiv:1705.07832.
    """
    rho = jnp.abs(as_float(rate_logit))  # even in the logit; for positive ones both terms are small far out
    finite = ~jnp.isinf(rho)
    rho = jnp.where(finite, rho, 0.0)
    tail = jnp.exp(-rho)
    return jnp.where(finite, jnp.log1p(tail) + rho * tail / (1 + tail), 0.0)


def mask_rate_penalty(masks: Any, rate: ArrayLike, *, axis_name: str | None = None) -> Array:
    r"""How far relaxed masks are from dropping a fraction r, :math:`\sum_l |1 - \overline{m_l} - r|` over layers l.

    Args:
      masks: pytree of masks, one a layer; an empty tree gives 0.
      rate: r in [0, 1).
      axis_name: inside `shard_map` or `pmap`, the axis over which masks are split: means are those of the whole masks.

    Returns:
      scalar.

    Raises:
      ValueError: a concrete `rate` is outside [0, 1): a network that drops all has nothing to be inverted.

    References:
      Scheliga et al., Dropout is NOT All You Need to Prevent Gradient Leakage, arXiv:2208.06163.
    """
    _checks.rate("rate", rate, below_one=True)
    means = [
        sum_over(jnp.sum(as_float(mask)), axis_name) / sum_over(np.size(mask), axis_name)
        for mask in jax.tree.leaves(masks)
    ]
    gaps = [absolute(1 - mean - as_float(rate)) for mean in means]
    return sum(gaps, jnp.float32(0))


def project_mask(masks: Any) -> Any:
    """Clips relaxed masks to [0, 1].

    Args:
      masks: pytree of masks.

    Returns:
      like `masks`.

    References:
      Scheliga et al., arXiv:2208.06163.
    """
    return jax.tree.map(lambda mask: jnp.clip(mask, 0, 1), masks)
