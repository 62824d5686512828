"""Multi-sample dropout: several masks of the same features through one head, and the mean of their losses."""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks
from mlfuncs._arrays import as_float
from mlfuncs.dropout.masks import apply_mask, bernoulli_mask

Head = Callable[[Array], Array]
Loss = Callable[[Array, Array], Array]
# Of masks, and of the results of each product, that wait for the backward pass; more are made again there, which is slower.
KEPT_BYTES = 2**23
PRODUCTS = ("dot_general", "conv_general_dilated")


def multi_sample_masks(
    key: Array, num_samples: int, shape: Sequence[int], *, rate: ArrayLike = 0.5, shared_axes: Sequence[int] = ()
) -> Array:
    """One independent keep-mask for each dropout sample.

    Sample j is drawn from `fold_in(key, j)`: it is the same for every number of samples.

    Args:
      key: a PRNG key.
      num_samples: M >= 1.
      shape: of one mask, such as (B, D).
      rate: probability of dropping, in [0, 1).
      shared_axes: axes of `shape` along which all units share one draw.

    Returns:
      bool [M, *shape].

    Raises:
      ValueError: `num_samples` below 1, `rate` outside [0, 1), or a shared axis out of range.

    References:
      Inoue, Multi-Sample Dropout, arXiv:1905.09788.
    """
    _checks.count("num_samples", num_samples)
    _checks.rate("rate", rate, below_one=True)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(num_samples))
    return jax.vmap(lambda key: bernoulli_mask(key, shape, rate=rate, shared_axes=shared_axes))(keys)


def multi_sample_outputs(head: Head, features: ArrayLike, masks: ArrayLike, *, rate: ArrayLike) -> Array:
    r"""The shared head on every dropout sample, :math:`z_j = g(m_j \odot h / (1 - r))`.

    Args:
      head: `head(features [B, ...]) -> outputs [B, ...]`, g, the same for every sample.
      features: [B, ...], h.
      masks: [M, B or 1, ...] keep-masks, such as those of `multi_sample_masks`.
      rate: r in [0, 1) that the masks were drawn with.

    Returns:
      [M, B, ...] outputs.

    Raises:
      ValueError: `rate` outside [0, 1), no masks, or masks that do not fit the features.

    References:
      Inoue, arXiv:1905.09788.
    """
    _checks.rate("rate", rate, below_one=True)
    features, masks = jnp.asarray(features), jnp.asarray(masks)
    _checks.batched("features", features)
    if masks.ndim != features.ndim + 1 or masks.shape[0] < 1 or masks.shape[1] not in (1, features.shape[0]):
        raise ValueError(
            f"masks must have shape [samples, {features.shape[0]} or 1, ...] for features of shape {features.shape}, "
            f"got {masks.shape}"
        )
    return jax.vmap(lambda mask: head(apply_mask(features, mask, rate=rate)))(masks)


def _per_example(loss_fn: Loss, outputs: Array, targets: ArrayLike) -> Array:
    losses = loss_fn(outputs, jnp.asarray(targets))
    if np.shape(losses) != outputs.shape[:1]:
        raise ValueError(f"loss_fn must give one loss per example, {outputs.shape[:1]}, got {np.shape(losses)}")
    return as_float(losses)


def multi_sample_loss(loss_fn: Loss, sample_outputs: ArrayLike, targets: ArrayLike) -> Array:
    r"""Mean over samples of the losses, :math:`\ell_i = \frac{1}{M} \sum_j \ell(z_{j,i}, y_i)`.

    Not the loss of the averaged outputs, which for a convex loss is smaller and regularises less.

    Args:
      loss_fn: `loss_fn(outputs [B, ...], targets [B, ...]) -> [B]`.
      sample_outputs: [M, B, ...].
      targets: [B, ...], the same for every sample.

    Returns:
      [B] losses, in at least float32.

    Raises:
      ValueError: no samples, or `loss_fn` does not give [B].

    References:
      Inoue, arXiv:1905.09788.
    """
    outputs = jnp.asarray(sample_outputs)
    if outputs.ndim < 2 or outputs.shape[0] < 1:
        raise ValueError(f"sample_outputs must have shape [samples, B, ...], got {outputs.shape}")
    return jnp.mean(jax.vmap(lambda one: _per_example(loss_fn, one, targets))(outputs), axis=0)


def multi_sample_dropout_loss(
    key: Array,
    head: Head,
    features: ArrayLike,
    targets: ArrayLike,
    loss_fn: Loss,
    *,
    num_samples: int = 8,
    rate: ArrayLike = 0.5,
    shared_axes: Sequence[int] = (),
) -> Array:
    """Multi-sample dropout in one call that never holds more than one sample.

    Equal to `multi_sample_loss` of `multi_sample_outputs` of `multi_sample_masks`. Samples are made one after the other
    and made again in the backward pass: memory does not grow with `num_samples`, but for what is dear to make and small,
    up to 8 MiB each: the masks, as bytes or else as bits, and results of products, such as the outputs of a linear head.

    Args:
      key: a PRNG key.
      head: `head(features [B, ...]) -> outputs [B, ...]`.
      features: [B, ...].
      targets: [B, ...].
      loss_fn: `loss_fn(outputs, targets) -> [B]`.
      num_samples: M >= 1. Default 8, beyond which the paper gains little; 1 is plain dropout.
      rate: probability of dropping, in [0, 1). Default 0.5.
      shared_axes: axes of `features` along which all units share one draw.

    Returns:
      [B] losses, in at least float32.

    Raises:
      ValueError: `num_samples` below 1, `rate` outside [0, 1), or `loss_fn` does not give [B].

    References:
      Inoue, Multi-Sample Dropout for Accelerated Training and Better Generalization, arXiv:1905.09788.
    """
    _checks.count("num_samples", num_samples)
    _checks.rate("rate", rate, below_one=True)
    features = jnp.asarray(features)
    _checks.batched("features", features)

    # A loop prevents the elimination of common subexpressions already.
    again = partial(jax.checkpoint, prevent_cse=False, policy=partial(_is_small_product, num_samples))

    def draw(index: Array) -> Array:
        return bernoulli_mask(jax.random.fold_in(key, index), features.shape, rate=rate, shared_axes=shared_axes)

    def masked(mask: Array) -> Array:
        return _per_example(loss_fn, head(apply_mask(features, mask, rate=rate)), targets)

    if num_samples * features.size <= KEPT_BYTES:
        kept = again(masked)
        sample = lambda index: kept(draw(index))  # noqa: E731
    elif num_samples * features.size <= 8 * KEPT_BYTES:
        kept = again(lambda bits: masked(_unpack(bits, features.shape)))
        sample = lambda index: kept(_pack(draw(index)))  # noqa: E731
    else:
        sample = again(lambda index: masked(draw(index)))
    # [M, B] losses are nothing beside [B, D] features.
    return jnp.mean(jax.lax.map(sample, jnp.arange(num_samples)), axis=0)


def _is_small_product(num_samples: int, primitive: Any, *operands: Any, **parameters: Any) -> bool:
    """Whether all samples' results of this operation may be kept: a policy of `jax.checkpoint`."""
    if primitive.name not in PRODUCTS:
        return False
    result = jax.eval_shape(partial(primitive.bind, **parameters), *operands)
    return bool(num_samples * result.size * result.dtype.itemsize <= KEPT_BYTES)


def _pack(mask: Array) -> Array:
    """Bool [..., D] as uint8 [..., D / 8 rounded up]; bit k holds the k-th eighth of the axis, which is fast."""
    size = -(-mask.shape[-1] // 8)
    mask = jnp.pad(mask, [(0, 0)] * (mask.ndim - 1) + [(0, 8 * size - mask.shape[-1])])
    eighths = [mask[..., k * size : (k + 1) * size].astype(jnp.uint8) << k for k in range(8)]
    return reduce(jnp.bitwise_or, eighths)


def _unpack(bits: Array, shape: tuple[int, ...]) -> Array:
    eighths = [(bits >> k) & 1 for k in range(8)]
    return jnp.concatenate(eighths, axis=-1)[..., : shape[-1]].astype(bool)


def expected_squared_loss(residual: ArrayLike, hidden: ArrayLike, kernel: ArrayLike, *, rate: ArrayLike) -> Array:
    r"""Exact expectation over dropout masks of the squared error of a linear layer.

    .. math:: E \| R - ((h \odot V) / (1-r)) B \|^2 = \| R - h B \|^2 + \frac{r}{1-r} \sum_k h_k^2 \| B_k \|^2

    Args:
      residual: [B, n], what the layer should give, R.
      hidden: [B, k], its input h, which is masked.
      kernel: [k, n], B.
      rate: probability of dropping r, in [0, 1).

    Returns:
      [B], in at least float32.

    Raises:
      ValueError: shapes that do not fit, or `rate` outside [0, 1).

    References:
      Huang and Balestriero, ALLoRA, arXiv:2410.09692.
    """
    _checks.rate("rate", rate, below_one=True)
    for name, value in (("residual", residual), ("hidden", hidden), ("kernel", kernel)):
        _checks.rank(name, value, 2)
    expected = (np.shape(residual)[0], np.shape(kernel)[0])
    if np.shape(hidden) != expected or np.shape(residual)[1] != np.shape(kernel)[1]:
        raise ValueError(
            f"residual {np.shape(residual)}, hidden {np.shape(hidden)} and kernel {np.shape(kernel)} do not fit: "
            "[B, n], [B, k] and [k, n]"
        )
    r, h, w = as_float(residual), as_float(hidden), as_float(kernel)
    plain = jnp.sum((r - jnp.matmul(h, w, precision=jax.lax.Precision.HIGHEST)) ** 2, axis=1)
    noise = jnp.sum(h**2 * jnp.sum(w**2, axis=1), axis=1)
    rate = as_float(rate)
    return plain + rate / (1 - rate) * noise
