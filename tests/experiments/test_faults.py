"""Kills at any moment, disks that are full and folders that can't be written: no step is lost or trained twice."""

import os
import pathlib
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import types
from typing import NamedTuple

import jax
import numpy as np
import pytest

from experiments import runs, tasks
from experiments.engine import compiling, logs
from experiments.engine.errors import UserError
from tests.experiments.engine.test_loop import TASK, trained
from tests.experiments.helpers import ROOT, SMALL_MLP, only_line, program, small

STEPS = 1600
FIELDS = {
    **SMALL_MLP,
    "batch_size": 16,
    "steps": STEPS,
    "log_every": 200,
    "evaluate_every": 0,
    "checkpoint.every": 40,
}
LIVES = "WSWWSWWWSW"  # the moment of each kill: soon after a checkpoint is Written, or while the run Starts
SELDOM = {"checkpoint.every": 400}


def flags(folder, name, **others):
    fields = {**FIELDS, "cache_dir": folder / "cache", **others}
    overrides = [f"--config.{field}={value}" for field, value in fields.items()]
    return ["experiments.train", "--config=configs/consistency/digits.py", *overrides, f"--workdir={folder / name}"]


def started(folder, name, **others):
    command, environment = (
        [sys.executable, "-m", *flags(folder, name, **others)],
        {**os.environ, "XLA_FLAGS": compiling.quick_flags()},
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes)


def newest(workdir):
    folder = workdir / "checkpoints"
    return max((int(path.name) for path in folder.glob("*") if path.name.isdigit()), default=0)


def killed(process, workdir, moment, seconds):
    before, until = newest(workdir), time.monotonic() + 120
    while moment == "W" and newest(workdir) == before:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.005)
    time.sleep(seconds)
    process.kill()
    output, errors = process.communicate()
    assert (process.returncode, errors) == (-signal.SIGKILL, "")
    return output


class Lives(NamedTuple):
    folder: pathlib.Path
    outputs: list[str]
    checkpoints: list[int]  # the newest after each kill


@pytest.fixture(scope="module")
def lives(tmp_path_factory):
    """A run that was killed ten times before it ended, its folder as it was in the middle, and one that was never killed."""
    folder = tmp_path_factory.mktemp("faults")
    workdir, draw = folder / "killed", random.Random(0)
    outputs, checkpoints = [], []
    with started(folder, "straight", **SELDOM) as straight:
        for life, moment in enumerate(LIVES):
            process = started(folder, "killed")
            outputs.append(killed(process, workdir, moment, draw.uniform(0, 0.4 if moment == "W" else 4)))
            checkpoints.append(newest(workdir))
            if life == 4:
                shutil.copytree(workdir, folder / "middle")
        assert straight.communicate()[1] == ""
    last = program(*flags(folder, "killed", **SELDOM))
    assert (last.returncode, last.stderr) == (0, "")
    return Lives(folder, [*outputs, last.stdout], checkpoints)


def state(workdir):
    return runs.restore(workdir, evaluate=False).state


def assert_same_run(workdir, other):
    """Bit by bit, and in what was logged."""
    for ours, theirs in zip(jax.tree.leaves(state(workdir)), jax.tree.leaves(state(other)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    ours, theirs = (
        [{**record, "steps_per_second": 0} for record in logs.read(path / "metrics.jsonl")] for path in (workdir, other)
    )
    assert ours == theirs
    assert [record["step"] for record in ours] == list(range(200, STEPS + 1, 200))


def test_ten_kills_do_not_show(lives):
    folder, outputs, checkpoints = lives
    assert checkpoints == sorted(checkpoints)
    assert 0 < checkpoints[0] < checkpoints[-1] < STEPS
    # Each life went on from what the one before had saved.
    begun = [int(found[1]) if (found := re.search(r"resuming .* at step (\d+)", text)) else None for text in outputs]
    assert begun[-1] == checkpoints[-1]
    assert all(step in (None, before) for step, before in zip(begun[1:], checkpoints, strict=True))
    assert_same_run(folder / "killed", folder / "straight")
    names = {path.name for path in (folder / "killed" / "checkpoints").iterdir()}
    assert len(names) == 3
    assert str(STEPS) in names
    assert all(name.isdigit() for name in names)  # nothing is left of saves that were cut short
    assert not list((folder / "killed").glob("*.partial"))


@pytest.fixture(scope="module")
def full(lives):
    """What a run says that can write no file of more than some kilobytes, and the checkpoints before and after."""
    folder = lives.folder
    checkpoints = folder / "middle" / "checkpoints"
    before = contents(checkpoints)
    process = started(folder, "middle")
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (16_000, 16_000))
    _, errors = process.communicate(timeout=300)
    return folder, process.returncode, errors, before, contents(checkpoints)


def contents(folder):
    """The files of whole checkpoints, byte for byte."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.relative_to(folder).parts[0].isdigit()]
    return {path.relative_to(folder): path.read_bytes() for path in paths}


def test_a_checkpoint_that_cannot_be_written_ends_the_run(full):
    folder, code, errors, before, after = full
    assert code == 2
    checkpoints = folder / "middle" / "checkpoints"
    good = newest(folder / "middle")
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    last = f"last good checkpoint: {checkpoints / str(good)}"
    assert re.fullmatch(rf"error: checkpoint {checkpoints / str(good + 40)} can't be written \(.*\); {last}", line)
    assert before == after
    assert before


def test_a_checkpoint_that_cannot_be_written_is_one_line_with_its_cause(full):
    errors = full[2]
    assert "File too large" in errors
    assert len(errors.splitlines()) == 1


def test_with_room_again_the_run_goes_on(full):
    folder = full[0]
    ended = program(*flags(folder, "middle", **SELDOM))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert_same_run(folder / "middle", folder / "straight")


def test_too_little_room_is_said_before_the_first_step(tmp_path, monkeypatch):
    def untouched(*arguments):
        raise AssertionError("no step may be trained")

    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=12))
    every = {"checkpoint": {"every": 1, "keep": 3}}
    message = r"checkpoints has 0\.0 MB free, and 4 checkpoints of 0\.0 MB are to come: free some space, lower config\."
    with pytest.raises(UserError, match=message):
        trained(tmp_path, TASK._replace(update=untouched), **every)
    assert not (tmp_path / "metrics.jsonl").exists()
    # Two whole numbers are eight bytes: one checkpoint has room.
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=8))
    trained(tmp_path, checkpoint={"every": 0, "keep": 3})


def test_a_workdir_that_no_one_can_write_is_named(tmp_path):
    line = only_line(program("experiments.train", "--config=configs/consistency/digits.py", "--workdir=/proc/run"))
    assert re.match(r"error: --workdir /proc/run can't be written: \w", line)


def test_a_second_run_in_one_workdir_is_refused(tmp_path):
    config = tasks.resolve(small("consistency/digits"))
    with runs._opened(config, tmp_path / "run", wait=False):
        with pytest.raises(
            UserError, match=f"^another process is at work in {tmp_path / 'run'}; choose another --work"
        ):
            runs.train(config, tmp_path / "run")
        with runs._opened(config, tmp_path / "other", wait=False):
            pass
    with runs._opened(config, tmp_path / "run", wait=False):
        pass
