"""What can be trained. A task is built from its config, its world, and a way to get another trained run."""

import ml_collections

from experiments.engine.errors import UserError, unknown
from experiments.engine.task import Task
from experiments.tasks import autoencoding, classification, consistency, diffusion
from experiments.worlds import Trained, World

TASKS = {
    "autoencoding": autoencoding.build,
    "classification": classification.build,
    "consistency": consistency.build,
    "diffusion": diffusion.build,
}


def resolve(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A copy with every choice filled in, so that two configs that compute the same are the same."""
    config = ml_collections.ConfigDict(config.to_dict())
    if config.task not in TASKS:
        raise unknown("config.task", config.task, TASKS)
    return consistency.resolve(config) if config.task == "consistency" else config


def build(config: ml_collections.ConfigDict, world: World, trained: Trained) -> Task:
    """The task of a resolved config. What a library function or model refuses in it is the user's to mend."""
    try:
        return TASKS[config.task](config, world, trained)
    except ValueError as error:
        raise UserError(f"config: {error}") from error
