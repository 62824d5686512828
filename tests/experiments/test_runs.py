"""Runs that begin from others, that go on from older configs, and that keep their best checkpoint."""

import json
import os
import pathlib
import re
import shutil
import signal

import jax
import ml_collections
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image

from experiments import runs, tasks
from experiments.engine import configuration, loop, pictures
from experiments.engine import mesh as meshes
from experiments.engine.checkpoint import Checkpoints
from experiments.engine.errors import UserError
from experiments.engine.stopping import Stopped
from tests.experiments.helpers import ROOT, SMALL_MLP, only_line, program, small

FIELDS = {
    **SMALL_MLP,
    "method": "training",
    "ema_decay": 0.5,
    "optimizer.learning_rate": 0.1,
    "checkpoint.every": 2,
    "evaluation.features": {},
    "evaluation.reference": 64,
}


def config_of(**fields):
    return tasks.resolve(small("consistency/digits", **{**FIELDS, **fields}))


@pytest.fixture(scope="module", autouse=True)
def _compiled_once(tmp_path_factory):
    before = {name: getattr(jax.config, name) for name in CACHING}
    runs.use_compilation_cache(ml_collections.ConfigDict({"cache_dir": str(tmp_path_factory.mktemp("cache"))}))
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


CACHING = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def assert_same(ours, theirs):
    for a, b in zip(leaves(ours), leaves(theirs), strict=True):
        np.testing.assert_array_equal(a, b)


def differ(ours, theirs):
    return any(np.any(a != b) for a, b in zip(leaves(ours), leaves(theirs), strict=True))


class Killed(Exception):
    """Stands for the end of the process."""


def killed_at(end, config, workdir):
    """A run that ends before it trains on from a step."""
    boundary = loop._next_boundary

    def next_boundary(step, config):
        if step >= end:
            raise Killed
        return boundary(step, config)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_next_boundary", next_boundary)
        with pytest.raises(Killed):
            runs.train(config, workdir)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A run whose parameters and average are apart, and the folder that it lies in."""
    workdir = tmp_path_factory.mktemp("source") / "run"
    state = runs.train(config_of(), workdir).state
    assert differ(state.params, state.average)
    return workdir, state


def test_a_run_begins_from_the_average_of_another_and_goes_on_by_itself(source, tmp_path, monkeypatch):
    first = shutil.copytree(source[0], tmp_path / "first")
    config, begun = config_of(init_from=str(first)), []
    monkeypatch.setattr(Checkpoints, "check_space", lambda self, state, saves: begun.append(jax.device_get(state)))
    straight = runs.train(config, tmp_path / "straight").state
    for part in ("params", "average", "teacher"):
        assert_same(getattr(begun[0], part), source[1].average)
    assert int(begun[0].step) == 0
    assert configuration.load(tmp_path / "straight").init_from == str(first)
    killed_at(2, config, tmp_path / "killed")
    # Its source is needed for the first step alone.
    shutil.rmtree(first)
    assert_same(runs.train(config, tmp_path / "killed").state, straight)
    assert [int(state.step) for state in begun] == [0, 0, 2]


@pytest.mark.parametrize(
    ("method", "parts"), [("training", ("params", "average", "teacher")), ("improved", ("params", "average"))]
)
def test_all_that_starts_at_the_parameters_is_adopted(method, parts, source, tmp_path):
    """Onto another mesh, each in memory of its own; the rest stays as in a new run."""
    workdir, trained = source
    task = runs.prepare(config_of(method=method, **{"consistency.final_steps": 10})).task
    abstract = jax.eval_shape(task.init, jax.random.key(0))
    places = meshes.state_sharded(meshes.make({"data": 2, "fsdp": 4}, "jit", 16), abstract)
    new = jax.jit(task.init, out_shardings=places)(jax.random.key(1))
    state = runs._adopting(workdir, tmp_path, task)(new)
    for part in parts:
        assert_same(getattr(state, part), trained.average)
        assert jax.tree.map(lambda leaf: leaf.sharding, getattr(state, part)) == getattr(places, part)
    rest = dict.fromkeys(parts, ())
    assert_same(state._replace(**rest), new._replace(**rest))
    memory = [
        {shard.data.unsafe_buffer_pointer() for leaf in jax.tree.leaves(part) for shard in leaf.addressable_shards}
        for part in state
    ]
    assert len(set.union(*memory)) == sum(map(len, memory))


def test_a_source_of_another_width_is_refused_in_one_line(source, tmp_path):
    workdir, _ = source
    config = config_of(init_from=str(workdir), **{"model.width": 24})
    with pytest.raises(UserError) as refusal:
        runs.train(config, tmp_path)
    message = str(refusal.value)
    assert message.startswith(f"the parameters of checkpoint {workdir / 'checkpoints' / '4'} are not those of this")
    assert "block_0/first/kernel: (16, 16) there, (24, 24) here" in message
    assert re.search(r"; and \d+ more$", message)
    assert "\n" not in message
    # Nothing is left that would refuse the corrected config.
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize("name", ["empty", "nowhere"])
def test_a_source_that_holds_nothing_is_refused(name, tmp_path):
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match=f"^--init_from {tmp_path / name} holds no checkpoint$"):
        runs.train(config_of(init_from=str(tmp_path / name)), tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()
    assert {path.name for path in (tmp_path / "empty").rglob("*")} == {"checkpoints"}


def test_a_run_is_not_its_own_source(tmp_path):
    with pytest.raises(UserError, match=f"^--init_from {tmp_path} is the --workdir itself; a run goes on from its own"):
        runs.train(config_of(init_from=str(tmp_path)), tmp_path)
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize("other", ["", "/elsewhere"])
def test_another_source_is_another_run(other, source, tmp_path):
    config = config_of(init_from=str(source[0]))
    configuration.save(config, tmp_path)
    configuration.check_same(config, tmp_path)
    here = repr(other or "absent")
    with pytest.raises(UserError, match=f"Differing fields: init_from: '{source[0]}' there, {here} here$"):
        runs.train(config_of(init_from=other), tmp_path)
    assert configuration.fingerprint(config_of(init_from=other)) != configuration.fingerprint(config)


def test_the_flag_takes_a_path_from_where_one_stands(source):
    workdir = source[0]
    command = ("experiments.train", "--config=configs/consistency/digits.py", f"--workdir={workdir}")
    line = only_line(program(*command, f"--init_from={os.path.relpath(workdir, ROOT)}"))
    whole = pathlib.Path(re.search("init_from: 'absent' there, '(.*?)' here", line)[1])
    assert whole.is_absolute()
    assert whole.samefile(workdir)


@pytest.mark.parametrize("axis", ["data", "fsdp"])
def test_a_run_of_more_devices_is_restored_on_fewer(axis, source, tmp_path):
    workdir = shutil.copytree(source[0], tmp_path / "run")
    config = json.loads((workdir / "config.json").read_text())
    config["mesh"] = {"data": 1, "fsdp": 1, "model": 1, axis: 16}
    (workdir / "config.json").write_text(json.dumps(config))
    assert_same(runs.restore(workdir, evaluate=False).state, source[1])


def test_a_run_that_another_needs_goes_where_its_batch_does(tmp_path):
    """Eight devices divide the batch of the one and not that of the other."""
    fields = {"batch_size": 12, "evaluate_every": 0, "steps": 1, "log_every": 1}
    config = config_of(cache_dir=str(tmp_path / "cache"), evaluate_every=4, batch_size=16, **{"mesh.data": -1})
    config.evaluation.features = small("classification/digits", **fields, **{"mesh.data": -1})
    run = runs.prepare(config)
    assert dict(run.config.mesh)["data"] == -1
    (cached,) = (tmp_path / "cache").iterdir()
    assert configuration.load(cached).mesh.data == 6


@pytest.mark.parametrize(("field", "value"), [("steps", 0), ("batch_size", 10_000), ("model.dropout", 1.0)])
def test_what_is_wrong_in_a_run_that_another_needs_is_told_of_that(field, value, tmp_path):
    config = config_of(cache_dir=str(tmp_path), evaluate_every=4)
    config.evaluation.features = small("classification/digits", **{field: value})
    place = r"^the classification run that this one needs \(config\.evaluation\.features\): "
    with pytest.raises(UserError, match=place):
        runs.prepare(config)


OLDER = ("accumulate", "checkpoint.best", "checkpoint.best_mode", "init_from", "mesh.fsdp", "mesh.model")


def test_a_run_of_an_older_version_goes_on(source, tmp_path, capsys):
    killed_at(2, config_of(), tmp_path)
    path = tmp_path / "config.json"
    written = json.loads(path.read_text())
    for field in OLDER:
        section, _, name = field.rpartition(".")
        del (written[section] if section else written)[name]
    path.write_text(json.dumps(written))
    assert int(runs.restore(tmp_path).state.step) == 2
    assert_same(runs.train(config_of(), tmp_path).state, source[1])
    assert f"resuming {tmp_path} at step 2" in capsys.readouterr().out


@pytest.fixture(scope="module")
def best_run(tmp_path_factory):
    """A run that was evaluated at each of its four steps, the best of which was the second, and its states."""
    workdir = tmp_path_factory.mktemp("best") / "run"
    config = config_of(evaluate_every=1, **{"checkpoint.keep": 1, "checkpoint.best": "frechet_distance_1"})
    distances, states = {1: 5.0, 2: 1.0, 3: 1.5, 4: 9.0}, {}

    def measured(task, state, config, step):
        states[step] = jax.device_get(state)
        return {"frechet_distance_1": distances[step]}, {}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "evaluate", measured)
        runs.train(config, workdir)
    return workdir, states


def test_the_best_checkpoint_is_kept_and_restored(best_run):
    workdir, states = best_run
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"2", "4"}
    for evaluate in (True, False):
        assert_same(runs.restore(workdir, evaluate=evaluate, best=True).state, states[2])
        assert_same(runs.restore(workdir, evaluate=evaluate).state, states[4])


def test_sampling_from_the_best(best_run, tmp_path):
    workdir, states = best_run
    task = runs.prepare(config_of()).task
    for step in states:
        images = task.sample(states[step], jax.random.key(0), 4, 1)
        pictures.write_panels(tmp_path / f"{step}.png", [("1 step", images)])
    out = tmp_path / "best.png"
    sampled = program("experiments.sample", f"--workdir={workdir}", "--num=4", "--best", f"--out={out}")
    assert sampled.returncode == 0, sampled.stderr
    shown = np.asarray(Image.open(out).convert("L"), float)
    apart = {
        step: np.abs(shown - np.asarray(Image.open(tmp_path / f"{step}.png").convert("L"))).max() for step in states
    }
    assert apart.pop(2) <= 3
    assert min(apart.values()) > 10


def test_a_signal_at_the_end_of_a_run_that_another_needs(tmp_path, monkeypatch):
    """In its last evaluation: it is whole, and the run that needs it does not begin."""

    def measured(task, state, config, step):
        os.kill(os.getpid(), signal.SIGTERM)
        return {"test_accuracy": 1.0}, {}

    monkeypatch.setattr(loop, "evaluate", measured)
    config = small("classification/digits", evaluate_every=4)
    with pytest.raises(
        Stopped, match=r"^stopped by SIGTERM at step 4 of 4; saved \S+/checkpoints/4\. The same command"
    ):
        runs.obtain(config, tmp_path)
    again = runs.obtain(config, tmp_path)
    assert int(again.state.step) == 4


def test_a_run_without_best_has_none_to_give(source):
    with pytest.raises(
        UserError, match=rf"^{source[0]} kept no best checkpoint: its config has no checkpoint\.best, or"
    ):
        runs.restore(source[0], best=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"checkpoint.best": "fid"},
            "config.checkpoint.best 'fid' is measured by evaluations: set config.evaluate_every",
        ),
        (
            {"evaluate_every": 2, "checkpoint.best": "fid"},
            "unknown metric in config.checkpoint.best 'fid'; known: frechet_distance_1, frechet_distance_2, "
            "frechet_distance_floor",
        ),
        ({"checkpoint.best_mode": "least"}, "unknown config.checkpoint.best_mode 'least'; known: max, min"),
    ],
)
def test_a_best_that_cannot_be_is_refused(fields, message, tmp_path):
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        runs.train(config_of(**fields), tmp_path)
    assert not (tmp_path / "config.json").exists()
