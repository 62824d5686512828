"""Two processes with four devices each train as one process with eight does, and end together."""

import re
import signal
import time

import numpy as np
import pytest

from configs import common
from experiments import runs, tasks
from experiments.engine import configuration, hosts, logs
from tests.experiments.helpers import SMALL_MLP, small
from tests.experiments.image_sets import write_image_set
from tests.experiments.processes import begun, ended, losses

STEPS = 30
FIELDS = {
    **SMALL_MLP,
    "batch_size": 64,
    "steps": STEPS,
    "log_every": 1,
    "evaluate_every": 0,
    "checkpoint.every": 10,
    "model.dropout": 0.3,
    "evaluation.samples": 32,
    "evaluation.block": 32,
    "evaluation.pictured": 4,
    "evaluation.reference": 64,
    "evaluation.features": {},
    "evaluation.levels": ((80.0,),),
}
CONFIG = """
from configs import common
from configs.consistency import digits

def get_config():
    config = digits.get_config()
    config.data = common.images("dots", data_dir={folder!r})
    return config
"""
# The same, judged by a network whose batch eight devices do not divide; the second process breaks after that is trained.
JUDGED = """
import sys
from configs import common
from configs.classification import digits as classifier
from configs.consistency import digits
from experiments.engine import loop

advance = loop.advance

def breaking(interval, feed, state, key, step, count):
    if "--process-id=1" in sys.argv and step >= 5 and feed.order.batch_size == 64:
        raise FileNotFoundError("a file that this process alone needs")
    return advance(interval, feed, state, key, step, count)

loop.advance = breaking

def get_config():
    config = digits.get_config()
    config.data = common.images("dots", data_dir={folder!r})
    config.evaluation.features = classifier.get_config()
    config.evaluation.features.update(batch_size=12, steps=4, data=config.data)
    return config
"""

GONE = hosts.GONE.rpartition("}")[2]


def saved(processes, workdir, step):
    """Waits until a checkpoint is whole."""
    until = time.monotonic() + 240
    while not (workdir / "checkpoints" / str(step)).exists():
        assert [process.poll() for process in processes] == [None, None]
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A set of images, and a config that names it."""
    root = tmp_path_factory.mktemp("hosts")
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (100, 8, 8, 1), dtype=np.uint8)
    write_image_set(root, "dots", images, generator.integers(0, 10, 100))
    for name, text in (("dots", CONFIG), ("judged", JUDGED)):
        (root / f"{name}.py").write_text(text.format(folder=str(root)))
    return root


@pytest.fixture(scope="module")
def start(folder):
    """`start(name, config, **fields)`: both processes of a run in that folder, on a port that is free."""
    every = []

    def start(name, config="dots", **fields):
        given = {**FIELDS, "cache_dir": folder / "cache", **fields}
        fields = {field: value for field, value in given.items() if value is not None}
        every.extend(begun(folder / f"{config}.py", folder / name, fields))
        return every[-2:]

    yield start
    for process in every:
        process.kill()


@pytest.fixture(scope="module")
def alone(folder):
    """The losses of one process with eight devices."""
    config = small("consistency/digits", **{**FIELDS, "mesh.data": 8, "checkpoint.every": 0})
    config.data = common.images("dots", data_dir=str(folder))
    runs.train(tasks.resolve(config), folder / "alone")
    return losses(folder / "alone")


@pytest.fixture(scope="module")
def together(start):
    """How two processes have ended, that evaluated at the end."""
    return ended(start("run", evaluate_every=STEPS))


def test_two_processes_train_as_one(folder, alone, together):
    assert together == ((0, 0), ["", ""])
    np.testing.assert_allclose(losses(folder / "run"), alone, rtol=1e-4)


def test_only_the_first_process_writes(folder, together):
    workdir = folder / "run"
    measured = {"frechet_distance_1", "frechet_distance_floor"}
    records = logs.read(workdir / "metrics.jsonl")
    assert [record["step"] for record in records if measured & record.keys()] == [STEPS]
    assert measured <= records[-1].keys()
    assert {path.name for path in workdir.glob("*.png")} == {"curves.png", f"samples_{STEPS}.png"}
    assert len(list((workdir / "tensorboard").iterdir())) == 1
    first, second = ((folder / f"run.{process}").read_text() for process in range(2))
    assert [first.count(f"step {step}/{STEPS} ") for step in range(1, STEPS + 1)] == [1] * STEPS
    assert f"done at step {STEPS}: pictures" in first.splitlines()[-1]
    # What there is comes from JAX, which says how it connects.
    assert not re.search("consistency|step|done", second)


def test_what_the_first_process_refuses_ends_both(start, together):
    codes, errors = ended(start("run", seed=1))
    assert codes == (2, 2)
    assert errors[0] == errors[1]
    assert re.fullmatch(r"error: .*/run was made by another config; .* seed: 0 there, 1 here\n", errors[0])


def test_when_one_is_killed_the_other_ends_and_both_go_on(folder, start, together):
    workdir = folder / "killed"
    processes = start("killed")
    saved(processes, workdir, 10)
    processes[0].kill()
    codes, errors = ended(processes)
    assert codes[0] == -signal.SIGKILL
    assert codes[1] not in (0, 2)
    for process in range(2):
        what = f"process {process} of 2 ended in the middle of the run"
        # As a rule the last line; JAX, which dies in several threads, may have a word after it.
        assert hosts.GONE.format(what=what) in errors[process].splitlines()[-3:]
    assert 10 <= len(logs.read(workdir / "metrics.jsonl")) < STEPS

    assert ended(start("killed")) == ((0, 0), ["", ""])
    assert f"resuming {workdir} at step " in (folder / "killed.0").read_text()

    def numbers(name):
        records = logs.read(folder / name / "metrics.jsonl")
        evaluated = ("steps_per_second", "frechet_distance")
        return [{key: value for key, value in record.items() if not key.startswith(evaluated)} for record in records]

    assert numbers("killed") == numbers("run")


@pytest.mark.slow
def test_when_the_second_is_killed_the_first_ends(folder, start):
    processes = start("second")
    saved(processes, folder / "second", 10)
    processes[1].kill()
    codes, errors = ended(processes)
    assert codes[0] not in (0, 2)
    assert codes[1] == -signal.SIGKILL
    assert [error.splitlines()[-1].endswith(GONE) for error in errors] == [True, True]


def test_the_last_good_checkpoint_of_both_is_whole(folder, start):
    fields = {"method": "training", "optimizer.learning_rate": 1e30, "checkpoint.every": 1}
    codes, errors = ended(start("diverged", **fields))
    assert codes == (2, 2)
    assert errors[0] == errors[1]
    good = folder / "diverged" / "checkpoints" / "1"
    assert re.fullmatch(
        rf"error: the (loss|parameters) .* at step 2; last good checkpoint: {good}\. Lower .*\n", errors[0]
    )
    assert [path.name for path in good.parent.iterdir()] == ["1"]


def test_a_signal_to_one_stops_both_at_one_step(folder, start, alone):
    """Of a run that streams its data, each process its own rows, and splits its state over four devices."""
    workdir = folder / "streamed"
    processes = start("streamed", **{"data.resident_bytes": 0, "mesh.fsdp": 4})
    saved(processes, workdir, 10)
    processes[1].terminate()
    codes, errors = ended(processes)
    assert codes == (128 + signal.SIGTERM,) * 2
    assert errors[0] == errors[1]
    step = int(re.search(r"at step (\d+) ", errors[0])[1])
    assert errors[0] == (
        f"stopped by SIGTERM at step {step} of {STEPS}; saved {workdir / 'checkpoints' / str(step)}. "
        "The same command goes on from there\n"
    )
    assert (workdir / "checkpoints" / str(step)).is_dir()
    assert 10 <= step == len(losses(workdir)) < STEPS
    np.testing.assert_allclose(losses(workdir), alone[:step], rtol=1e-4)


def test_an_error_in_one_ends_both(folder, start):
    """While Python ends JAX would wait for the other process, longer than `ended` does."""
    judged = {"evaluation.features": None, "evaluate_every": STEPS}
    codes, errors = ended(start("broken", "judged", **judged))
    assert codes[1] == 1
    assert codes[0] not in (0, 2)
    assert errors[1].splitlines()[-1] == "FileNotFoundError: a file that this process alone needs"
    assert errors[0].splitlines()[-1].endswith(GONE)
    (classifier,) = (folder / "cache").glob("classification-*")
    assert dict(configuration.load(classifier).mesh) == {"data": 4, "fsdp": 1, "model": 2}
    assert {path.name for path in (classifier / "checkpoints").iterdir()} == {"4"}
