"""The task: a classifier that learns from another one, a run of its own, which stays as it is."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax import Array

from experiments.engine import parts
from experiments.engine.errors import UserError
from experiments.engine.task import Batch, Panels, Task
from experiments.tasks import classification, common
from experiments.tasks.distillation import objectives
from experiments.worlds import Trained, World

FIELDS = ("objective", "teacher")
TEACHERS = ("classification", "distillation")
METRICS = ("test_accuracy", "teacher_accuracy", "agreement")


class State(NamedTuple):
    """What a step reads and writes; the teacher is here so that another one compiles nothing."""

    step: Array
    params: Any
    optimizer: Any
    average: Any  # exponential moving average of `params`
    teacher: Any  # never changed


def build(config: ml_collections.ConfigDict, world: World, trained: Trained) -> Task:
    terms = objectives.parse(config.objective)
    _check(config, terms)
    run = trained(config.teacher)
    _check_teacher(run, world)
    student, teacher = classification.network(config, world), classification.network(run.config, run.world)
    optimizer = common.make_optimizer(config.optimizer, config.steps)

    def init(key: Array) -> State:
        started = common.initial_state(student.init(key), optimizer)
        frozen = jax.tree.map(jnp.copy, run.state.average)  # a step may use up what it is given
        return State(started.step, started.params, started.optimizer, started.average, frozen)

    def update(state: State, batch: Batch, key: Array) -> tuple[State, dict[str, Array]]:
        dropout_keys, flip_keys = common.step_keys(key, batch, 2)
        images = common.examples(world, batch, flip_keys)
        # Outside of what is differentiated: nothing of the teacher but its logits is kept for the backward pass.
        taught = jax.lax.stop_gradient(teacher.apply(state.teacher, images)["logits"])

        def loss(params: Any, examples: Any) -> tuple[Array, dict[str, Array]]:
            images, labels, taught, keys = examples
            logits = student.apply(params, images, **classification.dropout(config, keys))["logits"]
            guess = jnp.argmax(logits, -1)
            hits = {"accuracy": guess == labels, "agreement": guess == jnp.argmax(taught, -1)}
            value = objectives.value(terms, logits, taught, labels, axis_name=parts.axis())
            return value, {name: hit.astype(jnp.float32) for name, hit in hits.items()}

        examples = (images, batch["label"], taught, dropout_keys)
        means, gradients = common.mean_and_gradients(loss, state.params, examples, config.accumulate)
        return common.apply_gradients(state, gradients, optimizer, config.ema_decay), means

    @jax.jit
    def predict(params: Any, frozen: Any, raw: Array) -> Array:
        images = world.to_model(raw)
        logits = student.apply(params, images)["logits"], teacher.apply(frozen, images)["logits"]
        return jnp.argmax(jnp.stack(logits, axis=1), -1)

    def evaluate(state: State, key: Array) -> tuple[dict[str, float], dict[str, Panels]]:
        """Accuracies on the test set, and how often the two say the same."""
        del key
        guesses, labels = classification.over_test_set(world, partial(predict, state.average, state.teacher))
        ours, theirs = guesses.T
        found = (ours == labels, theirs == labels, ours == theirs)
        return {name: float(np.mean(each)) for name, each in zip(METRICS, found, strict=True)}, {}

    return Task(init, update, evaluate, axes=student.axes)


def _check(config: ml_collections.ConfigDict, terms: tuple[objectives.Term, ...]) -> None:
    common.check_best(config, METRICS)
    mixing = sorted({term.name for term in terms} & objectives.WHOLE_BATCH)
    if config.accumulate > 1 and mixing:
        raise UserError(f"config.objective: {', '.join(mixing)} compares a whole batch, so config.accumulate must be 1")
    known = config.teacher.get("task", "classification")
    if not config.teacher.get("workdir", "") and known not in TEACHERS:
        raise UserError(f"config.teacher must be a {' or '.join(TEACHERS)} config, got a {known} config")


def _check_teacher(run: Any, world: World) -> None:
    if run.config.task not in TEACHERS:
        raise UserError(f"config.teacher is a {run.config.task} run, and has to be one of {' or '.join(TEACHERS)}")
    theirs, ours = ((each.example_shape, each.num_classes) for each in (run.world, world))
    if theirs != ours:
        raise UserError(
            f"config.teacher knows {theirs[1]} classes of examples of shape {theirs[0]}, and config.data has "
            f"{ours[1]} of shape {ours[0]}"
        )
