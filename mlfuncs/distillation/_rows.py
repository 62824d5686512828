"""What the losses on logits share: checks, log-probabilities, and large inputs taken block by block."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks
from mlfuncs._arrays import as_float

BLOCK = 2**20  # values that are held in float32 at once
MOST_BLOCKS = 64  # so that the rows of a block can still be split over many devices


def check_temperature(temperature: ArrayLike, name: str = "temperature") -> None:
    _checks.rank(name, temperature, 0)
    _checks.positive(name, temperature)


def check_pair(
    student: ArrayLike, teacher: ArrayLike, names: tuple[str, str] = ("student_logits", "teacher_logits")
) -> tuple[Array, Array]:
    """Two arrays [..., C] of one shape, C >= 1."""
    _checks.same_shape(names[0], student, names[1], teacher)
    check_classes(names[0], student)
    return jnp.asarray(student), jnp.asarray(teacher)


def check_classes(name: str, logits: ArrayLike, least: int = 1) -> None:
    if np.ndim(logits) < 1 or np.shape(logits)[-1] < least:
        raise ValueError(f"{name} must have at least {least} classes on its last axis, got shape {np.shape(logits)}")


def check_integers(name: str, values: ArrayLike, count: int | None = None) -> Array:
    """Integers, in [0, count) where a count is given and they are concrete."""
    _checks.integers(name, values)
    if count is not None:
        _checks.within(name, values, 0, count - 1)
    return jnp.asarray(values)


def check_labels(labels: ArrayLike, leading: tuple[int, ...], classes: int) -> Array:
    """Integers of shape `leading`, one class a row."""
    checked = check_integers("labels", labels, classes)
    if checked.shape != leading:
        raise ValueError(f"labels must have shape {leading}, one a row of logits, got {checked.shape}")
    return checked


def normalizers(logits: Array, temperature: ArrayLike = 1.0) -> tuple[Array, Array]:
    """The largest z = logits / T and log sum exp(z - largest), each [..., 1]; 0 and 0 where every class is masked."""
    z = as_float(logits) / temperature
    top = jax.lax.stop_gradient(jnp.max(z, axis=-1, keepdims=True))
    top = jnp.where(jnp.isneginf(top), 0.0, top)
    total = jnp.sum(jnp.exp(z - top), axis=-1, keepdims=True)
    return top, jnp.log(jnp.where(total <= 0, 1.0, total))


def log_probabilities(logits: Array, temperature: ArrayLike = 1.0) -> Array:
    """log softmax(logits / T) in at least float32; -inf throughout where every class is masked."""
    top, log_total = normalizers(logits, temperature)
    return (as_float(logits) / temperature - top) - log_total


def at_label(values: Array, labels: Array) -> Array:
    """[...]: the entry of values [..., C] at the label of each row."""
    return jnp.take_along_axis(values, labels[..., None], axis=-1)[..., 0]


def weighted(weight: ArrayLike, value: Array) -> Array:
    """weight * value, and 0 where the weight is 0 whatever the value: 0 * inf is nothing here."""
    off = jnp.asarray(weight) == 0
    return jnp.where(off, 0.0, weight * jnp.where(off, 0.0, value))


def over_rows(function: Callable[..., Array], *arrays: Array) -> Array:
    """`function` of arrays [..., C] (or [...]) that works row by row, on a block of rows at a time where they are many.

    Only inputs are kept for the backward pass, which goes block by block too. A block takes every n-th row, so that a
    batch that is split over devices stays split.
    """
    leading = arrays[0].shape[:-1]
    rows = math.prod(leading)
    blocks = min(-(-arrays[0].size // BLOCK), MOST_BLOCKS, rows)
    if blocks <= 1:
        return function(*arrays)
    blocks = next((n for n in range(blocks, min(2 * blocks, rows) + 1) if rows % n == 0), blocks)
    rest = -rows % blocks

    def split(x: Array) -> Array:
        x = x.reshape(rows, *x.shape[len(leading) :])
        x = jnp.pad(x, [(0, rest)] + [(0, 0)] * (x.ndim - 1)) if rest else x
        return x.reshape(-1, blocks, *x.shape[1:])

    whole = tuple(split(x) for x in arrays)

    @jax.checkpoint
    def block(index: Array) -> Array:
        # Without the barrier the conversion to float32 moves out of the loop, to all rows at once.
        held, index = jax.lax.optimization_barrier((whole, index))
        return function(*(jax.lax.dynamic_index_in_dim(x, index, 1, keepdims=False) for x in held))

    values = jnp.moveaxis(jax.lax.map(block, jnp.arange(blocks)), 0, 1)
    return values.reshape(rows + rest, *values.shape[2:])[:rows].reshape(*leading, *values.shape[2:])
