"""Small array helpers that every room of the library shares."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

MOST_UNROLLED = 8  # slices of a short axis that one step of a loop over it takes
CHUNK = 32  # values of a long axis whose largest is looked at first, in a search for the k largest


def as_float(x: ArrayLike) -> Array:
    """`x` in at least float32: integers and half precision are widened, float64 stays."""
    if isinstance(x, (np.ndarray, np.integer)) and x.dtype in (np.int64, np.uint64):
        x = x.astype(np.float32)  # JAX would make int32 of them first, and wrap around
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def float_dtype(x: Array) -> Any:
    """The dtype of `x`, float32 where it holds integers: of results that keep the precision of their input."""
    return x.dtype if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.dtype(jnp.float32)


def floor_share(share: ArrayLike, total: ArrayLike) -> Array:
    """int32: floor(share * total), whole where rounding alone keeps the product from it: 0.7 of 10 is 7."""
    total = as_float(total)
    # Three roundings of float32; at least the tolerance that the same count has in Python elsewhere.
    return jnp.floor(as_float(share) * total + jnp.maximum(1e-6, 2.0**-22 * total)).astype(jnp.int32)


def per_example_axes(x: Array) -> tuple[int, ...]:
    """Every axis but the first."""
    return tuple(range(1, x.ndim))


def expand_like(value: ArrayLike, x: Array) -> Array:
    """A scalar or [B] `value`, with trailing axes added so that it broadcasts against `x` [B, ...]."""
    value = jnp.asarray(value)
    return value.reshape(value.shape + (1,) * (x.ndim - value.ndim)) if value.ndim else value


def absolute(x: Array) -> Array:
    """|x| with gradient 0 at 0, where that of `jnp.abs` is 1."""
    return x * jax.lax.stop_gradient(jnp.sign(x))


def safe_sqrt(x: Array) -> Array:
    """Square root with gradient 0, not infinity, at 0 (and value 0 below); NaN stays."""
    usable = ~(x <= 0)
    return jnp.where(usable, jnp.sqrt(jnp.where(usable, x, 1.0)), 0.0)


def squared_distances(rows: Array, points: Array) -> Array:
    """[N, M] from rows [N, D] to points [M, D], by inner products: centre both sets first."""
    cross = jnp.matmul(rows, points.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.maximum(jnp.sum(rows**2, 1)[:, None] + jnp.sum(points**2, 1)[None, :] - 2 * cross, 0)


@jax.custom_jvp
def gram(x: Array) -> Array:
    """[D, D] inner products of the columns of x [N, D], in full precision."""
    return jnp.matmul(x.T, x, precision=jax.lax.Precision.HIGHEST)


@gram.defjvp
def _gram_derivative(values: tuple[Array], changes: tuple[Array]) -> tuple[Array, Array]:
    (x,), (change,) = values, changes
    # One product, not two: the result is symmetric.
    half = jnp.matmul(x.T, change, precision=jax.lax.Precision.HIGHEST)
    return gram(x), half + half.T


def unit_vectors(x: Array, eps: float = 1e-12) -> Array:
    """`x` [..., D] over the norms of its last axis, or `eps` where that is larger: zeros stay zeros, gradients finite."""
    return x / jnp.maximum(safe_sqrt(jnp.sum(x**2, axis=-1, keepdims=True)), eps)


def top_k(x: Array, k: int) -> tuple[Array, Array]:
    """`jax.lax.top_k` to the bit, of equal values the first ones: on CPUs faster, where the last axis is long for k."""
    count = x.shape[-1] // CHUNK
    if jax.default_backend() != "cpu" or count < max(4 * k, CHUNK):
        return jax.lax.top_k(x, k)
    # Whatever is among the k largest lies in one of the k chunks with the largest values, or in what fills no chunk.
    fixed = jax.lax.stop_gradient(x)
    chunks = fixed[..., : count * CHUNK].reshape(*x.shape[:-1], count, CHUNK)
    best = jnp.sort(jax.lax.top_k(_largest(chunks), k)[1], axis=-1)[..., None]  # in their order, for ties
    within = jnp.take_along_axis(chunks, best, axis=-2).reshape(*x.shape[:-1], k * CHUNK)
    candidates = jnp.concatenate([within, fixed[..., count * CHUNK :]], axis=-1)
    chosen = jax.lax.top_k(candidates, k)[1]
    chunk = jnp.take_along_axis(best[..., 0], jnp.minimum(chosen // CHUNK, k - 1), axis=-1)
    places = jnp.where(chosen < k * CHUNK, chunk * CHUNK + chosen % CHUNK, chosen + (count - k) * CHUNK)
    return jnp.take_along_axis(x, places, axis=-1), places


def _largest(x: Array) -> Array:
    """Over the last axis, in the order of `jax.lax.top_k`: -0 below 0, and NaN at the end that its sign says."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return jnp.max(x, axis=-1)
    kind = jnp.dtype(f"int{8 * x.dtype.itemsize}")

    def turned(bits: Array) -> Array:
        """To integers in the order of the floats whose bits these are, and back."""
        return jnp.where(bits < 0, bits ^ jnp.iinfo(kind).max, bits)

    ordered = jnp.max(turned(jax.lax.bitcast_convert_type(x, kind)), axis=-1)
    return jax.lax.bitcast_convert_type(turned(ordered), x.dtype)


def example_noise(key: Array, shape: tuple[int, ...], axis_name: str | None = None) -> Array:
    """Unit normal noise [B, ...] of which that of example i depends on the key and on i alone, as `example_keys`."""
    draw = lambda example_key: jax.random.normal(example_key, shape[1:])  # noqa: E731
    return jax.vmap(draw)(example_keys(key, shape[0], axis_name))


def example_keys(key: Array, batch: int, axis_name: str | None = None) -> Array:
    """[B] keys, that of example i from `key` and i alone; i counts over the devices of `axis_name`, where given."""
    positions = jnp.arange(batch)
    if axis_name is not None:
        positions = positions + jax.lax.axis_index(axis_name) * batch
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, positions)


def sum_of_slices(function: Callable[..., Array], *arrays: Array) -> Array:
    """The sum of `function` over slices along the first axis of `arrays`, at least one: for an axis that is short.

    One pass over what follows that axis, on any device; a sum over the axis is ten times as slow in XLA on CPUs.
    """
    first, rest = (x[0] for x in arrays), tuple(x[1:] for x in arrays)
    add = lambda total, slices: (total + function(*slices), None)  # noqa: E731
    count = arrays[0].shape[0] - 1
    return jax.lax.scan(add, function(*first), rest, unroll=max(1, min(count, MOST_UNROLLED)))[0]


def map_slices(function: Callable[[Array], Array], x: Array) -> Array:
    """`function` of every slice along the first axis of `x`, which is short, without what all slices at once would hold."""
    unroll = max(1, min(x.shape[0], MOST_UNROLLED))
    return jax.lax.scan(lambda _, part: (None, function(part)), None, x, unroll=unroll)[1]


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


def sum_over(x: ArrayLike, axis_name: str | None) -> Array:
    """The sum of `x` over the devices of a `shard_map` or `pmap` axis; `x` itself where there is none."""
    return jnp.asarray(x) if axis_name is None else jax.lax.psum(x, axis_name)


def varying_axes(x: Array) -> tuple[str, ...]:
    """Axes of an enclosing `shard_map` over which `x` may differ; none outside, or where it does not track them."""
    kind = jax.typeof(x)
    # The name of this property has changed between releases of JAX.
    axes: Iterable[str] = (
        getattr(kind, "vma", None) or getattr(getattr(kind, "manual_axis_type", None), "varying", None) or ()
    )
    return tuple(sorted(axes))


def vary_with(x: Array, other: Array) -> Array:
    """`x` as the start of a loop whose values depend on `other`: inside `shard_map` both then vary over the same axes."""
    axes = tuple(axis for axis in varying_axes(other) if axis not in varying_axes(x))
    return jax.lax.pcast(x, axes, to="varying") if axes else x


def own_rows(values: Array, batch: int, axis_name: str | None) -> Array:
    """This device's `batch` rows of a result [N, ...] for the global batch; all of it where there is no axis."""
    if axis_name is None:
        return values
    return jax.lax.dynamic_slice_in_dim(values, jax.lax.axis_index(axis_name) * batch, batch)
