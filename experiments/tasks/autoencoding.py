"""A small autoencoder, whose latents are a world of their own."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from jax import Array

from experiments import models
from experiments.engine.task import Batch, Panels, Task
from experiments.tasks import common
from experiments.tasks.common import TrainState
from experiments.worlds import Trained, World
from mlfuncs import robust

PICTURED = 64
TEST_BATCH = 512


class Coder(NamedTuple):
    encode: Callable[[Array], Array]
    decode: Callable[[Array], Array]


def build(config: ml_collections.ConfigDict, world: World, trained: Trained) -> Task:
    del trained
    common.check_best(config, ["test_error"])
    model = models.build(config.model, example_shape=world.example_shape, num_classes=world.num_classes)
    optimizer = common.make_optimizer(config.optimizer, config.steps)

    def init(key: Array) -> TrainState:
        return common.initial_state(model.init(key), optimizer)

    def update(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, dict[str, Array]]:
        (flip_keys,) = common.step_keys(key, batch, 1)
        images = common.examples(world, batch, flip_keys)

        def losses(params: Any, images: Array) -> tuple[Array, dict[str, Array]]:
            return robust.mean_squared(model.apply(params, images)["reconstruction"], images), {}

        means, gradients = common.mean_and_gradients(losses, state.params, images, config.accumulate)
        return common.apply_gradients(state, gradients, optimizer, config.ema_decay), means

    @jax.jit
    def reconstruct(params: Any, raw: Array) -> tuple[Array, Array]:
        images = world.to_model(raw)
        reconstruction = model.apply(params, images)["reconstruction"]
        return reconstruction, robust.mean_squared(reconstruction, images)

    def evaluate(state: TrainState, key: Array) -> tuple[dict[str, float], dict[str, Panels]]:
        del key
        blocks = np.array_split(np.arange(len(world.test)), max(1, len(world.test) // TEST_BATCH))
        errors = [reconstruct(state.average, world.test.read(block)["image"])[1] for block in blocks]
        shown = world.test.read(np.arange(min(PICTURED, len(world.test))))["image"]
        panels = [
            ("reconstructed", common.pixels(world, reconstruct(state.average, shown)[0])),
            ("real", common.real_pixels(world, PICTURED)),
        ]
        return {"test_error": float(np.mean(np.concatenate(errors)))}, {"reconstructions": panels}

    return Task(init, update, evaluate, axes=model.axes)


def coder(run: Any) -> Coder:
    """Encoder and decoder of a trained run."""
    model = models.build(run.config.model, example_shape=run.world.example_shape, num_classes=run.world.num_classes)
    params = run.state.average
    return Coder(
        encode=lambda images: model.apply(params, images)["latent"],
        decode=lambda latent: model.apply(params, latent, method="decode"),
    )
