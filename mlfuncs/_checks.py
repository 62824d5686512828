"""Checks at the door of public functions: what is known without running the computation raises `ValueError`.

Shapes are always known. Values are checked only when concrete: inside `jit`, `grad` or `vmap` a traced value passes, so
checks cost nothing in compiled code.
"""

from collections.abc import Callable, Collection
from typing import Any

import jax
import numpy as np


def is_concrete(value: Any) -> bool:
    """Whether `value` can be looked at now, outside a trace."""
    return not isinstance(value, jax.core.Tracer)


def _require(name: str, value: Any, holds: Callable[[np.ndarray], Any], rule: str) -> None:
    # NaN passes every rule: it is the caller's data, and is never hidden.
    if is_concrete(value):
        array = np.asarray(value)
        if array.dtype == object:
            raise ValueError(f"{name} must be a number or an array, got {value!r}")
        # ml_dtypes (bfloat16) know no isnan in NumPy: compare in float64.
        array = array.astype(np.float64)
        if not np.all(holds(array) | np.isnan(array)):
            raise ValueError(f"{name} must be {rule}, got {value!r}")


def positive(name: str, value: Any) -> None:
    _require(name, value, lambda v: v > 0, "> 0")


def non_negative(name: str, value: Any) -> None:
    _require(name, value, lambda v: v >= 0, ">= 0")


def within(name: str, value: Any, low: float, high: float) -> None:
    _require(name, value, lambda v: (v >= low) & (v <= high), f"in [{low:g}, {high:g}]")


def within_half_open(name: str, value: Any, low: float, high: float) -> None:
    _require(name, value, lambda v: (v > low) & (v <= high), f"in ({low:g}, {high:g}]")


def not_nan(name: str, value: Any) -> None:
    """For choices, where NaN would win or lose without a word."""
    if is_concrete(value) and np.isnan(np.asarray(value, np.float64)).any():
        raise ValueError(f"{name} must not hold NaN")


def at_least(name: str, value: Any, low: float) -> None:
    _require(name, value, lambda v: v >= low, f">= {low:g}")


def ordered(low_name: str, low: Any, high_name: str, high: Any, *, strict: bool = True) -> None:
    """`low < high` (or `<=` when not strict), where both are concrete."""
    if is_concrete(low) and is_concrete(high):
        a, b = np.asarray(low, np.float64), np.asarray(high, np.float64)
        if np.any(a >= b if strict else a > b):
            raise ValueError(f"{low_name} must be {'<' if strict else '<='} {high_name}, got {low!r} and {high!r}")


def count(name: str, value: Any, low: int = 1) -> None:
    """A Python (or NumPy) integer >= `low` that decides a shape, so it can't be traced."""
    if not is_concrete(value):
        raise ValueError(f"{name} decides a shape and must be a Python integer, got a traced value")
    if isinstance(value, bool) or np.ndim(value) != 0 or int(value) != value or int(value) < low:
        raise ValueError(f"{name} must be an integer >= {low}, got {value!r}")


def integers(name: str, value: Any) -> None:
    """Known from the dtype, so traced values are checked too; bool is not an integer."""
    dtype = value.dtype if hasattr(value, "dtype") else np.asarray(value).dtype
    if not jax.dtypes.issubdtype(dtype, np.integer):
        raise ValueError(f"{name} must hold integers, got {dtype}")


def same_shape(first_name: str, first: Any, second_name: str, second: Any) -> None:
    if np.shape(first) != np.shape(second):
        raise ValueError(
            f"{first_name} and {second_name} must have one shape, got {np.shape(first)} and {np.shape(second)}"
        )


def rank(name: str, value: Any, expected: int) -> None:
    if np.ndim(value) != expected:
        raise ValueError(f"{name} must have {expected} axes, got shape {np.shape(value)}")


def batched(name: str, value: Any) -> None:
    """At least one axis: the batch."""
    if np.ndim(value) < 1:
        raise ValueError(f"{name} must have a leading batch axis, got a scalar")


def per_example(name: str, value: Any, batch: int) -> None:
    if np.shape(value) != (batch,):
        raise ValueError(f"{name} must have shape ({batch},), one value per example, got {np.shape(value)}")


def scalar_or_per_example(name: str, value: Any, batch: int) -> None:
    if np.shape(value) not in ((), (batch,)):
        raise ValueError(f"{name} must be a scalar or have shape ({batch},), got {np.shape(value)}")


def one_of(name: str, value: Any, known: Collection[str]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(sorted(known))}, got {value!r}")


def rate(name: str, value: Any, *, below_one: bool = False) -> None:
    """A probability: one number in [0, 1], or in [0, 1), and not NaN. Arrays of rates are data: they are not looked at."""
    if is_concrete(value) and np.ndim(value) == 0:
        number = float(np.asarray(value, np.float64))
        if not (0 <= number < 1 or (number == 1 and not below_one)):
            raise ValueError(f"{name} must be in [0, {'1)' if below_one else '1]'}, got {value!r}")


def broadcasts(name: str, value: Any, onto: str, shape: tuple[int, ...]) -> None:
    """`value` broadcasts to `shape` without enlarging it."""
    own = np.shape(value)
    if len(own) > len(shape) or any(n not in (1, m) for n, m in zip(own[::-1], shape[::-1], strict=False)):
        raise ValueError(f"{name} of shape {own} does not broadcast to {onto} of shape {shape}")


def same_structure(first_name: str, first: Any, second_name: str, second: Any) -> None:
    """Two trees with the same nodes; shapes of leaves are not looked at."""
    structures: list[Any] = [jax.tree.structure(first), jax.tree.structure(second)]
    if structures[0] != structures[1]:
        raise ValueError(f"{second_name} must be a tree like {first_name}, got {structures[1]} for {structures[0]}")


def same_trees(first_name: str, first: Any, second_name: str, second: Any) -> None:
    """Two trees with the same nodes and the same shapes of leaves."""
    same_structure(first_name, first, second_name, second)
    for ours, theirs in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        same_shape(f"a leaf of {first_name}", ours, f"that of {second_name}", theirs)
