"""What the losses on logits share: checks, log-probabilities, and large inputs taken block by block."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from mlfuncs import _checks
from mlfuncs._arrays import as_float, vary_with

BLOCK = 2**20  # values that a CPU holds in float32 at once
ON_ACCELERATORS = 8  # times as many: each of their programs wants work for all its cores
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


def scaled(logits: Array, temperature: ArrayLike) -> Array:
    """logits / T in at least float32."""
    x = as_float(logits)
    if _checks.is_concrete(temperature):
        return x / temperature
    # T changes nothing of a masked class: infinity stays out of the derivative in it.
    masked = jnp.isneginf(x)
    return jnp.where(masked, x, jnp.where(masked, 0.0, x) / temperature)


def _exponentials(z: Array) -> tuple[Array, Array, Array]:
    """The largest of z [..., 1], e^(z - largest), and their sum [..., 1]; 0, zeros and 1 where every class is masked."""
    top = jax.lax.stop_gradient(jnp.max(z, axis=-1, keepdims=True))
    top = jnp.where(jnp.isneginf(top), 0.0, top)
    powers = jnp.exp(z - top)
    total = jnp.sum(powers, axis=-1, keepdims=True)
    return top, powers, jnp.where(total <= 0, 1.0, total)


def normalizers(logits: Array, temperature: ArrayLike = 1.0) -> tuple[Array, Array]:
    """The largest z = logits / T and log sum exp(z - largest), each [..., 1]; 0 and 0 where every class is masked."""
    top, _, total = _exponentials(scaled(logits, temperature))
    return top, jnp.log(total)


def log_sum_exp(logits: Array) -> Array:
    """[...]: log sum exp over the classes, -inf where every one is masked."""
    top, log_total = normalizers(logits)
    return jnp.where(jnp.max(logits, axis=-1) == -jnp.inf, -jnp.inf, (top + log_total)[..., 0])


def softmax(logits: Array, temperature: ArrayLike = 1.0) -> tuple[Array, Array]:
    """p = softmax(logits / T) and log p in at least float32; 0 and -inf throughout where every class is masked."""
    z = scaled(logits, temperature)
    top, powers, total = _exponentials(z)
    # Not exp(log p): that takes every exponential twice, which is most of the time of a loss on CPUs.
    return powers / total, (z - top) - jnp.log(total)


def log_probabilities(logits: Array, temperature: ArrayLike = 1.0) -> Array:
    """log softmax(logits / T) in at least float32; -inf throughout where every class is masked."""
    return softmax(logits, temperature)[1]


def at_label(values: Array, labels: Array) -> Array:
    """[...]: the entry of values [..., C] at the label of each row."""
    return jnp.take_along_axis(values, labels[..., None], axis=-1)[..., 0]


def weighted(weight: ArrayLike, value: Array) -> Array:
    """weight * value, and 0 where the weight is 0 whatever the value: 0 * inf is nothing here."""
    off = jnp.asarray(weight) == 0
    return jnp.where(off, 0.0, weight * jnp.where(off, 0.0, value))


def with_gradients(value: Callable[..., Array], *gradients: Callable[..., Array]) -> Callable[..., Array]:
    """`value` [...] of arrays [..., C] and scalars, with its derivatives given: gradients[k](*arguments) is that of each row
    in argument k, shaped like it ([...] for a scalar). Rows may have more axes than one. Arguments after them have none.
    """
    function = jax.custom_jvp(value)

    def rule(arguments: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
        result = function(*arguments)
        change = jnp.zeros_like(result)
        for gradient, tangent in zip(gradients, tangents, strict=False):
            if not isinstance(tangent, SymbolicZero):
                product = gradient(*arguments) * tangent
                change += jnp.sum(product, axis=tuple(range(result.ndim, product.ndim)))
        return result, change.astype(result.dtype)

    function.defjvp(rule, symbolic_zeros=True)
    return function


def block() -> int:
    """How many values are held in float32 at once: by the kind of JAX's default device, and no number depends on it."""
    return BLOCK if jax.default_backend() == "cpu" else ON_ACCELERATORS * BLOCK


def pieces(length: int, least: int, most: int) -> int:
    """Into how many pieces a length is cut: of `least` up to twice as many the first that divides it, else `least`."""
    return next((n for n in range(least, min(2 * least, most) + 1) if length % n == 0), least)


def over_rows(
    function: Callable[..., Array], *arrays: Array, axes: int | None = None, held: int | None = None
) -> Array:
    """`function` of arrays [..., C] (or [...]) that works row by row, on a block of rows at a time where they are many.

    A block takes every n-th row, so that a batch that is split over devices stays split. Where a row gives one number, its
    derivative is made beside it, in the same pass and in the dtype of the input: nothing is computed twice.

    `axes` is how many axes the rows have, by default all but the last of the first array; `held` how many values all rows at
    once would hold, by default the size of that array.
    """
    axes = arrays[0].ndim - 1 if axes is None else axes
    rows = math.prod(arrays[0].shape[:axes])
    blocks = min(-(-(arrays[0].size if held is None else held) // block()), MOST_BLOCKS, rows)
    if blocks <= 1:
        return function(*arrays)
    blocks = pieces(rows, blocks, rows)
    # Inside `shard_map` one of them may be the same on all devices; a block of it is not told apart from the others'.
    arrays = tuple(functools.reduce(vary_with, arrays, x) for x in arrays)
    first = (x.reshape(rows, *x.shape[axes:])[: -(-rows // blocks)] for x in arrays)
    closed, constants = jax.closure_convert(function, *first)

    def mapped(constants: list[Array], *arrays: Array) -> Array:
        whole = tuple(_split(x, axes, blocks) for x in arrays)
        block = jax.checkpoint(lambda index: closed(*block_at(whole, index), *constants))
        return _join(jnp.moveaxis(jax.lax.map(block, jnp.arange(blocks)), 0, 1), arrays[0].shape[:axes])

    result = jax.eval_shape(mapped, constants, *arrays)
    if result.ndim != axes or not jnp.issubdtype(result.dtype, jnp.inexact):
        return mapped(constants, *arrays)
    values = jax.custom_jvp(mapped)

    def rule(arguments: Any, tangents: Any) -> tuple[Array, Array]:
        (constants, *arrays), (of_constants, *changes) = arguments, tangents
        moving = [k for k, change in enumerate(changes) if not isinstance(change, SymbolicZero)]
        whole = tuple(_split(x, axes, blocks) for x in arrays)
        # Gradients in the shape of the changes where that has as many values: a product can then take their place in memory.
        shapes = [arrays[k].shape if arrays[k].size == whole[k].size else whole[k].shape for k in moving]
        result, gradients = _values_and_gradients(closed, moving, shapes)(constants, whole)
        result = _join(result, arrays[0].shape[:axes])
        change = jnp.zeros_like(result)
        for k, gradient in zip(moving, gradients, strict=True):
            gradient = gradient if gradient.shape == arrays[k].shape else _join(gradient, arrays[k].shape[:axes])
            product = gradient.astype(result.dtype) * changes[k].astype(result.dtype)
            change += jnp.sum(product, axis=tuple(range(axes, product.ndim)))
        if any(not isinstance(t, SymbolicZero) for t in of_constants):
            pairs = zip(constants, of_constants, strict=True)
            given = [jnp.zeros_like(c) if isinstance(t, SymbolicZero) else t for c, t in pairs]
            change += jax.jvp(lambda *c: mapped(list(c), *arrays), tuple(constants), tuple(given))[1]
        return result, change

    values.defjvp(rule, symbolic_zeros=True)
    return values(constants, *arrays)


def _split(x: Array, axes: int, blocks: int) -> Array:
    """[n, blocks, ...] of an array whose first `axes` axes hold the rows; rows of zeros at the end where it needs them."""
    x = x.reshape(-1, *x.shape[axes:])
    rest = -x.shape[0] % blocks
    x = jnp.pad(x, [(0, rest)] + [(0, 0)] * (x.ndim - 1)) if rest else x
    return x.reshape(-1, blocks, *x.shape[1:])


def _join(x: Array, leading: tuple[int, ...]) -> Array:
    """What `_split` has split."""
    x = x.reshape(-1, *x.shape[2:])
    return x[: math.prod(leading)].reshape(*leading, *x.shape[1:])


def block_at(whole: tuple[Array, ...], index: Array) -> tuple[Array, ...]:
    """The slices at a place of the second axis."""

    def at(x: Array) -> Array:
        # Without the barrier the conversion to float32 moves out of the loop, to the whole at once. One for each array: JAX
        # 0.12 cannot transpose one through which only some of several arrays are differentiated.
        held, place = jax.lax.optimization_barrier((x, index))
        return jax.lax.dynamic_index_in_dim(held, place, 1, keepdims=False)

    return tuple(map(at, whole))


def _values_and_gradients(
    function: Callable[..., Array], moving: list[int], shapes: list[tuple[int, ...]]
) -> Callable[[list[Array], tuple[Array, ...]], tuple[Array, list[Array]]]:
    """(constants, whole) -> [n, blocks] values of `function(*block, *constants)`, one a row, and the derivative of each in
    its row of the `moving` ones among the whole arrays [n, blocks, ...], in the shapes given.
    """

    def block(constants: list[Array], whole: tuple[Array, ...], index: Array) -> tuple[Array, list[Array]]:
        taken = dict(enumerate(block_at(whole, index)))
        value, back = jax.vjp(
            lambda moved: function(*(taken | moved).values(), *constants), {k: taken[k] for k in moving}
        )
        # Rows do not see each other: ones give the derivative of every row at once.
        (rows,) = back(vary_with(jnp.ones_like(value), value))
        return value, [rows[k] for k in moving]

    def in_place(constants: list[Array], whole: tuple[Array, ...]) -> tuple[Array, list[Array]]:
        kind = jax.eval_shape(block, constants, whole, jnp.int32(0))[0]
        values = jnp.zeros((*kind.shape, whole[0].shape[1]), kind.dtype)
        gradients = [
            vary_with(jnp.zeros(shape, whole[k].dtype), whole[k]) for k, shape in zip(moving, shapes, strict=True)
        ]
        start = (jnp.int32(0), functools.reduce(vary_with, (*whole, *constants), values), gradients)

        def step(state: tuple[Array, Array, list[Array]]) -> tuple[Array, Array, list[Array]]:
            index, values, gradients = state
            value, rows = block(constants, whole, index)
            values = jax.lax.dynamic_update_index_in_dim(values, value, index, 1)
            parts = zip(moving, gradients, rows, strict=True)
            placed = [_put(x, own, whole[k].shape, index) for k, x, own in parts]
            return index + 1, values, placed

        # Not a scan: under a derivative JAX takes what is constant out of its body, and XLA then no longer sees that value
        # and derivative share their exponentials.
        _, values, gradients = jax.lax.while_loop(lambda state: state[0] < whole[0].shape[1], step, start)
        return values, gradients

    def differentiable(constants: list[Array], whole: tuple[Array, ...]) -> tuple[Array, list[Array]]:
        found = jax.lax.map(lambda index: block(constants, whole, index), jnp.arange(whole[0].shape[1]))
        values, gradients = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), found)
        return values, [x.reshape(shape) for x, shape in zip(gradients, shapes, strict=True)]

    both = jax.custom_jvp(in_place)
    both.defjvp(lambda arguments, changes: jax.jvp(differentiable, arguments, changes))
    return both


def _put(x: Array, rows: Array, split: tuple[int, ...], index: Array) -> Array:
    """`x` with `rows` in the place of a block of it in its `split` shape."""
    return jax.lax.dynamic_update_index_in_dim(x.reshape(split), rows, index, 1).reshape(x.shape)
