"""The programs as a user calls them: train, kill, go on, sample, compare; every mistake is one line."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from experiments import runs, tasks
from experiments.engine import compiling
from tests.experiments.helpers import ROOT, only_line, program, small, tiny_flags


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small run that was killed in the middle and then went on to its end."""
    folder = tmp_path_factory.mktemp("programs")
    workdir, flags = folder / "run", tiny_flags(folder / "cache")
    command = [sys.executable, "-m", "experiments.train", *flags, f"--workdir={workdir}"]
    environment = {**os.environ, "XLA_FLAGS": compiling.quick_flags()}
    first = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    deadline = time.time() + 240
    while not (workdir / "checkpoints" / "40").exists() and time.time() < deadline:
        assert first.poll() is None, "ended before it could be killed"
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    first.stdout.close()
    killed_at = max(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
    second = program("experiments.train", *flags, f"--workdir={workdir}")
    assert second.returncode == 0, second.stderr
    return folder, workdir, flags, killed_at, second.stdout


def test_a_killed_run_goes_on(trained):
    _, workdir, _, killed_at, output = trained
    assert 40 <= killed_at < 400
    assert f"resuming {workdir} at step" in output
    steps = [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(10, 401, 10))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_says_how_to_go_on(trained, number):
    folder, _, flags, _, _ = trained
    workdir = folder / number.name
    command = [sys.executable, "-m", "experiments.train", *flags, f"--workdir={workdir}", "--config.steps=1000000"]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": compiling.quick_flags()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if "step 40/" in line:
            break
    process.send_signal(number)
    _, message = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    (step,) = {int(p.name) for p in (workdir / "checkpoints").iterdir()} & {
        int(message.split("at step ")[1].split()[0])
    }
    assert f"stopped by {number.name} at step {step} of 1000000; saved" in message


def test_what_a_run_leaves(trained):
    _, workdir, _, _, output = trained
    assert {p.name for p in workdir.iterdir()} >= {
        "config.json",
        "metrics.jsonl",
        "tensorboard",
        "samples_200.png",
        "samples_400.png",
        "curves.png",
        "checkpoints",
    }
    assert not list(workdir.glob("*.partial"))
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert all({"step", "loss", "steps_per_second"} <= record.keys() for record in records)
    assert {"frechet_distance_1", "frechet_distance_2", "frechet_distance_floor"} <= records[-1].keys()
    assert "frechet_distance_1" not in records[0]
    assert output.strip().splitlines()[-1].startswith("done at step 400: pictures")
    # A pipe gets plain lines, no control characters.
    assert "\x1b" not in output
    assert list((workdir / "tensorboard").iterdir())


def test_killed_and_uninterrupted_runs_agree(trained):
    folder, workdir, flags, _, _ = trained
    straight = program("experiments.train", *flags, f"--workdir={folder / 'straight'}")
    assert straight.returncode == 0, straight.stderr

    def numbers(path):
        lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        return [{name: value for name, value in line.items() if name != "steps_per_second"} for line in lines]

    assert numbers(workdir) == numbers(folder / "straight")


def test_starting_a_finished_run_changes_nothing(trained):
    _, workdir, flags, _, _ = trained
    before = {
        p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file() and p.name not in ("config.json", ".lock")
    }
    again = program("experiments.train", *flags, f"--workdir={workdir}")
    assert again.returncode == 0, again.stderr
    assert "done at step 400" in again.stdout
    after = {
        p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file() and p.name not in ("config.json", ".lock")
    }
    assert before == after


def test_another_config_is_refused(trained):
    _, workdir, flags, _, _ = trained
    other = program("experiments.train", *flags, "--config.seed=1", "--config.log_every=5", f"--workdir={workdir}")
    assert other.returncode == 2
    assert "seed: 0 there, 1 here" in other.stderr
    assert "log_every" not in other.stderr  # changes what is written, not what is computed
    assert len(other.stderr.strip().splitlines()) == 1


def test_sampling(trained):
    folder, workdir, _, _, _ = trained
    out = folder / "grid.png"
    sampled = program("experiments.sample", f"--workdir={workdir}", "--num=20", "--steps=2", f"--out={out}")
    assert sampled.returncode == 0, sampled.stderr
    picture = np.asarray(Image.open(out).convert("L"))
    assert min(picture.shape) > 100
    assert picture.std() > 10
    again = program("experiments.sample", f"--workdir={workdir}", "--num=20", f"--out={out}")
    assert again.returncode == 2
    assert "exists" in again.stderr


def test_texts_are_printed_and_written(tmp_path):
    config = small("language/facts", steps=2, **{"model.width": 16, "model.depth": 1, "checkpoint.every": 2})
    runs.train(tasks.resolve(config), tmp_path / "run")
    out = tmp_path / "texts.txt"
    asked = ("experiments.sample", f"--workdir={tmp_path / 'run'}", "--num=3", "--steps=4", f"--out={out}")
    sampled = program(*asked, "--prompt=what is", "--temperature=0")
    assert sampled.returncode == 0, sampled.stderr
    assert out.read_text().count("what is") == 3
    assert out.read_text() in sampled.stdout
    assert "3 samples in 4 tokens" in sampled.stdout
    assert "exists" in only_line(program(*asked))


def test_comparing(trained):
    _, workdir, _, _, _ = trained
    table = program("experiments.compare", str(workdir), str(workdir))
    assert table.returncode == 0, table.stderr
    assert table.stdout.count("improved") == 2
    assert "real vs real" in table.stdout
    assert "samples_400.png" in table.stdout


TRAIN = ("experiments.train", "--config=configs/consistency/digits.py")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("experiments.train",), "--config is required"),
        (TRAIN, "--workdir is required"),
        ((*TRAIN, "--workdir=/tmp/x", "--config.stepz=3"), "stepz"),
        ((*TRAIN, "--workdir=/tmp/x", "--config.steps=many"), "steps"),
        ((*TRAIN, "--workdir=/tmp/x", "--config.method=magic"), "distillation, easy_tuning, improved"),
        ((*TRAIN, "--workdir=/tmp/x", "more"), "more"),
        (("experiments.train", "--config=nowhere.py", "--workdir=/tmp/x"), "nowhere.py"),
        (("experiments.train", "--workdir=/tmp/x", "--config.steps=3"), "--config"),
        (("experiments.sample", "--workdir=/nonexistent/run"), "config.json"),
        (("experiments.sample", "--workdir=/tmp/x", "--num=0"), "--num"),
        (("experiments.sample", "--workdir=/tmp/x", "--out=/nonexistent/a.png"), "--out"),
        (("experiments.compare",), "at least one workdir"),
        (("experiments.compare", "/nonexistent/run"), "config.json"),
        (("experiments.benchmark",), "consistency"),
        (("experiments.benchmark", "speed"), "unknown subject"),
    ],
)
def test_mistakes_are_one_line(arguments, match):
    assert match in only_line(program(*arguments))


def test_mistakes_found_while_preparing_are_one_line(tmp_path):
    flags = (*tiny_flags(tmp_path / "cache"), f"--workdir={tmp_path / 'run'}")
    assert "larger than the data" in only_line(program("experiments.train", *flags, "--config.batch_size=5000"))
    assert "between 1 and 1 devices" in only_line(program("experiments.train", *flags, "--config.mesh.data=5"))
    # Nothing was trained for them, and nothing is left that would refuse the corrected config.
    assert not (tmp_path / "cache").exists()
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_corrupt_config_is_named(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"seed": ')
    line = only_line(program("experiments.train", *tiny_flags(tmp_path), f"--workdir={tmp_path / 'run'}"))
    assert "config.json is corrupt" in line
    assert (tmp_path / "run" / "config.json").read_text() == '{"seed": '


def test_a_workdir_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    line = only_line(program("experiments.train", *tiny_flags(tmp_path), f"--workdir={tmp_path / 'file' / 'run'}"))
    assert "can't be written" in line


def test_help_says_how_to_call(tmp_path):
    for name in ("train", "sample", "compare", "benchmark"):
        answer = program(f"experiments.{name}", "--help")
        assert answer.returncode == 0
        assert "usage: python -m experiments" in answer.stdout
