"""The loop on a task of whole numbers: where intervals are cut, kills, devices and disks must not show in the result."""

import functools
import logging
import re

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from PIL import Image

from experiments.engine import logs, loop
from experiments.engine import mesh as meshes
from experiments.engine.checkpoint import Checkpoints
from experiments.engine.errors import UserError
from experiments.engine.pipeline import Order
from experiments.engine.task import Task
from experiments.worlds import InMemory

VALUES = np.arange(21, dtype=np.int32)  # batches of 8 straddle epochs of 21
SPLIT = InMemory({"value": VALUES, "twice": 2 * VALUES})


class OnDisk:
    """The same examples, never held as a whole."""

    examples = None

    def __len__(self):
        return len(VALUES)

    def read(self, indices):
        return SPLIT.read(indices)


def settings(**fields):
    config = {
        "seed": 0,
        "batch_size": 8,
        "steps": 12,
        "log_every": 4,
        "evaluate_every": 0,
        "checkpoint": {"every": 0, "keep": 3},
        "mesh": {"data": 1},
        "parallel": "jit",
        "accumulate": 1,
    }
    return ml_collections.ConfigDict({**config, **fields})


def init(key):
    return {"step": jnp.int32(0), "weight": jax.random.randint(key, (), 0, 100)}


def update(state, batch, key):
    """All whole numbers: sums are exact in any order, so that results can be compared bit by bit."""
    drawn = (jax.random.key_data(key)[1] % 10).astype(jnp.int32)
    added = jnp.sum(batch["value"] * (batch["index"] + drawn)) + jnp.sum(batch["twice"])
    metrics = {"loss": added / 8, "weight": state["weight"].astype(jnp.float32)}
    return {"step": state["step"] + 1, "weight": state["weight"] + added}, metrics


def evaluate(state, key):
    pictures = {"sample": [("one", np.full((1, 4, 4, 1), 128, np.uint8))]}
    return {"score": 2.0 * int(state["weight"]), "drawn": float(jax.random.uniform(key))}, pictures


TASK = Task(init, update, evaluate)


@functools.cache
def by_hand(seed=0):
    """Weights before each of twelve steps and after the last, and the loss of each step."""
    key = jax.random.fold_in(jax.random.key(seed), loop.TRAIN)
    batches = Order(seed, 21, 8).batches(0, 12)
    weights, losses = [int(init(jax.random.fold_in(jax.random.key(seed), loop.INIT))["weight"])], []
    for step in range(12):
        drawn = int(jax.random.key_data(jax.random.fold_in(key, step))[1]) % 10
        added = int(np.sum(VALUES[batches[step]] * (np.arange(8) + drawn + 2)))
        weights.append(weights[-1] + added)
        losses.append(added / 8)
    return weights, losses


def numbers(workdir):
    """What a run logged, but for its speed."""
    records = logs.read(workdir / "metrics.jsonl")
    return [{name: value for name, value in record.items() if name != "steps_per_second"} for record in records]


def trained(workdir, task=TASK, split=SPLIT, **fields):
    """The last state and what was logged."""
    state = loop.train(task, split, settings(**fields), workdir, "tiny")
    return {name: int(value) for name, value in state.items()}, numbers(workdir)


def test_a_run_by_hand(tmp_path):
    weights, losses = by_hand()
    state, records = trained(tmp_path, steps=6)
    assert state == {"step": 6, "weight": weights[6]}
    assert records == [
        {"step": 4, "loss": sum(losses[:4]) / 4, "weight": sum(weights[:4]) / 4},
        {"step": 6, "loss": sum(losses[4:6]) / 2, "weight": sum(weights[4:6]) / 2},
    ]


def test_another_seed_is_another_run(tmp_path):
    state, _ = trained(tmp_path, steps=3, seed=1)
    assert state["weight"] == by_hand(seed=1)[0][3]
    assert state["weight"] != by_hand()[0][3]


def test_where_intervals_are_cut_does_not_show(tmp_path):
    state, fine = trained(tmp_path / "fine", steps=10, log_every=1)
    means = [
        {"step": last, **{name: sum(r[name] for r in fine[last - 5 : last]) / 5 for name in ("loss", "weight")}}
        for last in (5, 10)
    ]
    assert trained(tmp_path / "coarse", steps=10, log_every=5) == (state, means)
    cut, records = trained(
        tmp_path / "cut", steps=10, log_every=5, evaluate_every=4, checkpoint={"every": 3, "keep": 9}
    )
    assert cut == state
    assert [record["step"] for record in records] == [4, 5, 8, 10]
    assert [records[1], {name: records[3][name] for name in means[1]}] == means


def test_neither_devices_nor_disks_show(tmp_path):
    expected = trained(tmp_path / "expected")
    for name, split, devices in (("disk", OnDisk(), 1), ("devices", SPLIT, 8), ("both", OnDisk(), 8)):
        assert trained(tmp_path / name, split=split, mesh={"data": devices}) == expected, name


def test_the_state_lies_on_every_device(tmp_path):
    state = loop.train(TASK, SPLIT, settings(steps=3, mesh={"data": 8}), tmp_path, "tiny")
    assert {shard.device for shard in state["weight"].addressable_shards} == set(jax.devices())


def parts(split=SPLIT, devices=1, task=TASK, first_step=0):
    """Interval, feed and first state, as the loop puts them together."""
    config = settings(mesh={"data": devices})
    mesh = meshes.make(config.mesh, config.parallel, config.batch_size)
    feed = loop.Feed(split, mesh, config, first_step)
    state = jax.device_put(task.init(loop.stream_key(config, loop.INIT)), meshes.replicated(mesh))
    return loop.make_interval(task, feed.fetch, mesh, config.parallel), feed, state


KEY = loop.stream_key(settings(), loop.TRAIN)


@pytest.mark.parametrize("split", [SPLIT, OnDisk()])
def test_batches_of_a_feed(split):
    _, feed, _ = parts(split, devices=8, first_step=2)
    selections = feed.selections(2, 3)
    assert feed.room == 4
    for leaf in jax.tree.leaves(selections):
        assert [shard.data.shape for shard in leaf.addressable_shards] == [(4, 1)] * 8
    batch = feed.fetch(feed.data, jax.tree.map(lambda leaf: leaf[1], selections))
    expected = Order(0, 21, 8).batches(3, 1)[0]
    assert batch.keys() == {"value", "twice", "index"}
    np.testing.assert_array_equal(batch["value"], expected)
    np.testing.assert_array_equal(batch["twice"], 2 * expected)
    np.testing.assert_array_equal(batch["index"], np.arange(8))


@pytest.mark.parametrize("devices", [1, 8])
def test_intervals_of_any_length_compile_once(devices, caplog):
    interval, feed, state = parts(devices=devices)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        for first, count in ((0, 4), (4, 1), (5, 3), (8, 4)):
            state, _, metrics = loop.advance(interval, feed, state, KEY, first, count)
            assert metrics["loss"].tolist() == by_hand()[1][first : first + count]
        assert caplog.text.count("Finished XLA compilation of jit(interval)") == 1


@pytest.mark.parametrize("devices", [1, 8])
def test_the_state_is_used_up(devices):
    interval, feed, state = parts(devices=devices)
    after, seconds, metrics = loop.advance(interval, feed, state, KEY, 0, 4)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((after, feed.data)))
    assert seconds > 0
    assert metrics["loss"].tolist() == by_hand()[1][:4]


def test_random_numbers_depend_on_the_step_alone():
    def draw(state, batch, key):
        return state, {"loss": jax.random.uniform(key)}

    interval, feed, _ = parts(task=Task(init, draw, evaluate))
    expected = np.float64([jax.random.uniform(jax.random.fold_in(KEY, step)) for step in range(12)])
    assert len(set(expected)) == 12
    for first, last in ((0, 4), (5, 9), (5, 6)):
        metrics = loop.advance(interval, feed, init(KEY), KEY, first, last - first)[2]
        np.testing.assert_array_equal(metrics["loss"], expected[first:last])


def test_uses_of_randomness_are_apart():
    keys = [
        loop.stream_key(settings(seed=seed), stream)
        for seed in (0, 1)
        for stream in (loop.INIT, loop.TRAIN, loop.EVALUATE, loop.SAMPLE)
    ]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == 8


def test_evaluations(tmp_path):
    weights, losses = by_hand()
    _, records = trained(tmp_path, steps=6, log_every=3, evaluate_every=4)
    assert [(record["step"], record.get("score")) for record in records] == [
        (3, None),
        (4, 2.0 * weights[4]),
        (6, 2.0 * weights[6]),
    ]
    assert records[1]["loss"] == losses[3]
    assert records[2]["loss"] == sum(losses[3:6]) / 3
    assert records[1]["drawn"] != records[2]["drawn"]
    assert {path.name for path in tmp_path.glob("*.png")} == {"sample_4.png", "sample_6.png", "curves.png"}
    for path in tmp_path.glob("*.png"):
        Image.open(path).verify()
    # How often is logged changes no evaluation.
    _, others = trained(tmp_path / "other", steps=6, log_every=1, evaluate_every=2)
    assert (others[3]["score"], others[3]["drawn"]) == (records[1]["score"], records[1]["drawn"])


def best(name, mode="min", keep=1):
    return {"evaluate_every": 2, "checkpoint": {"every": 0, "keep": keep, "best": name, "best_mode": mode}}


@pytest.mark.parametrize(("mode", "kept"), [("min", {"2", "6"}), ("max", {"6"})])
def test_the_best_state_is_kept(mode, kept, tmp_path):
    """Each evaluation is a checkpoint then, and the score grows with the weight."""
    trained(tmp_path, steps=6, **best("score", mode))
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == kept


@pytest.mark.parametrize(
    ("every", "evaluate_every", "name", "saves"),
    [(0, 4, "", 1), (0, 4, "score", 3), (6, 4, "score", 4), (4, 4, "score", 3), (5, 4, "", 3), (5, 0, "", 3)],
)
def test_room_is_asked_for_every_save(every, evaluate_every, name, saves, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(Checkpoints, "check_space", lambda self, state, saves: asked.append(saves))
    kept = {"every": every, "keep": 9, "best": name}
    trained(tmp_path, evaluate_every=evaluate_every, checkpoint=kept)
    assert asked == [saves] == [len(list((tmp_path / "checkpoints").iterdir()))]


def test_an_unknown_metric_is_named_with_the_known_ones(tmp_path):
    message = r"^unknown metric in config\.checkpoint\.best 'fid'; known: drawn, score$"
    with pytest.raises(UserError, match=message):
        trained(tmp_path, steps=6, **best("fid"))


class Killed(Exception):
    """Stands for the end of the process."""


def killed_at(step):
    def evaluate_or_die(state, key):
        if int(state["step"]) == step:
            raise Killed
        return evaluate(state, key)

    return TASK._replace(evaluate=evaluate_or_die)


@pytest.mark.parametrize("split", [SPLIT, OnDisk()])
def test_going_on_after_a_kill_is_as_if_never_killed(split, tmp_path, capsys):
    fields = {"evaluate_every": 10, "checkpoint": {"every": 6, "keep": 2}}
    straight = trained(tmp_path / "straight", split=split, **fields)
    workdir = tmp_path / "killed"
    with pytest.raises(Killed):
        trained(workdir, killed_at(10), split, **fields)
    # The checkpoint lies within the means of step 8, which were logged already.
    assert [record["step"] for record in numbers(workdir)] == [4, 8]
    assert trained(workdir, split=split, **fields) == straight
    assert f"resuming {workdir} at step 6" in capsys.readouterr().out


def test_going_on_with_other_incidental_fields(tmp_path):
    with pytest.raises(Killed):
        trained(tmp_path, killed_at(10), evaluate_every=10, checkpoint={"every": 6, "keep": 2})
    state, _ = trained(tmp_path, log_every=3, mesh={"data": 4}, checkpoint={"every": 3, "keep": 1})
    assert state == {"step": 12, "weight": by_hand()[0][12]}


def test_a_finished_run_is_not_trained_again(tmp_path):
    state, records = trained(tmp_path, steps=4)

    def untouched(*arguments):
        raise AssertionError("nothing is left to do")

    assert trained(tmp_path, TASK._replace(update=untouched, evaluate=untouched), steps=4) == (state, records)


def breaks_at(step, value):
    def breaking(state, batch, key):
        state, metrics = update(state, batch, key)
        return state, {**metrics, "loss": jnp.where(state["step"] == step, value, metrics["loss"])}

    return TASK._replace(update=breaking)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    fields = {"checkpoint": {"every": 6, "keep": 1}}
    good = tmp_path / "checkpoints" / "6"
    message = rf"^the loss is nan at step 8; last good checkpoint: {re.escape(str(good))}\. Lower config\.optimizer"
    # The second start goes on from that checkpoint and breaks at the same step.
    for _ in range(2):
        with pytest.raises(UserError, match=message):
            trained(tmp_path, breaks_at(8, np.nan), **fields)
        assert [record["step"] for record in numbers(tmp_path)] == [4]
    checkpoints = Checkpoints(tmp_path, keep=1)
    assert checkpoints.newest() == 6
    everywhere = meshes.replicated(meshes.make({"data": 1}, "jit", 8))
    restored, _ = checkpoints.restore(6, jax.eval_shape(init, jax.random.key(0)), everywhere)
    checkpoints.close()
    assert (int(restored["step"]), int(restored["weight"])) == (6, by_hand()[0][6])
    # The mended task goes on from there.
    assert trained(tmp_path, **fields)[0]["weight"] == by_hand()[0][12]


@pytest.mark.parametrize("found", ["loss", "parameters"])
def test_several_processes_name_a_checkpoint_that_is_whole(found, tmp_path, monkeypatch):
    """They end without a wait for each other: what is still being written when they end would stay a fragment."""
    waited, wait = [], Checkpoints.wait
    monkeypatch.setattr(loop.hosts, "several", lambda: True)
    monkeypatch.setattr(Checkpoints, "wait", lambda self: waited.append(wait(self)))
    if found == "parameters":
        monkeypatch.setattr(loop, "is_finite", lambda state, numpy: state["step"] < 8)
    task = breaks_at(8, np.nan) if found == "loss" else TASK
    with pytest.raises(UserError, match=r"no numbers at step 8|is nan at step 8; last good checkpoint: .*/4"):
        trained(tmp_path, task, checkpoint={"every": 4, "keep": 1})
    assert waited


def test_a_bad_state_never_replaces_a_good_checkpoint(tmp_path):
    """The loss of step 6 is finite; what its update made of the weight shows in the loss of step 7 alone."""

    def start(key):
        return {"step": jnp.int32(0), "weight": jnp.float32(1)}

    def poisoned(state, batch, key):
        step = state["step"] + 1
        weight = jnp.where(step == 6, jnp.nan, state["weight"] + 1)
        return {"step": step, "weight": weight}, {"loss": state["weight"]}

    good = re.escape(str(tmp_path / "checkpoints" / "3"))
    with pytest.raises(UserError, match=f"the parameters are no numbers at step 6; last good checkpoint: {good}"):
        loop.train(
            Task(start, poisoned, evaluate), SPLIT, settings(checkpoint={"every": 3, "keep": 1}), tmp_path, "tiny"
        )
    checkpoints = Checkpoints(tmp_path, keep=1)
    assert checkpoints.newest() == 3
    checkpoints.close()


@pytest.mark.parametrize(
    ("step", "value", "name"), [(1, np.inf, "inf"), (4, np.nan, "nan"), (6, -np.inf, "inf"), (12, np.nan, "nan")]
)
def test_a_loss_that_is_no_number_before_any_checkpoint(step, value, name, tmp_path):
    with pytest.raises(UserError, match=f"^the loss is {name} at step {step}; no checkpoint was made yet"):
        trained(tmp_path, breaks_at(step, value))
    assert Checkpoints(tmp_path, keep=1).newest() is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 0}, "config.batch_size must be >= 1, got 0"),
        ({"steps": 0}, "config.steps must be >= 1, got 0"),
        ({"log_every": 0}, "config.log_every must be >= 1, got 0"),
        ({"evaluate_every": -1}, "config.evaluate_every must be >= 0, got -1"),
        ({"seed": -1}, "config.seed must be >= 0, got -1"),
        ({"accumulate": 0}, "config.accumulate must be >= 1, got 0"),
        (
            {"checkpoint": {"every": -1, "keep": 1}},
            "config.checkpoint.every must be >= 0 (0: only at the end), got -1",
        ),
        ({"checkpoint": {"every": 0, "keep": 0}}, "config.checkpoint.keep must be >= 1, got 0"),
    ],
)
def test_limits(fields, message):
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        loop.check_limits(settings(**fields))


def test_the_smallest_allowed_values():
    smallest = {"batch_size": 1, "steps": 1, "log_every": 1, "evaluate_every": 0, "seed": 0}
    loop.check_limits(settings(**smallest, checkpoint={"every": 0, "keep": 1}))
