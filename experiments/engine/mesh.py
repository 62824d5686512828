"""Where arrays live: a mesh of devices, over whose axes the batch and the state are split."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.tree_util import DictKey

from experiments.engine.errors import UserError, unknown
from experiments.engine.task import Axes

DATA, FSDP, MODEL = "data", "fsdp", "model"
DEFAULTS = {DATA: -1, FSDP: 1, MODEL: 1}  # every axis of a mesh; -1: all devices that are left
JIT, PMAP = "jit", "pmap"
PARALLEL = (JIT, PMAP)

# What an array axis holds, and the mesh axes it is split over. Every array of the state is further split over FSDP, along
# the longest axis that is left and that this divides. Arrays of fewer than SMALLEST_SPLIT values are on every device.
RULES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "examples": (DATA, FSDP),  # of a batch
        "hidden": (MODEL,),  # features between two dense layers
        "heads": (MODEL,),  # of attention
    }
)
SMALLEST_SPLIT = 1024


def make(
    sizes: Mapping[str, int], parallel: str, batch_size: int, accumulate: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """The mesh of a config over all devices, or those given; the batch goes through it in `accumulate` parts."""
    _check_names(sizes, parallel)
    devices = jax.devices() if devices is None else devices
    wanted, available = {axis: int(sizes.get(axis, size)) for axis, size in DEFAULTS.items()}, len(devices)
    open_axes = [axis for axis, size in wanted.items() if size == -1]
    given = math.prod(size for size in wanted.values() if size != -1)
    if len(open_axes) > 1:
        raise UserError(f"config.mesh: one axis at most may be -1, got {' and '.join(open_axes)}")
    for axis, size in wanted.items():
        if size != -1 and not 1 <= size <= available:
            raise UserError(f"config.mesh.{axis} must be -1 or between 1 and {available} devices, got {size}")
    if open_axes and available % given:
        raise UserError(f"config.mesh: {_told(wanted)} does not divide the {available} devices")
    if given > available:
        raise UserError(f"config.mesh: {_told(wanted)} needs {given} devices, and there are {available}")
    shape = {axis: available // given if size == -1 else size for axis, size in wanted.items()}
    if parallel == PMAP and shape[FSDP] * shape[MODEL] > 1:
        raise UserError(
            f"config.parallel 'pmap' splits the batch alone, and config.mesh has {_told(shape)}: use 'jit', "
            "or set config.mesh.fsdp and config.mesh.model to 1"
        )
    if parallel == PMAP and jax.process_count() > 1:
        raise UserError(f"config.parallel 'pmap' runs in one process, and there are {jax.process_count()}: use 'jit'")
    parts = math.prod(shape[axis] for axis in RULES["examples"])
    if batch_size % (parts * accumulate):
        times = f" times config.accumulate {accumulate}" if accumulate > 1 else ""
        raise UserError(
            f"config.batch_size {batch_size} must be a multiple of the {parts} parts (data x fsdp) of config.mesh{times}"
        )
    count = math.prod(shape.values())
    if count < available and jax.process_count() > 1:
        raise UserError(f"config.mesh: {_told(shape)} leaves out some of the {available} devices of all processes")
    # Auto: the compiler places what lies between the sharded batch and the state.
    axis_types = (AxisType.Auto,) * len(shape)
    return jax.make_mesh(tuple(shape.values()), tuple(shape), axis_types=axis_types, devices=devices[:count])


def fitting(sizes: Mapping[str, int], parallel: str, batch_size: int, accumulate: int = 1) -> dict[str, int]:
    """The sizes of a config where they fit the devices that are here, else a split of the batch over what divides it.

    For a run whose mesh nobody has chosen for this machine.
    """
    _check_names(sizes, parallel)
    try:
        make(sizes, parallel, batch_size, accumulate)
    except UserError:
        split = DATA if sizes.get(FSDP, 1) == 1 or parallel == PMAP else FSDP  # a state that was split may need it
        available, several = jax.device_count(), jax.process_count() > 1
        counts = [n for n in range(1, available + 1) if batch_size % (n * accumulate) == 0]
        if several:  # every device takes part: what the batch can't be split over goes to the axis that leaves it whole
            counts = [n for n in counts if available % n == 0]
        parts = max(counts, default=1)
        return {**dict.fromkeys(DEFAULTS, 1), split: parts, MODEL: available // parts if several else 1}
    return dict(sizes)


def _check_names(sizes: Mapping[str, int], parallel: str) -> None:
    if parallel not in PARALLEL:
        raise unknown("config.parallel", parallel, PARALLEL)
    for axis in sizes:
        if axis not in DEFAULTS:
            raise unknown("mesh axis", axis, DEFAULTS)


def _told(sizes: Mapping[str, int]) -> str:
    return " x ".join(f"{axis} {size}" for axis, size in sizes.items() if size != -1)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharded(mesh: Mesh, axis: int) -> NamedSharding:
    """Split along array axis `axis`, which holds the examples of a batch."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, RULES["examples"]))


def state_sharded(mesh: Mesh, state: Any, axes: Axes = MappingProxyType({})) -> Any:
    """A sharding for each array of a state, by RULES; `axes` says what parameters, and all that is like them, hold."""

    def of(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        spec: list[Any] = [None] * len(leaf.shape)
        if math.prod(leaf.shape) < SMALLEST_SPLIT:
            return replicated(mesh)
        for axis, holds in enumerate(_held(path, axes, len(leaf.shape))):
            split_over = RULES[holds] if holds else ()
            if leaf.shape[axis] % math.prod(mesh.shape[name] for name in split_over) == 0:
                spec[axis] = _without_ones(mesh, split_over)
        free = [axis for axis, length in enumerate(leaf.shape) if not spec[axis] and length % mesh.shape[FSDP] == 0]
        if free:
            spec[max(free, key=lambda axis: leaf.shape[axis])] = _without_ones(mesh, (FSDP,))
        while spec and spec[-1] is None:
            spec.pop()
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree_util.tree_map_with_path(of, state)


def _held(path: tuple[Any, ...], axes: Axes, rank: int) -> tuple[str | None, ...]:
    """What is declared of the parameter whose path this one ends with."""
    keys = [str(key.key) if isinstance(key, DictKey) else "" for key in path]
    for start in range(len(keys)):
        declared = axes.get(tuple(keys[start:]), ())
        if len(declared) == rank:
            return declared
    return (None,) * rank


def _without_ones(mesh: Mesh, names: tuple[str, ...]) -> Any:
    names = tuple(name for name in names if mesh.shape[name] > 1)
    return names[0] if len(names) == 1 else names or None


def rows_here(sharding: NamedSharding, length: int) -> np.ndarray:
    """The positions along a split axis of that length that the devices of this process hold, in order."""
    held = sharding.addressable_devices_indices_map((length,)).values()
    return np.unique(np.concatenate([np.arange(length)[index] for index in held if index is not None]))


def place(
    values: Any, sharding: NamedSharding, *, axis: int = 0, rows: np.ndarray | None = None, length: int = 0
) -> Array:
    """An array on the mesh from one on this host: its whole value, or along `axis` only `rows` of `length`."""
    if jax.process_count() == 1:
        return jax.device_put(values, sharding)
    shape = list(np.shape(values))
    if rows is not None:
        shape[axis] = length

    def part(index: Any) -> np.ndarray:
        if rows is None:
            return values[index]
        wanted = np.searchsorted(rows, np.arange(length)[index[axis]])
        return np.take(values, wanted, axis)[(*index[:axis], slice(None), *index[axis + 1 :])]

    return jax.make_array_from_callback(tuple(shape), sharding, part)


def on_host(function: Callable[..., Any], tree: Any) -> Any:
    """What `function(tree, numpy)` gives of arrays that may be split over several processes, for each of these to read.

    It is compiled, with jax.numpy, unless all arrays are in this process's memory: NumPy needs no seconds to compile.
    """
    leaves = jax.tree.leaves(tree)
    if all(leaf.is_fully_addressable and {d.platform for d in leaf.devices()} == {"cpu"} for leaf in leaves):
        return function(jax.device_get(tree), np)
    sharding = leaves[0].sharding
    everywhere = NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else None
    return jax.device_get(jax.jit(partial(function, numpy=jnp), out_shardings=everywhere)(tree))
