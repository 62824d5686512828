"""Where arrays live: a mesh of devices, the batch split over all of it, the state split over its `fsdp` axis."""

import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from experiments.engine.errors import UserError, unknown

DATA, FSDP = "data", "fsdp"
DEFAULTS = {DATA: -1, FSDP: 1}  # every axis of a mesh; -1: all devices that are left
BATCH = (DATA, FSDP)  # axes that examples are split over
PARALLEL = ("jit",)
SMALLEST_SPLIT = 1024  # values; a smaller array is on every device


def make(sizes: Mapping[str, int], parallel: str, batch_size: int, accumulate: int = 1) -> Mesh:
    """The mesh of a config, whose batch goes through it in `accumulate` parts."""
    if parallel not in PARALLEL:
        raise unknown("config.parallel", parallel, PARALLEL)
    for axis in sizes:
        if axis not in DEFAULTS:
            raise unknown("mesh axis", axis, DEFAULTS)
    wanted, available = {axis: int(sizes.get(axis, size)) for axis, size in DEFAULTS.items()}, jax.device_count()
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
    count = math.prod(shape.values())
    if batch_size % (count * accumulate):
        times = f" times config.accumulate {accumulate}" if accumulate > 1 else ""
        raise UserError(
            f"config.batch_size {batch_size} must be a multiple of the {count} devices of config.mesh{times}"
        )
    # Auto: the compiler places what lies between the sharded batch and the state.
    axis_types = (AxisType.Auto,) * len(shape)
    return jax.make_mesh(tuple(shape.values()), tuple(shape), axis_types=axis_types, devices=jax.devices()[:count])


def _told(sizes: Mapping[str, int]) -> str:
    return " x ".join(f"{axis} {size}" for axis, size in sizes.items() if size != -1)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharded(mesh: Mesh, axis: int) -> NamedSharding:
    """Split over the whole mesh along array axis `axis`, which holds the batch."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, BATCH))


def state_sharded(mesh: Mesh, state: Any) -> Any:
    """A sharding for each array of a state: split over `fsdp` along its longest axis that this divides."""
    parts = mesh.shape[FSDP]

    def of(leaf: Any) -> NamedSharding:
        fitting = [axis for axis, length in enumerate(leaf.shape) if length % parts == 0]
        if parts == 1 or not fitting or math.prod(leaf.shape) < SMALLEST_SPLIT:
            return replicated(mesh)
        longest = max(fitting, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*[None] * longest, FSDP))

    return jax.tree.map(of, state)
