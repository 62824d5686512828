"""A family of ever smaller Mamba students of one teacher: does each that learns where the others fail complete the group?"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax import Array

from experiments import models
from experiments.papers import training
from mlfuncs import architecture_search, distillation, metrics

VECTORISED = False  # so that arms share what is compiled: a network of each size once

CLOSE = 0.01  # of the teacher's accuracy, within which a group is as good
SCAN = 4  # multiply-adds a step, channel and state: the decay, the input, the update and the output


class Size(NamedTuple):
    """Of a network."""

    width: int
    states: int
    depth: int = 1


@functools.cache
def network(size: Size, example_shape: tuple[int, ...]) -> models.Model:
    """Mamba blocks that read an image row by row."""
    config = ml_collections.ConfigDict({"name": "mamba", **size._asdict()})
    return models.build(config, example_shape=example_shape, num_classes=training.CLASSES)


@functools.cache
def multiply_adds(size: Size, example_shape: tuple[int, ...]) -> int:
    """Of one image: products with every weight, and the recurrence; norms and activations are left out."""
    steps, total = example_shape[0], 0
    shapes = jax.eval_shape(network(size, example_shape).init, jax.random.key(0))
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        part, name = path[0].key, path[-1].key
        if name in ("kernel", "taps"):
            total += architecture_search.layer_flops(leaf.shape, 1 if part == "last" else steps, 1.0)
        elif name == "log_rate":
            total += SCAN * steps * math.prod(leaf.shape)
    return total


class Teaching(NamedTuple):
    """What a network is trained with: the teacher's logits [N, C] and weights [N] of examples, how far labels count."""

    told: Array
    weights: Array
    alpha: Array | float
    temperature: Array | float


@functools.partial(jax.jit, static_argnames=("size", "batch", "steps"))
def trained(
    key: Array,
    train: training.Labelled,
    test_x: Array,
    teaching: Teaching,
    peak: float,
    *,
    size: Size,
    batch: int,
    steps: int,
) -> tuple[Array, Array]:
    """Logits of a trained network on the training set and on the test set."""
    made = network(size, train.x.shape[1:])
    init_key, order_key = jax.random.split(key)

    def loss(params: Any, rows: Array, key: Array) -> Array:
        del key
        examples = train.take(rows)
        each = distillation.hard_soft(
            made.apply(params, examples.x)["logits"],
            teaching.told[rows],
            examples.y,
            alpha=teaching.alpha,
            temperature=teaching.temperature,
        )
        return jnp.mean(teaching.weights[rows] * each)

    optimizer = optax.adam(optax.cosine_decay_schedule(peak, steps))
    rows = training.batches(order_key, len(train.y), batch, steps)
    params, _, _ = training.fit(loss, made.init(init_key), optimizer, rows, key)
    said = training.in_parts(lambda x: made.apply(params, x)["logits"], jnp.concatenate([train.x, test_x]))
    return said[: len(train.y)], said[len(train.y) :]


def splits(key: Array, shared: ml_collections.ConfigDict) -> tuple[training.Labelled, training.Labelled]:
    """Training and test images, in [-1, 1]."""
    train, test = training.image_splits(shared.data, key, (shared.train, shared.test))
    return train._replace(x=2 * train.x - 1), test._replace(x=2 * test.x - 1)


def prepare(config: ml_collections.ConfigDict, key: Array) -> dict[str, Any]:
    """What the teacher of a seed says of all images."""
    data_key, teacher_key = jax.random.split(key)
    train, test = splits(data_key, config)
    nobody = Teaching(jnp.zeros((config.train, training.CLASSES)), jnp.ones(config.train), 1.0, 1.0)
    given = {"size": Size(*config.teacher), "batch": config.batch, "steps": config.steps}
    told, tested = trained(teacher_key, train, test.x, nobody, config.learning_rate, **given)
    return {"told": told, "tested": tested}


@jax.jit
def left_over(students: list[Array], teacher: Array) -> Array:
    """Weights [N] of training examples for the student after those with these logits [N, C]."""
    so_far = distillation.prefix_ensemble(jnp.stack(students))[-1]
    return distillation.remaining_error_weights(so_far, jax.nn.softmax(teacher))


def run(config: ml_collections.ConfigDict, key: Array, shared: dict[str, Any]) -> dict[str, Any]:
    """Trains students from the largest to the smallest, and measures the first 1, 2, ... of them as a group."""
    data_key, _ = jax.random.split(key)  # as in `prepare`
    train, test = splits(data_key, config.shared)
    told, weights = shared["told"], jnp.ones(len(train.y))
    sizes = [Size(*size) for size in config.students]
    seen: list[Array] = []
    unseen: list[Array] = []
    for number, size in enumerate(sizes):
        if config.progressive and seen:
            weights = left_over(seen, told)
        teaching = Teaching(told, weights, config.alpha, config.temperature)
        given = {"size": size, "batch": config.batch, "steps": config.steps}
        student_key = jax.random.fold_in(key, number)
        on_train, on_test = trained(student_key, train, test.x, teaching, config.learning_rate, **given)
        seen.append(on_train)
        unseen.append(on_test)
    shape = test.x.shape[1:]
    costs = jnp.array([multiply_adds(size, shape) for size in sizes], jnp.float32)
    shares = costs / multiply_adds(Size(*config.shared.teacher), shape)
    return {**measured(jnp.stack(unseen), shared["tested"], test.y, shares), "last_weights_largest": jnp.max(weights)}


@jax.jit
def measured(students: Array, teacher: Array, labels: Array, shares: Array) -> dict[str, Array]:
    """Of logits [K, N, C] of students and [N, C] of the teacher, and of each student's share [K] of the teacher's cost.

    Where no group comes close to the teacher, what is enough is the teacher, at a share of 1.
    """
    alone = jax.vmap(training.accuracy, (0, None))(students, labels)
    groups = jax.vmap(training.accuracy, (0, None))(distillation.prefix_ensemble(students), labels)
    teacher_accuracy = training.accuracy(teacher, labels)
    enough, cost = metrics.smallest_sufficient_prefix(groups, shares, target=teacher_accuracy - CLOSE)
    return {
        "group_accuracy": groups[-1],
        "teacher_accuracy": teacher_accuracy,
        "group_cost": jnp.sum(shares),
        "smallest_accuracy": alone[-1],
        "smallest_cost": shares[-1],
        "first_accuracy": alone[0],
        "worst_gain": jnp.min(jnp.diff(groups)),
        "cost_enough": jnp.where(enough > 0, cost, 1.0),
        "students_enough": enough,
        **{f"accuracy_of_first_{number}": accuracy for number, accuracy in enumerate(groups, 1)},
        **{f"accuracy_of_{number}_alone": accuracy for number, accuracy in enumerate(alone, 1)},
    }
