"""Checkpoints: what comes back, how many are kept, and what an unreadable one says."""

import re
import shutil
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.engine import checkpoint, loop
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


@pytest.fixture
def newer(tmp_path, monkeypatch):
    """A folder whose newest checkpoint has a newer format and another state, and the one before does not."""
    saved(tmp_path, [1])
    monkeypatch.setattr(checkpoint, "FORMAT", checkpoint.FORMAT + 1)
    checkpoints = Checkpoints(tmp_path, keep=3)
    checkpoints.save(2, {"packed": jnp.ones(7)}, HOST)
    checkpoints.close()
    monkeypatch.undo()
    return tmp_path


NEWER = r"checkpoints/2 has format 3, made by a newer version"


def test_a_newer_format_is_named(newer):
    checkpoints = Checkpoints(newer, keep=3)
    like = state_at(0)
    with pytest.raises(UserError, match=NEWER):
        checkpoints.restore(2, like, everywhere())
    with pytest.raises(UserError, match=NEWER):
        checkpoints.restore_part(2, "params", like.params, everywhere())
    checkpoints.close()


def test_a_newer_format_is_no_damage(newer, capsys):
    checkpoints = Checkpoints(newer, keep=3)
    with pytest.raises(UserError, match=NEWER):
        checkpoints.restore_newest(state_at(0), everywhere(), set_aside=True)
    checkpoints.close()
    assert {path.name for path in (newer / "checkpoints").iterdir()} == {"1", "2"}
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("like", [{"another": jnp.zeros((64, 5))}, {"weight": jnp.zeros((64, 6))}])
def test_a_state_of_another_form_is_refused(like, tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, {"weight": jnp.ones((64, 5))}, {})
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path, keep=1)
    with pytest.raises(UserError, match="can't be read"):
        checkpoints.restore(1, like, everywhere())
    checkpoints.close()


SCORES = {1: 3.0, 2: 1.0, 3: 9.0, 4: None, 5: 1.5, 6: 4.0, 7: 2.0}


def scored(workdir, scores, *, name="score", **options):
    """Saves a state at each step, with a metric where one was measured; gives the steps that are kept, and the best."""
    checkpoints = Checkpoints(workdir, best=name, **options)
    for step, score in scores.items():
        checkpoints.save(step, state_at(step), HOST, None if score is None else {name: score})
    checkpoints.close()
    again = Checkpoints(workdir, best=name, **options)
    kept = again.steps(), again.best_step()
    again.close()
    return kept


@pytest.mark.parametrize(
    ("mode", "keep", "kept"),
    [("min", 2, ([2, 6, 7], 2)), ("max", 2, ([3, 6, 7], 3)), ("min", 1, ([2, 7], 2)), ("max", 5, ([3, 4, 5, 6, 7], 3))],
)
def test_keeps_the_newest_and_the_best(mode, keep, kept, tmp_path):
    assert scored(tmp_path, SCORES, keep=keep, best_mode=mode) == kept
    # Started again it still knows its best, and a better one takes its place.
    assert scored(tmp_path, {8: None}, keep=1, best_mode=mode) == ([kept[1], 8], kept[1])
    assert scored(tmp_path, {9: 0.5 if mode == "min" else 9.5}, keep=1, best_mode=mode) == ([9], 9)


def test_the_best_is_whole(tmp_path):
    scored(tmp_path, SCORES, keep=1)
    checkpoints = Checkpoints(tmp_path, keep=1, best="score")
    state, host = checkpoints.restore(2, state_at(0), everywhere())
    assert_same(state, state_at(2))
    assert host == HOST
    checkpoints.close()


def test_nothing_measured_means_no_best(tmp_path):
    assert scored(tmp_path / "unmeasured", {1: None, 2: None, 3: None}, keep=2) == ([2, 3], None)
    # Nor where the metric has no name.
    assert scored(tmp_path / "unnamed", {1: 1.0, 2: 2.0}, keep=1, name="") == ([2], None)
    checkpoints = Checkpoints(tmp_path / "new", keep=1, best="score")
    assert checkpoints.best_step() is None
    checkpoints.close()


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_score_that_is_no_number_is_never_the_best(mode, tmp_path):
    assert scored(tmp_path, {1: 2.0, 2: np.nan, 3: np.nan}, keep=1, best_mode=mode) == ([1, 3], 1)


def test_another_metric_may_be_chosen_later(tmp_path):
    scored(tmp_path, {1: 1.0, 2: 3.0}, keep=1)
    assert scored(tmp_path, {3: None, 4: 1.0, 5: 2.0}, keep=1, name="another")[1] == 4


def test_without_a_number_for_this_metric_there_is_no_best(tmp_path):
    assert scored(tmp_path / "nan", {1: np.nan, 2: np.nan}, keep=2) == ([1, 2], None)
    scored(tmp_path / "other", {1: 1.0}, keep=2)
    assert scored(tmp_path / "other", {2: None}, keep=2, name="another") == ([1, 2], None)


def matrix(step):
    """A state whose `average` is large enough to be split."""
    values = np.random.default_rng(step).normal(size=(2, 64, 32)).astype(np.float32)
    layers = {"first": values[0], "second": {"kernel": values[1], "bias": np.float32(step)}}
    return {"step": np.int32(step), "params": jax.tree.map(lambda x: x + 1, layers), "average": layers}


def saved_matrix(workdir, devices=8):
    checkpoints = Checkpoints(workdir, keep=3)
    checkpoints.save(1, jax.device_put(matrix(1), everywhere(devices)), HOST)
    checkpoints.close()


def part_of(workdir, part="average", like=None, shardings=None):
    checkpoints = Checkpoints(workdir, keep=3, create=False)
    like = jax.eval_shape(lambda: matrix(0)["average"]) if like is None else like
    try:
        return checkpoints.restore_part(1, part, like, everywhere() if shardings is None else shardings)
    finally:
        checkpoints.close()


def test_a_part_onto_another_mesh(tmp_path):
    saved_matrix(tmp_path)
    for part in ("params", "average"):
        assert_same(part_of(tmp_path, part), matrix(1)[part])
    mesh = meshes.make({"data": 2, "fsdp": 2, "model": 2}, "jit", 8)
    shardings = meshes.state_sharded(mesh, matrix(0)["average"], {("first",): (None, "hidden")})
    average = part_of(tmp_path, shardings=shardings)
    assert_same(average, matrix(1)["average"])
    assert average["first"].sharding == shardings["first"]
    assert {shard.data.shape for shard in average["first"].addressable_shards} == {(32, 16)}


def test_a_part_of_a_named_tuple(tmp_path):
    saved(tmp_path, [1])
    assert_same(part_of(tmp_path, "params", state_at(0).params), state_at(1).params)


def test_a_part_of_another_form_is_refused(tmp_path):
    saved_matrix(tmp_path)
    like = {"first": np.zeros((64, 33)), "second": {"kernel": np.zeros((64, 32))}, "third": np.zeros(3)}
    with pytest.raises(UserError) as refusal:
        part_of(tmp_path, like=like)
    assert str(refusal.value) == (
        f"the parameters of checkpoint {tmp_path / 'checkpoints' / '1'} are not those of this config's network. "
        "Differing leaves: first: (64, 32) there, (64, 33) here; second/bias: () there, absent here; "
        "third: absent there, (3,) here"
    )


def test_a_part_that_is_not_there_is_refused(tmp_path):
    saved_matrix(tmp_path)
    with pytest.raises(UserError, match=r"Differing leaves: first: absent there, \(64, 32\) here; second/bias: absent"):
        part_of(tmp_path, "teacher")


@pytest.mark.parametrize(("others", "more"), [(8, ""), (9, "; and 1 more"), (20, "; and 12 more")])
def test_many_differing_leaves_are_counted(others, more, tmp_path):
    saved_matrix(tmp_path)
    like = {**matrix(0)["average"], **{f"layer_{index:02}": np.zeros(2) for index in range(others)}}
    with pytest.raises(UserError) as refusal:
        part_of(tmp_path, like=like)
    message = str(refusal.value)
    assert message.count(" there, ") == 8
    assert message.endswith(f"layer_07: absent there, (2,) here{more}")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_part_is_named(damage, tmp_path):
    saved(tmp_path, [1])
    folder = tmp_path / "checkpoints" / "1"
    damage(folder)
    with pytest.raises(UserError, match=f"^checkpoint {re.escape(str(folder))} can't be read"):
        part_of(tmp_path, "params", state_at(0).params)


def test_a_part_is_held_against_its_own_digests(tmp_path, monkeypatch):
    digests, wrong = checkpoint._digests, "params/weight"
    monkeypatch.setattr(checkpoint, "_digests", lambda state: {**digests(state), wrong: digests(state)[wrong] ^ 1})
    saved(tmp_path, [1])
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"can't be read \(its bytes are not those that were written\)$"):
        part_of(tmp_path, "params", state_at(0).params)
    monkeypatch.setattr(checkpoint, "_digests", lambda state: {**digests(state), "step": 0})
    saved(tmp_path / "other", [1])
    monkeypatch.undo()
    assert_same(part_of(tmp_path / "other", "params", state_at(0).params), state_at(1).params)


def test_digests_without_paths_are_still_read(tmp_path, monkeypatch):
    """As format 1 has them: a list, in the order of the leaves."""
    digests = checkpoint._digests
    monkeypatch.setattr(checkpoint, "FORMAT", 1)
    monkeypatch.setattr(checkpoint, "_digests", lambda state: list(digests(state).values()))
    saved(tmp_path, [1, 2])
    monkeypatch.undo()
    assert '"digest":[' in (tmp_path / "checkpoints" / "1" / "host" / "metadata").read_text().replace(" ", "")
    checkpoints = Checkpoints(tmp_path, keep=3)
    state, host = checkpoints.restore(2, state_at(0), everywhere())
    assert_same(state, state_at(2))
    assert host == HOST
    assert_same(part_of(tmp_path, "params", state_at(0).params), state_at(1).params)
    flip_a_byte(tmp_path / "checkpoints" / "2")
    with pytest.raises(UserError, match="can't be read"):
        checkpoints.restore(2, state_at(0), everywhere())
    checkpoints.close()


STATE_BYTES = 4 * (64 * 5 + 1) + 2


@pytest.mark.parametrize(
    ("there", "saves", "keep", "best", "needed"),
    [
        ([], 100, 3, "", 4),
        ([], 100, 3, "score", 5),
        ([], 2, 3, "", 2),
        ([1, 2], 100, 3, "", 2),
        ([1, 2, 3], 100, 3, "", 1),
        ([1, 2, 3], 100, 1, "", 1),
    ],
)
def test_room_for_what_is_to_come(there, saves, keep, best, needed, tmp_path, monkeypatch):
    saved(tmp_path, there)
    checkpoints, state = Checkpoints(tmp_path, keep=keep, best=best), state_at(0)
    free = []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=free[-1]))
    free.append(needed * STATE_BYTES)
    checkpoints.check_space(state, saves)
    free.append(needed * STATE_BYTES - 1)
    with pytest.raises(
        UserError, match=rf"^{tmp_path}/checkpoints has 0\.0 MB free, and {needed} checkpoints of 0\.0 MB"
    ):
        checkpoints.check_space(state, saves)
    checkpoints.close()


def test_room_in_words_of_its_size(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=3)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=3_210_000_000))
    state = {"params": jax.ShapeDtypeStruct((2**20, 300), np.float32), "half": jax.ShapeDtypeStruct((3,), jnp.bfloat16)}
    with pytest.raises(UserError) as refusal:
        checkpoints.check_space(jax.tree.map(lambda leaf: np.broadcast_to(leaf.dtype.type(0), leaf.shape), state), 9)
    assert str(refusal.value) == (
        f"{tmp_path / 'checkpoints'} has 3.2 GB free, and 4 checkpoints of 1.3 GB are to come: "
        "free some space, lower config.checkpoint.keep, or choose another --workdir"
    )
    checkpoints.close()


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("FAILED: writing [os_error_code='28']\nmore", "No space left on device: FAILED: writing [os_error_code='28']"),
        ("No space left on device [os_error_code='28']", "No space left on device [os_error_code='28']"),
        ("a" * 200 + "b" * 200, "a" * 120 + " ... " + "b" * 120),
    ],
)
def test_the_cause_of_a_foreign_error_is_said(said, shown):
    assert checkpoint._reason(ValueError(said)) == shown


def test_digests_and_what_is_finite_are_the_same_compiled_and_not():
    """Checkpoints are read where they were not written: the numbers must not tell how they came about."""
    keys = jax.random.split(jax.random.key(0), 3)
    state = {
        "scalar": jnp.int32(-7),
        "flag": jnp.array([True, False]),
        "wide": jax.random.normal(keys[0], (300, 7)),
        "half": jax.random.normal(keys[1], (5,), jnp.bfloat16),
        "bytes": jax.random.randint(keys[2], (9,), -128, 127, jnp.int8),
        "bits": jnp.arange(4, dtype=jnp.uint32) * jnp.uint32(3_000_000_000),
        "none": jnp.zeros((0, 3)),
    }
    compiled = jax.jit(checkpoint._digest)(state).tolist()
    assert checkpoint._digest(jax.device_get(state), np).tolist() == compiled
    assert list(checkpoint._digests(state).values()) == compiled
    for bad in (jnp.nan, jnp.inf):
        for name in ("wide", "half"):
            broken = state | {name: state[name].at[-1].set(bad)}
            assert not loop.is_finite(jax.device_get(broken), np)
            assert not jax.jit(loop.is_finite)(broken)
    assert loop.is_finite(jax.device_get(state), np)
