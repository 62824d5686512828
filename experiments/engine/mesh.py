"""Where arrays live: a mesh of devices, the batch sharded over it, the state on every device."""

from collections.abc import Mapping

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from experiments.engine.errors import UserError, unknown

DATA = "data"
PARALLEL = ("jit",)


def make(sizes: Mapping[str, int], parallel: str, batch_size: int) -> Mesh:
    """The mesh of a config: `data` devices, -1 for all there are."""
    if parallel not in PARALLEL:
        raise unknown("config.parallel", parallel, PARALLEL)
    for axis in sizes:
        if axis != DATA:
            raise unknown("mesh axis", axis, [DATA])
    count, available = int(sizes.get(DATA, -1)), jax.device_count()
    count = available if count == -1 else count
    if not 1 <= count <= available:
        raise UserError(f"config.mesh.data must be -1 or between 1 and {available} devices, got {count}")
    if batch_size % count:
        raise UserError(f"config.batch_size {batch_size} must be a multiple of the {count} devices of config.mesh.data")
    # Auto: the compiler places what lies between the sharded batch and the replicated state.
    return jax.make_mesh((count,), (DATA,), axis_types=(AxisType.Auto,), devices=jax.devices()[:count])


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharded(mesh: Mesh, axis: int) -> NamedSharding:
    """Sharded over the data axis of the mesh along array axis `axis`, which holds the batch."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, DATA))
