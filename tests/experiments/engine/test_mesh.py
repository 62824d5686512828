"""The mesh of a config, what it refuses, and where arrays are put."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from experiments.engine import mesh as meshes
from experiments.engine.errors import UserError


@pytest.mark.parametrize(("sizes", "count"), [({"data": -1}, 8), ({}, 8), ({"data": 1}, 1), ({"data": 4}, 4)])
def test_devices_of_a_mesh(sizes, count):
    mesh = meshes.make(sizes, "jit", 16)
    assert dict(mesh.shape) == {"data": count}
    assert list(mesh.devices) == jax.devices()[:count]


@pytest.mark.parametrize(
    ("sizes", "parallel", "batch", "message"),
    [
        ({"data": 9}, "jit", 9, r"config\.mesh\.data must be -1 or between 1 and 8 devices, got 9"),
        ({"data": 0}, "jit", 8, r"config\.mesh\.data must be -1 or between 1 and 8 devices, got 0"),
        ({"data": -2}, "jit", 8, r"config\.mesh\.data must be -1 or between 1 and 8 devices, got -2"),
        ({"data": -1}, "jit", 12, r"config\.batch_size 12 must be a multiple of the 8 devices of config\.mesh\.data"),
        ({"data": 3}, "jit", 8, r"config\.batch_size 8 must be a multiple of the 3 devices of config\.mesh\.data"),
        ({"data": 1, "model": 2}, "jit", 8, "unknown mesh axis 'model'; known: data"),
        ({"data": 1}, "pmap", 8, r"unknown config\.parallel 'pmap'; known: jit"),
    ],
)
def test_refusals(sizes, parallel, batch, message):
    with pytest.raises(UserError, match=f"^{message}$"):
        meshes.make(sizes, parallel, batch)


def test_shardings():
    mesh = meshes.make({"data": 4}, "jit", 8)
    assert meshes.replicated(mesh).spec == P()
    assert meshes.batch_sharded(mesh, 0).spec == P("data")
    assert meshes.batch_sharded(mesh, 2).spec == P(None, None, "data")
    values = np.arange(24).reshape(3, 8)
    whole = jax.device_put(values, meshes.replicated(mesh))
    assert [shard.data.shape for shard in whole.addressable_shards] == [(3, 8)] * 4
    parts = jax.device_put(values, meshes.batch_sharded(mesh, 1)).addressable_shards
    for part, columns in zip(parts, ([0, 1], [2, 3], [4, 5], [6, 7]), strict=True):
        np.testing.assert_array_equal(part.data, values[:, columns])
