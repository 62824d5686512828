"""Both losses of a student in one head or two, where it has fewer features than there are classes."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax import Array

from experiments import models
from experiments.papers import digits_noise, training
from experiments.papers import dual_head_distillation as heads
from experiments.tasks.distillation import objectives
from experiments.worlds import scenes
from mlfuncs import metrics

VECTORISED = True

SIZE = 16  # of pictures, in pixels
LABELLED = ("shape", "color", "size")  # attributes whose combinations are the classes
CLASSES = 60


class Parts(NamedTuple):
    """Pictures [N, SIZE * SIZE * 3] in [-1, 1] and their classes; the student is given a part of `train`."""

    train: training.Labelled
    validation: training.Labelled  # by which a student's learning rate is chosen
    test: training.Labelled


def parts(config: ml_collections.ConfigDict, key: Array) -> Parts:
    """Scenes of one plain object near the middle, drawn by the key."""
    rows = scenes.combinations(style=["plain"])
    draw = lambda key: scenes.draw(key, rows, grid=1, jitter=config.jitter)  # noqa: E731
    sizes = (config.train, config.validation, config.test)
    scene = jax.vmap(draw)(jax.random.split(key, sum(sizes)))
    x = 2 * scenes.render(scene, SIZE).reshape(sum(sizes), -1) - 1
    y = jnp.zeros(sum(sizes), jnp.int32)
    for attribute in LABELLED:
        y = y * len(scenes.OBJECT_ATTRIBUTES[attribute]) + getattr(scene, attribute)[:, 0]
    every, first = training.Labelled(x, y), 0
    found = []
    for size in sizes:
        found.append(every.take(slice(first, first + size)))
        first += size
    return Parts(*found)


@functools.cache
def network(widths: tuple[int, ...]) -> models.Model:
    """A perceptron of these hidden layers."""
    config = ml_collections.ConfigDict({"name": "perceptron", "widths": widths})
    return models.build(config, example_shape=(SIZE * SIZE * 3,), num_classes=CLASSES)


def _keys(key: Array) -> Array:
    """Of pictures, of the teacher, and of the student."""
    return jax.random.split(key, 3)


def prepare(config: ml_collections.ConfigDict, key: Array) -> dict[str, Any]:
    """Parameters of the teacher of a seed, which knows all training pictures."""
    data_key, teacher_key, _ = _keys(key)
    init_key, order_key = jax.random.split(teacher_key)
    train, teacher = parts(config, data_key).train, network(tuple(config.teacher_widths))

    def loss(params: Any, rows: Array, key: Array) -> Array:
        del key
        x, y = train.take(rows)
        return jnp.mean(objectives.cross_entropy(teacher.apply(params, x)["logits"], y))

    rows = training.batches(order_key, config.train, config.batch, config.teacher_steps)
    schedule = optax.cosine_decay_schedule(config.teacher_learning_rate, config.teacher_steps)
    return {"teacher": training.fit(loss, teacher.init(init_key), optax.adam(schedule), rows, order_key)[0]}


def run(config: ml_collections.ConfigDict, key: Array, shared: dict[str, Any]) -> dict[str, Array]:
    """A student of `config.objective` at every rate; the test is that of the rate best in validation, the first if equal."""
    data_key, _, student_key = _keys(key)
    given = parts(config.shared, data_key)
    teacher, student = network(tuple(config.shared.teacher_widths)), network(tuple(config.widths))

    def teach(x: Array) -> dict[str, Any]:
        outputs: dict[str, Any] = jax.lax.stop_gradient(teacher.apply(shared["teacher"], x))
        return outputs

    setting = digits_noise.Setting(given.train.take(slice(config.examples)), given.test, student, teach)
    params, cosines = jax.lax.map(
        lambda rate: distilled(config, setting, student_key, rate), jnp.array(config.learning_rates)
    )

    def logits(params: Any, x: Array) -> Array:
        found: Array = student.apply(heads.split(params)[0], x)["logits"]
        return found

    reached = jax.vmap(lambda params: training.accuracy(logits(params, given.validation.x), given.validation.y))(params)
    best = jnp.argmax(reached)
    params, cosines = jax.tree.map(lambda leaf: leaf[best], (params, cosines))
    features = student.apply(heads.split(params)[0], given.test.x)["features"]
    return {
        **digits_noise.measured(setting, lambda x: logits(params, x)),
        "validation_accuracy": reached[best],
        "learning_rate": jnp.array(config.learning_rates)[best],
        "feature_rank": metrics.effective_rank(features),
        **cosines,
    }


def distilled(
    config: ml_collections.ConfigDict, given: digits_noise.Setting, key: Array, rate: Array
) -> tuple[Any, dict[str, Array]]:
    """Parameters of a student of one learning rate, and cosines between the gradients of its two losses over training."""
    init_key, head_key, order_key = jax.random.split(key, 3)
    params = given.student.init(init_key)
    if config.auxiliary_head:
        params["auxiliary"] = heads.second_head(head_key, config.widths[-1], CLASSES)
    label_loss, teacher_loss = heads.losses(given, config.objective)
    total = heads.aligned(label_loss, teacher_loss) if config.align else heads.both(label_loss, teacher_loss)

    def seen(rows: Array) -> digits_noise.Batch:
        x, y = given.train.take(rows)
        return digits_noise.Batch(x, y, given.teach(x))

    def loss(params: Any, rows: Array, key: Array) -> Array:
        return total(params, seen(rows), key)

    probe = None
    if config.measure_conflict:
        probe = lambda params: heads.conflict(label_loss, teacher_loss, params, seen(jnp.arange(config.probed)))  # noqa: E731
    rows = training.batches(order_key, config.examples, config.batch, config.steps)
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, config.steps))
    params, _, probed = training.fit(loss, params, optimizer, rows, order_key, probe=probe)
    return params, heads.summaries(probed) if probe else {}
