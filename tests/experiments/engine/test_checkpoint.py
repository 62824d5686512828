"""Checkpoints: what comes back, how many are kept, and what an unreadable one says."""

import re
import shutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.engine import checkpoint
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


def flip_a_byte(folder):
    """In the largest file, which holds the weights: what compresses and what does not is told apart by neither."""
    largest = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 0x10
    largest.write_bytes(content)


DAMAGES = [truncate, empty, flip_a_byte, lose_the_state, lose_the_host]


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_unreadable_checkpoint_is_named(damage, tmp_path):
    saved(tmp_path, [1, 2])
    folder = tmp_path / "checkpoints" / "2"
    damage(folder)
    checkpoints = Checkpoints(tmp_path, keep=3)
    assert checkpoints.newest() == 2
    with pytest.raises(UserError, match=f"^checkpoint {re.escape(str(folder))} can't be read"):
        checkpoints.restore(2, state_at(0), everywhere())
    checkpoints.close()


@pytest.mark.parametrize("set_aside", [False, True])
@pytest.mark.parametrize("damage", DAMAGES)
def test_the_one_before_a_damaged_checkpoint_is_taken(damage, set_aside, tmp_path, capsys):
    saved(tmp_path, [1, 2])
    folder = tmp_path / "checkpoints"
    damage(folder / "2")
    checkpoints = Checkpoints(tmp_path, keep=3)
    step, state, host = checkpoints.restore_newest(state_at(0), everywhere(), set_aside=set_aside)
    assert (step, host) == (1, HOST)
    assert_same(state, state_at(1))
    warning = capsys.readouterr().err
    assert warning.startswith(f"warning: checkpoint {folder / '2'} can't be read")
    assert warning.rstrip().endswith(f"going on from {folder / '1'}")
    assert len(warning.splitlines()) == 1
    # Nothing is deleted, and its step can be saved again.
    assert (folder / "2").exists() is not set_aside
    assert (tmp_path / "damaged_checkpoint_2").exists() is set_aside
    if set_aside:
        checkpoints.save(2, state_at(2), HOST)
        checkpoints.close()
        checkpoints = Checkpoints(tmp_path, keep=3)
        assert_same(checkpoints.restore_newest(state_at(0), everywhere(), set_aside=True)[1], state_at(2))
    checkpoints.close()


def test_no_checkpoint_that_can_be_read(tmp_path):
    saved(tmp_path, [1, 2])
    for step in ("1", "2"):
        truncate(tmp_path / "checkpoints" / step)
    checkpoints = Checkpoints(tmp_path, keep=3)
    with pytest.raises(UserError, match=r"checkpoints/2 can't be read .* nor any of the 1 before it; restore"):
        checkpoints.restore_newest(state_at(0), everywhere(), set_aside=True)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"1", "2"}
    checkpoints.close()


def test_nothing_to_restore(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    assert checkpoints.restore_newest(state_at(0), everywhere(), set_aside=True) is None
    checkpoints.close()


def test_a_newer_format_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", checkpoint.FORMAT + 1)
    saved(tmp_path, [1])
    monkeypatch.undo()
    checkpoints = Checkpoints(tmp_path, keep=3)
    with pytest.raises(UserError, match=r"checkpoints/1 has format 3, made by a newer version"):
        checkpoints.restore(1, state_at(0), everywhere())
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
