"""Small array helpers that every room of the library shares."""

from collections.abc import Iterable

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


def safe_sqrt(x: Array) -> Array:
    """Square root with gradient 0, not infinity, at 0 (and value 0 below); NaN stays."""
    usable = ~(x <= 0)
    return jnp.where(usable, jnp.sqrt(jnp.where(usable, x, 1.0)), 0.0)


def gather_batch(x: Array, axis_name: str | None) -> Array:
    """The global batch [N, ...] of the shards along a `shard_map` or `pmap` axis; `x` itself where there is none."""
    if axis_name is None:
        return x
    return gather_over(x, axis_name).reshape(-1, *x.shape[1:])


def gather_over(x: Array, axes: str | tuple[str, ...]) -> Array:
    """[number of devices, ...]: `x` of every device along `axes`."""
    # A sum of disjoint parts, not all_gather: shard_map then knows that the result does not vary over the axis.
    parts = jnp.zeros((jax.lax.axis_size(axes), *x.shape), x.dtype).at[jax.lax.axis_index(axes)].set(x)
    return jax.lax.psum(parts, axes)


def varying_axes(x: Array) -> tuple[str, ...]:
    """Axes of an enclosing `shard_map` over which `x` may differ; none outside, or where it does not track them."""
    kind = jax.typeof(x)
    # The name of this property has changed between releases of JAX.
    axes: Iterable[str] = (
        getattr(kind, "vma", None) or getattr(getattr(kind, "manual_axis_type", None), "varying", None) or ()
    )
    return tuple(sorted(axes))
