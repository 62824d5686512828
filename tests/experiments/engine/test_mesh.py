"""The mesh of a config, what it refuses, and where arrays are put."""

import importlib
import math

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from experiments import models, tasks
from experiments.engine import mesh as meshes
from experiments.engine.errors import UserError
from experiments.tasks import common


@pytest.mark.parametrize(("sizes", "count"), [({"data": -1}, 8), ({}, 8), ({"data": 1}, 1), ({"data": 4}, 4)])
def test_devices_of_a_mesh(sizes, count):
    mesh = meshes.make(sizes, "jit", 16)
    assert dict(mesh.shape) == {"data": count, "fsdp": 1, "model": 1}
    assert list(mesh.devices.flat) == jax.devices()[:count]


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ({"data": -1, "fsdp": 4}, (2, 4, 1)),
        ({"data": 2, "fsdp": -1}, (2, 4, 1)),
        ({"data": 1, "fsdp": 2}, (1, 2, 1)),
        ({"fsdp": 8}, (1, 8, 1)),
        ({"model": 2, "fsdp": 2}, (2, 2, 2)),
        ({"data": 1, "model": -1}, (1, 1, 8)),
    ],
)
def test_several_axes(sizes, shape):
    assert meshes.make(sizes, "jit", 16).devices.shape == shape


@pytest.mark.parametrize(
    ("sizes", "parallel", "batch", "message"),
    [
        ({"data": 9}, "jit", 9, r"config\.mesh\.data must be -1 or between 1 and 8 devices, got 9"),
        ({"data": 0}, "jit", 8, r"config\.mesh\.data must be -1 or between 1 and 8 devices, got 0"),
        ({"data": -2}, "jit", 8, r"config\.mesh\.data must be -1 or between 1 and 8 devices, got -2"),
        (
            {"data": -1},
            "jit",
            12,
            r"config\.batch_size 12 must be a multiple of the 8 parts \(data x fsdp\) of config\.mesh",
        ),
        (
            {"data": 3},
            "jit",
            8,
            r"config\.batch_size 8 must be a multiple of the 3 parts \(data x fsdp\) of config\.mesh",
        ),
        ({"data": -1, "fsdp": -1}, "jit", 8, r"config\.mesh: one axis at most may be -1, got data and fsdp"),
        ({"data": -1, "fsdp": 3}, "jit", 8, r"config\.mesh: fsdp 3 x model 1 does not divide the 8 devices"),
        (
            {"data": 4, "fsdp": 4},
            "jit",
            8,
            r"config\.mesh: data 4 x fsdp 4 x model 1 needs 16 devices, and there are 8",
        ),
        ({"data": 1, "expert": 2}, "jit", 8, "unknown mesh axis 'expert'; known: data, fsdp, model"),
        ({"data": 1}, "vmap", 8, r"unknown config\.parallel 'vmap'; known: jit, pmap"),
        (
            {"data": 4, "fsdp": 2},
            "pmap",
            8,
            r"config\.parallel 'pmap' splits the batch alone, and config\.mesh has data 4 x fsdp 2 x model 1: use 'jit', or "
            r"set config\.mesh\.fsdp and config\.mesh\.model to 1",
        ),
        ({"data": 4, "model": 2}, "pmap", 8, r"config\.parallel 'pmap' splits .*"),
    ],
)
def test_refusals(sizes, parallel, batch, message):
    with pytest.raises(UserError, match=f"^{message}$"):
        meshes.make(sizes, parallel, batch)


@pytest.mark.parametrize(
    ("sizes", "batch", "accumulate", "fitted"),
    [
        ({"data": -1}, 128, 1, {"data": -1}),
        ({"data": 2, "fsdp": -1}, 24, 1, {"data": 2, "fsdp": -1}),
        ({"data": -1}, 100, 1, {"data": 5, "fsdp": 1, "model": 1}),
        ({"data": -1}, 100, 50, {"data": 2, "fsdp": 1, "model": 1}),
        ({"data": -1}, 7, 2, {"data": 1, "fsdp": 1, "model": 1}),
        ({"data": 64}, 128, 1, {"data": 8, "fsdp": 1, "model": 1}),
        ({"data": -1, "fsdp": 16}, 128, 1, {"data": 1, "fsdp": 8, "model": 1}),
    ],
)
def test_sizes_that_fit(sizes, batch, accumulate, fitted):
    assert meshes.fitting(sizes, "jit", batch, accumulate) == fitted


def test_in_several_processes_every_device_takes_part(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert meshes.fitting({"data": -1}, "jit", 100) == {"data": 4, "fsdp": 1, "model": 2}
    assert meshes.fitting({"data": -1}, "jit", 7) == {"data": 1, "fsdp": 1, "model": 8}


def test_names_that_no_mesh_has_are_refused_in_any_case():
    with pytest.raises(UserError, match="unknown mesh axis 'dat'"):
        meshes.fitting({"dat": 3}, "jit", 8)


def test_shardings():
    mesh = meshes.make({"data": 4}, "jit", 8)
    assert meshes.replicated(mesh).spec == P()
    assert meshes.batch_sharded(mesh, 0).spec == P(("data", "fsdp"))
    assert meshes.batch_sharded(mesh, 2).spec == P(None, None, ("data", "fsdp"))
    values = np.arange(24).reshape(3, 8)
    whole = jax.device_put(values, meshes.replicated(mesh))
    assert [shard.data.shape for shard in whole.addressable_shards] == [(3, 8)] * 4
    parts = jax.device_put(values, meshes.batch_sharded(mesh, 1)).addressable_shards
    for part, columns in zip(parts, ([0, 1], [2, 3], [4, 5], [6, 7]), strict=True):
        np.testing.assert_array_equal(part.data, values[:, columns])


def test_a_state_is_split_along_its_longest_axis_that_fits():
    mesh = meshes.make({"data": 2, "fsdp": 4}, "jit", 8)
    state = {
        "kernel": np.zeros((3, 3, 64, 128)),
        "other": np.zeros((514, 12)),
        "odd": np.zeros((33, 65)),
        "small": np.zeros((4, 255)),
        "step": np.int32(0),
    }
    specs = {name: sharding.spec for name, sharding in meshes.state_sharded(mesh, state).items()}
    assert specs == {
        "kernel": P(None, None, None, "fsdp"),
        "other": P(None, "fsdp"),
        "odd": P(),
        "small": P(),
        "step": P(),
    }
    axes = {("kernel",): (None, None, None, "heads"), ("other",): ("hidden", None), ("odd",): ("hidden", None)}
    cube = meshes.make({"data": 2, "fsdp": 2, "model": 2}, "jit", 8)
    specs = {name: sharding.spec for name, sharding in meshes.state_sharded(cube, state, axes).items()}
    assert specs == {
        "kernel": P(None, None, "fsdp", "model"),
        "other": P("model", "fsdp"),
        "odd": P(),  # 33 is no multiple of 2
        "small": P(),
        "step": P(),
    }
    alone = meshes.state_sharded(meshes.make({"data": 8}, "jit", 8), state)
    assert {sharding.spec for sharding in alone.values()} == {P()}


def test_bytes_on_a_device_fall_with_the_devices_that_share_a_state():
    """Of the imagenet64 network with its optimiser and average; nothing of it is made."""
    config = tasks.resolve(importlib.import_module("configs.consistency.imagenet64").get_config())
    model = models.build(config.model, example_shape=(64, 64, 3), num_classes=1000)
    optimizer = common.make_optimizer(config.optimizer, config.steps)
    state = jax.eval_shape(lambda: common.initial_state(model.init(jax.random.key(0)), optimizer))
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert total > 4e9  # parameters, two moments and the average of 266 million numbers
    for parts in (2, 4, 8):
        shardings = meshes.state_sharded(meshes.make({"data": -1, "fsdp": parts}, "jit", 8), state)
        each = sum(
            math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True)
        )
        assert total / parts <= each <= 1.1 * total / parts


def test_of_several_processes(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match=r"config\.parallel 'pmap' runs in one process, and there are 2: use 'jit'"):
        meshes.make({"data": -1}, "pmap", 8)
    with pytest.raises(UserError, match=r"config\.mesh: data 4 x fsdp 1 x model 1 leaves out some of the 8 devices"):
        meshes.make({"data": 4}, "jit", 8)
