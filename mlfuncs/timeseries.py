"""Sequences in continuous and discrete time."""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks
from mlfuncs._arrays import as_float, sum_over


def masked_mean(values: ArrayLike, valid: ArrayLike, *, axis_name: str | None = None) -> Array:
    """Mean over the valid entries.

    Args:
      values: any shape.
      valid: bool, [B, T] for values [B, T, ...]; axes of 1 broadcast, as those of a `temporal_mask` [B, T, 1].
      axis_name: inside `shard_map` or `pmap`, the axis over which the values are split: the mean is that of all.

    Returns:
      scalar; 0 where nothing is valid. What is not valid, NaN too, counts for nothing, also in gradients.

    Raises:
      ValueError: `valid` does not fit `values`.

    References:
      Wellmer and Kwok, Dropout's Dream Land, arXiv:2109.08342.
    """
    values, valid = as_float(values), jnp.asarray(valid, bool)
    valid = valid.reshape(valid.shape + (1,) * (values.ndim - valid.ndim))
    _checks.broadcasts("valid", valid, "values", values.shape)
    valid = jnp.broadcast_to(valid, values.shape)
    count = sum_over(jnp.sum(valid), axis_name)
    return sum_over(jnp.sum(jnp.where(valid, values, 0.0)), axis_name) / jnp.maximum(count, 1)
