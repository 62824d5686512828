"""Every config resolves to a task, the large ones hold the papers' settings, and both take real steps."""

import importlib
import json
import math
import os
import pathlib

import jax
import ml_collections
import numpy as np
import pytest

from experiments import models, runs, tasks
from experiments.engine import configuration
from tests.experiments.helpers import ROOT
from tests.experiments.image_sets import write_image_set

NAMES = sorted(
    str(path.relative_to(ROOT / "configs").with_suffix(""))
    for path in (ROOT / "configs").glob("*/*.py")
    if path.stem != "__init__" and path.parent.name != "papers"
)


def config_of(name: str) -> ml_collections.ConfigDict:
    return importlib.import_module(f"configs.{name.replace('/', '.')}").get_config()


@pytest.mark.parametrize("name", NAMES)
def test_configs_resolve_and_are_plain_data(name):
    config = tasks.resolve(config_of(name))
    assert config.task == name.split("/")[0]
    assert json.loads(json.dumps(configuration.plain(config))) == configuration.plain(config)
    # Every run stops at a checkpoint that its config keeps, and logs on the way.
    assert config.steps % config.log_every == 0
    assert config.checkpoint.keep >= 1


def test_there_is_a_config_for_each_task_and_data_set():
    assert {"consistency/digits", "consistency/mnist", "consistency/cifar10", "consistency/imagenet64"} <= set(NAMES)
    assert {"consistency/latent_digits", "diffusion/digits", "classification/digits"} <= set(NAMES)


@pytest.mark.parametrize(
    ("name", "batch", "steps", "dropout", "decay", "second_level"),
    [("cifar10", 1024, 400_000, 0.3, 0.99993, 0.821), ("imagenet64", 4096, 800_000, 0.2, 0.99997, 1.526)],
)
def test_the_papers_settings(name, batch, steps, dropout, decay, second_level):
    config = tasks.resolve(config_of(f"consistency/{name}"))
    assert (config.batch_size, config.steps, config.ema_decay) == (batch, steps, decay)
    assert (config.optimizer.name, config.optimizer.learning_rate) == ("radam", 1e-4)
    assert (config.model.dropout, config.model.fourier_scale) == (dropout, 0.02)
    assert (config.consistency.initial_steps, config.consistency.final_steps) == (10, 1280)
    assert (config.consistency.proposal_mean, config.consistency.proposal_std) == (-1.1, 2.0)
    assert config.evaluation.levels == ((80.0,), (80.0, second_level))


@pytest.mark.parametrize(
    ("name", "shape", "millions"), [("cifar10", (32, 32, 3), (50, 65)), ("imagenet64", (64, 64, 3), (250, 300))]
)
def test_the_papers_sizes(name, shape, millions):
    model = models.build(tasks.resolve(config_of(f"consistency/{name}")).model, example_shape=shape, num_classes=1000)
    parameters = jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0)))
    assert millions[0] < sum(math.prod(leaf.shape) for leaf in parameters) / 1e6 < millions[1]
    assert {leaf.dtype for leaf in parameters} == {np.dtype("float32")}


def image_sets(tmp_path: pathlib.Path, name: str, size: int) -> str:
    """The folder of prepared image sets if there is one with this set, else one with random images."""
    given = pathlib.Path(os.environ.get("MLFUNCS_DATA", ""))
    if os.environ.get("MLFUNCS_DATA") and any((folder / name).is_dir() for folder in (given, given / "tfds")):
        return str(given)
    images = np.random.default_rng(0).integers(0, 256, (24, size, size, 3), np.uint8)
    write_image_set(tmp_path, name, list(images), list(range(10)) * 2 + [0] * 4, held_out=8)
    return str(tmp_path)


def trained(config: ml_collections.ConfigDict) -> list[dict]:
    """What some steps of a large config log: its own network and settings, with a small batch."""
    config.batch_size, config.log_every, config.evaluate_every = 2, 1, 0
    config.checkpoint.every, config.mesh.data = 0, 1
    run = runs.prepare(tasks.resolve(config))
    update = jax.jit(run.task.update, donate_argnums=0)
    state, records = jax.jit(run.task.init)(jax.random.key(0)), []
    for step in range(2):
        batch = {**run.world.train.read(np.arange(2) + step), "index": np.arange(2, dtype=np.int32)}
        state, metrics = update(state, batch, jax.random.key(step))
        records.append({name: float(value) for name, value in metrics.items()})
    assert int(state.step) == 2
    return records


def check(records: list[dict]) -> None:
    for record in records:
        assert np.isfinite(record["loss"])
        assert 0 < record["gradient_norm"] < np.inf
        assert record["levels"] == 11


def cifar(tmp_path: pathlib.Path) -> ml_collections.ConfigDict:
    config = config_of("consistency/cifar10")
    config.data.data_dir = image_sets(tmp_path, "cifar10", 32)
    return config


def imagenet(tmp_path: pathlib.Path) -> ml_collections.ConfigDict:
    config = config_of("consistency/imagenet64")
    config.data.data_dir = image_sets(tmp_path, "imagenet_resized/64x64", 64)
    return config


@pytest.mark.parametrize("given", [cifar, imagenet])
def test_large_configs_take_real_steps_with_a_narrow_network(given, tmp_path):
    config = given(tmp_path)
    # A prepared set is decoded whole while it is loaded, and two steps see few of its images.
    config.data.train_split, config.data.test_split = "train[:16]", "train[:2]"
    config.model.channels, config.model.head_channels, config.model.channel_multipliers = 16, 16, (1, 2)
    config.model.blocks_per_level = 1
    check(trained(config))


@pytest.mark.slow
@pytest.mark.parametrize("given", [cifar, imagenet])
def test_large_configs_take_real_steps(given, tmp_path):
    """Networks of 57 and 266 million parameters: up to 9 GB of memory and some minutes."""
    check(trained(given(tmp_path)))
