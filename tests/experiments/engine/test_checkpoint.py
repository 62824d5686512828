"""Checkpoints: what comes back, how many are kept, and what an unreadable one says."""

import re
import shutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.engine import mesh as meshes
from experiments.engine.checkpoint import Checkpoints
from experiments.engine.errors import UserError

HOST = {"count": 2, "sums": {"loss": 0.1 + 0.2}}


class State(NamedTuple):
    step: Any
    params: Any
    empty: Any = ()


def everywhere(devices=1):
    return meshes.replicated(meshes.make({"data": devices}, "jit", 8))


def state_at(step, devices=1):
    params = {"weight": np.random.default_rng(step).normal(size=(64, 5)).astype(np.float32), "half": jnp.bfloat16(0.1)}
    return jax.device_put(State(np.int32(step), params), everywhere(devices))


def saved(workdir, steps, keep=3):
    checkpoints = Checkpoints(workdir, keep=keep)
    for step in steps:
        checkpoints.save(step, state_at(step), HOST)
    checkpoints.close()


def assert_same(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_round_trip(tmp_path):
    saved(tmp_path, [7])
    checkpoints = Checkpoints(tmp_path, keep=3)
    assert checkpoints.newest() == 7
    state, host = checkpoints.restore(7, jax.eval_shape(lambda: state_at(0)), everywhere())
    assert_same(state, state_at(7))
    assert host == HOST
    checkpoints.close()


def test_onto_other_devices(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, state_at(1, devices=8), {})
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path, keep=1)
    for devices in (1, 2):
        state, host = checkpoints.restore(1, state_at(0), everywhere(devices))
        assert_same(state, state_at(1))
        assert host == {}
        assert state.params["weight"].sharding.device_set == set(jax.devices()[:devices])
    checkpoints.close()


def test_a_state_may_be_used_up_while_it_is_written(tmp_path):
    double = jax.jit(lambda x: 2 * x, donate_argnums=0)
    checkpoints = Checkpoints(tmp_path, keep=1)
    ones = jax.device_put(np.ones((512, 512), np.float32), everywhere(8))
    checkpoints.save(1, {"x": ones}, {})
    jax.block_until_ready(double(ones))
    assert ones.is_deleted()
    checkpoints.close()
    like = {"x": jax.ShapeDtypeStruct((512, 512), np.float32)}
    checkpoints = Checkpoints(tmp_path, keep=1)
    state, _ = checkpoints.restore(1, like, everywhere())
    np.testing.assert_array_equal(state["x"], np.ones((512, 512)))
    checkpoints.close()


def test_keeps_the_newest(tmp_path):
    saved(tmp_path, [2, 4, 6, 8], keep=2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["6", "8"]
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.newest() == 8
    assert_same(checkpoints.restore(6, state_at(0), everywhere())[0], state_at(6))
    checkpoints.close()


def test_an_empty_folder_has_no_newest(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run", keep=1)
    assert checkpoints.newest() is None
    checkpoints.close()


def truncate(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:3])


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def lose_the_state(folder):
    shutil.rmtree(folder / "state")


def lose_the_host(folder):
    shutil.rmtree(folder / "host")


@pytest.mark.parametrize("damage", [truncate, empty, lose_the_state, lose_the_host])
def test_an_unreadable_checkpoint_is_named(damage, tmp_path):
    saved(tmp_path, [1, 2])
    folder = tmp_path / "checkpoints" / "2"
    damage(folder)
    checkpoints = Checkpoints(tmp_path, keep=3)
    assert checkpoints.newest() == 2
    with pytest.raises(UserError, match=f"^checkpoint {re.escape(str(folder))} can't be read .*move that folder away"):
        checkpoints.restore(2, state_at(0), everywhere())
    checkpoints.close()

    # What the message says to do works.
    folder.rename(tmp_path / "bad")
    checkpoints = Checkpoints(tmp_path, keep=3)
    assert checkpoints.newest() == 1
    assert_same(checkpoints.restore(1, state_at(0), everywhere())[0], state_at(1))
    checkpoints.close()


@pytest.mark.parametrize("like", [{"another": jnp.zeros((64, 5))}, {"weight": jnp.zeros((64, 6))}])
def test_a_state_of_another_form_is_refused(like, tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, {"weight": jnp.ones((64, 5))}, {})
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path, keep=1)
    with pytest.raises(UserError, match="can't be read"):
        checkpoints.restore(1, like, everywhere())
    checkpoints.close()
