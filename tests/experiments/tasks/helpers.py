"""Runs whose parameters are made up, where a test needs a task and not what training does to it; one task on many meshes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from experiments import runs, tasks, worlds
from experiments.engine import logs, loop
from tests.experiments.models.helpers import filled

_made_up: dict[str, runs.Run] = {}


def untrained(config: ml_collections.ConfigDict) -> runs.Run:
    """In place of a run that another one needs: nothing is compiled, trained or stored. The same config gives the same."""
    config = tasks.resolve(config)
    described = config.to_json_best_effort(sort_keys=True)
    if described not in _made_up:
        world = worlds.build(config.data, untrained)
        task = tasks.TASKS[config.task](config, world, untrained)
        state: Any = filled(jax.eval_shape(task.init, jax.random.key(0)))
        _made_up[described] = runs.Run(config, world, task, state)
    return _made_up[described]


def prepare(config: ml_collections.ConfigDict) -> runs.Run:
    """`runs.prepare`, with untrained runs for those that this one needs."""
    config = tasks.resolve(config)
    world = worlds.build(config.data, untrained)
    return runs.Run(config, world, tasks.build(config, world, untrained))


def losses_on(run: runs.Run, workdir: Path, mesh: Mapping[str, int], parallel: str = "jit") -> np.ndarray:
    """The loss of every step of a prepared run's training from the start, on the devices of a mesh."""
    given = run.config.copy_and_resolve_references()
    given.mesh, given.parallel, given.log_every = mesh, parallel, 1
    loop.train(run.task, run.world.train, given, workdir, label=workdir.name)
    return np.array([record["loss"] for record in logs.read(workdir / "metrics.jsonl")])
