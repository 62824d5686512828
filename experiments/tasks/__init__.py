"""What can be trained. A task is built from its config, its world, and a way to get another trained run."""

import jax
import ml_collections
import numpy as np

from experiments.engine import configuration
from experiments.engine.errors import UserError, unknown
from experiments.engine.task import Task
from experiments.tasks import (
    autoencoding,
    captioning,
    classification,
    common,
    consistency,
    diffusion,
    distillation,
    language,
    score_distillation,
)
from experiments.worlds import Trained, World

TASKS = {
    "autoencoding": autoencoding.build,
    "captioning": captioning.build,
    "classification": classification.build,
    "consistency": consistency.build,
    "diffusion": diffusion.build,
    "distillation": distillation.build,
    "language": language.build,
    "score_distillation": score_distillation.build,
}
FIELDS = {
    "autoencoding": (),
    "captioning": captioning.FIELDS,
    "classification": (),
    "consistency": consistency.FIELDS,
    "diffusion": diffusion.FIELDS,
    "distillation": distillation.FIELDS,
    "language": language.FIELDS,
    "score_distillation": score_distillation.FIELDS,
}
OF_TEXTS = ("language",)


def resolve(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A copy with every choice filled in, so that two configs that compute the same are the same."""
    config = ml_collections.ConfigDict(config.to_dict())
    if config.get("task", None) not in TASKS:
        raise unknown("config.task", config.get("task", None), TASKS)
    configuration.complete(config)
    for path in (*common.FIELDS, *FIELDS[config.task]):
        node = config
        for part in path.split("."):
            if not isinstance(node, ml_collections.ConfigDict) or part not in node:
                raise UserError(f"config.{path} is missing; configs/common.py has the fields of a {config.task} config")
            node = node[part]
    return consistency.resolve(config) if config.task == "consistency" else config


def build(config: ml_collections.ConfigDict, world: World, trained: Trained) -> Task:
    """The task of a resolved config. What a library function or model refuses in it is the user's to mend."""
    if world.text is not None and config.task not in OF_TEXTS:
        raise UserError(f"config.data: {config.task} needs pictures, and {config.data.name!r} has none")
    try:
        task = TASKS[config.task](config, world, trained)
        # Compiled calls, within which nothing is traced twice: a start traces an update here and again for its interval.
        task = task._replace(init=jax.jit(task.init), update=jax.jit(task.update))
        _trace(task, config, world)
        return task
    except ValueError as error:
        raise UserError(f"config: {error}") from error


def _trace(task: Task, config: ml_collections.ConfigDict, world: World) -> None:
    """One update on shapes alone: what would be refused in the first step is refused now."""
    example = world.train.read(np.arange(1))
    batch = {
        name: jax.ShapeDtypeStruct((config.batch_size, *values.shape[1:]), jax.dtypes.canonicalize_dtype(values.dtype))
        for name, values in example.items()
    }
    batch["index"] = jax.ShapeDtypeStruct((config.batch_size,), np.int32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    jax.eval_shape(task.update, jax.eval_shape(task.init, key), batch, key)
