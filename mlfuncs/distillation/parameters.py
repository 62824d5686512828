"""Students that start near their teacher: parameters between and around initialisations."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks
from mlfuncs._arrays import as_float


def _combine(anchor: Any, other: Any, mix: Callable[[Array, Array], Array]) -> Any:
    """`mix` of each pair of floating leaves, in the dtype of the anchor; other leaves are those of the anchor."""

    def leaf(a: ArrayLike, b: ArrayLike) -> Array:
        a, b = jnp.asarray(a), jnp.asarray(b)
        if not jnp.issubdtype(a.dtype, jnp.inexact):
            return a
        return mix(a, b.astype(a.dtype)).astype(a.dtype)

    return jax.tree.map(leaf, anchor, other)


def interpolate_parameters(anchor: Any, other: Any, *, fraction: ArrayLike, preserve_variance: bool = True) -> Any:
    r"""Parameters between two initialisations, :math:`[(1 - a)\,\theta + a\,\theta'] / \sqrt{a^2 + (1 - a)^2}`.

    For independent draws the divisor keeps the variance of each weight. Every leaf takes part, scales of normalisation too,
    which it makes larger than 1.

    Args:
      anchor: theta, a pytree: the teacher.
      other: theta', a tree like it: an independent draw.
      fraction: a in [0, 1], a scalar (may be traced), the locality: 0 is the anchor, where a student that equals its
        deterministic teacher has gradient 0 and never moves.
      preserve_variance: whether to divide. Without it the interpolation is linear.

    Returns:
      a tree like `anchor`, in its dtypes; at 0 and 1 exact copies. Integer leaves, such as counters, are the anchor's.

    Raises:
      ValueError: trees of another structure or shapes of leaves, or a outside [0, 1].

    References:
      Sarnthein et al., Random Teachers are Good Teachers, arXiv:2302.12091.
    """
    _checks.same_trees("anchor", anchor, "other", other)
    _checks.rank("fraction", fraction, 0)
    _checks.within("fraction", fraction, 0, 1)
    a = as_float(fraction)
    divisor = jnp.sqrt(a**2 + (1 - a) ** 2) if preserve_variance else 1.0

    def mix(x: Array, y: Array) -> Array:
        between = ((1 - a) * as_float(x) + a * as_float(y)) / divisor
        return jnp.where(a == 0, x, jnp.where(a == 1, y, between.astype(x.dtype)))

    return _combine(anchor, other, mix)


def perturb_parameters(anchor: Any, direction: Any, *, radius: ArrayLike, preserve_variance: bool = True) -> Any:
    r"""Parameters at a distance from an initialisation, :math:`(\theta + r\,\theta') / \sqrt{1 + r^2}`.

    Args:
      anchor: theta, a pytree.
      direction: theta', a tree like it: an independent draw.
      radius: r >= 0, a scalar (may be traced).
      preserve_variance: whether to divide.

    Returns:
      a tree like `anchor`, in its dtypes; at r = 0 an exact copy. Integer leaves are the anchor's.

    Raises:
      ValueError: trees of another structure or shapes of leaves, or r < 0.

    References:
      Sarnthein et al., arXiv:2302.12091.
    """
    _checks.same_trees("anchor", anchor, "direction", direction)
    _checks.rank("radius", radius, 0)
    _checks.non_negative("radius", radius)
    r = as_float(radius)
    divisor = jnp.sqrt(1 + r**2) if preserve_variance else 1.0

    def mix(x: Array, y: Array) -> Array:
        moved = (as_float(x) + r * as_float(y)) / divisor
        return jnp.where(r == 0, x, moved.astype(x.dtype))

    return _combine(anchor, direction, mix)
