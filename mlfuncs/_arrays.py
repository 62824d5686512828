"""Small array helpers that every room of the library shares."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike


def as_float(x: ArrayLike) -> Array:
    """`x` in at least float32: integers and half precision are widened, float64 stays."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def per_example_axes(x: Array) -> tuple[int, ...]:
    """Every axis but the first."""
    return tuple(range(1, x.ndim))


def expand_like(value: ArrayLike, x: Array) -> Array:
    """A scalar or [B] `value`, with trailing axes added so that it broadcasts against `x` [B, ...]."""
    value = jnp.asarray(value)
    return value.reshape(value.shape + (1,) * (x.ndim - value.ndim)) if value.ndim else value


def gather_batch(x: Array, axis_name: str | None) -> Array:
    """The global batch [N, ...] of the shards along a `shard_map` or `pmap` axis; `x` itself where there is none."""
    return x if axis_name is None else jax.lax.all_gather(x, axis_name, axis=0, tiled=True)
