"""The parts of a batch under `pmap`, one a device. Under `jit` a batch is whole, and nothing here does anything."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

AXIS = "examples"  # of pmap


def axis() -> str | None:
    """The name of the axis over which the batch is split, or None where it is whole."""
    try:
        jax.lax.axis_size(AXIS)
    except NameError:  # what JAX raises outside pmap
        return None
    return AXIS


def positions(size: int) -> Array:
    """int32 [size]: where the examples that are here stand in the global batch."""
    here = jnp.arange(size, dtype=jnp.int32)
    return here if axis() is None else here + size * jax.lax.axis_index(AXIS).astype(jnp.int32)


def mean(tree: Any) -> Any:
    """The mean over all parts of what was a mean over one."""
    return tree if axis() is None else jax.lax.pmean(tree, AXIS)


def joined(tree: Any) -> Any:
    """Arrays [B, ...] of the global batch."""
    return tree if axis() is None else jax.tree.map(lambda x: jax.lax.all_gather(x, AXIS, tiled=True), tree)


def own(tree: Any) -> Any:
    """What of global arrays [B, ...] belongs to the examples that are here."""
    if axis() is None:
        return tree

    def cut(x: Array) -> Array:
        size = x.shape[0] // jax.lax.axis_size(AXIS)
        return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(AXIS) * size, size)

    return jax.tree.map(cut, tree)
