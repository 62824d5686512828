"""Image classification with a small network; its penultimate features judge generated images."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax import Array

from experiments import models
from experiments.engine.errors import UserError
from experiments.engine.task import Batch, Panels, Task
from experiments.tasks import common
from experiments.tasks.common import TrainState
from experiments.worlds import Trained, World

TEST_BATCH = 512
CLASSIFIERS = ("classifier", "perceptron", "resnet")


def build(config: ml_collections.ConfigDict, world: World, trained: Trained) -> Task:
    del trained
    common.check_best(config, ["test_accuracy"])
    if world.num_classes < 2:
        raise UserError(f"config.data: classification needs labels, and {config.data.name!r} has none")
    model = network(config, world)
    optimizer = common.make_optimizer(config.optimizer, config.steps)

    def init(key: Array) -> TrainState:
        return common.initial_state(model.init(key), optimizer)

    def update(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, dict[str, Array]]:
        dropout_keys, flip_keys = common.step_keys(key, batch, 2)
        images = common.examples(world, batch, flip_keys)

        def losses(params: Any, examples: tuple[Array, Array, Array]) -> tuple[Array, dict[str, Array]]:
            images, labels, keys = examples
            logits = model.apply(params, images, **dropout(config, keys))["logits"]
            correct = (jnp.argmax(logits, -1) == labels).astype(jnp.float32)
            return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels), {"accuracy": correct}

        examples = (images, batch["label"], dropout_keys)
        means, gradients = common.mean_and_gradients(losses, state.params, examples, config.accumulate)
        return common.apply_gradients(state, gradients, optimizer, config.ema_decay), means

    @jax.jit
    def predict(params: Any, raw: Array) -> Array:
        return jnp.argmax(model.apply(params, world.to_model(raw))["logits"], -1)

    def evaluate(state: TrainState, key: Array) -> tuple[dict[str, float], dict[str, Panels]]:
        del key
        guesses, labels = over_test_set(world, lambda raw: predict(state.average, raw))
        return {"test_accuracy": float(np.mean(guesses == labels))}, {}

    return Task(init, update, evaluate, axes=model.axes)


def network(config: ml_collections.ConfigDict, world: World) -> models.Model:
    """The network of a config, which has to give logits."""
    model = models.build(config.model, example_shape=world.example_shape, num_classes=world.num_classes)
    example = jax.ShapeDtypeStruct((1, *world.example_shape), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0))
    try:
        found = jax.eval_shape(model.apply, params, example)
    except TypeError:  # it wants more than images
        found = None
    if not (isinstance(found, dict) and "logits" in found):
        raise UserError(f"config.model: {config.model.name!r} gives no logits of images; {', '.join(CLASSIFIERS)} do")
    return model


def dropout(config: ml_collections.ConfigDict, keys: Array) -> dict[str, Array]:
    """The input `keys` of a network that has dropout."""
    return {"keys": keys} if models.takes(config.model, "keys") else {}


def over_test_set(world: World, function: Callable[[np.ndarray], Array]) -> tuple[np.ndarray, np.ndarray]:
    """What a function gives for all raw test images, and their labels."""
    blocks = np.array_split(np.arange(len(world.test)), max(1, len(world.test) // TEST_BATCH))
    read = [world.test.read(block) for block in blocks]
    found = [np.asarray(function(batch["image"])) for batch in read]
    return np.concatenate(found), np.concatenate([batch["label"] for batch in read])


def outputs(run: Any) -> Callable[[Array], dict[str, Array]]:
    """What a trained run gives for images as models see them: "logits" [B, classes] and penultimate "features" [B, F]."""
    model = models.build(run.config.model, example_shape=run.world.example_shape, num_classes=run.world.num_classes)
    return lambda images: model.apply(run.state.average, images)


def features(run: Any) -> Callable[[Array], Array]:
    """The penultimate features [B, F] of a trained run, as a function of images as models see them."""
    every = outputs(run)
    return lambda images: every(images)["features"]
