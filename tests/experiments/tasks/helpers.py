"""Runs whose parameters are made up, where a test needs a task and not what training does to it."""

from typing import Any

import jax
import ml_collections

from experiments import runs, tasks, worlds
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
