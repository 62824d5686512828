"""Exits from inside a perceptron that learn from a convolutional teacher in logit space, against hints in feature space."""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax import Array

from experiments import models
from experiments.papers import digits_noise, training
from experiments.papers.digits_noise import Batch, Loss, Setting
from experiments.tasks.distillation import objectives
from mlfuncs import distillation, representation

VECTORISED = True
EXITS = ("none", "labels", "teacher")
SIDE = 8


def teacher_network(shared: ml_collections.ConfigDict) -> models.Model:
    config = ml_collections.ConfigDict(
        {"name": "classifier", "channels": tuple(shared.channels), "features": shared.features}
    )
    return models.build(config, example_shape=(SIDE, SIDE, 1), num_classes=shared.classes)


def as_images(x: Array) -> Array:
    return x.reshape(-1, SIDE, SIDE, 1)


def prepare(config: ml_collections.ConfigDict, key: Array) -> dict[str, Any]:
    """Parameters of two teachers that differ in their seeds: the second is there to be compared with the first."""
    train, _ = digits_noise.splits(config.train, config.test, config.classes)
    network = teacher_network(config)

    def trained(key: Array) -> Any:
        init_key, order_key = jax.random.split(key)

        def loss(params: Any, rows: Array, key: Array) -> Array:
            del key
            x, y = train.take(rows)
            return jnp.mean(training.cross_entropy(network.apply(params, as_images(x))["logits"], y))

        rows = training.batches(order_key, len(train.y), config.teacher_batch, config.teacher_steps)
        optimizer = optax.adam(config.teacher_learning_rate)
        return training.fit(loss, network.init(init_key), optimizer, rows, key)[0]

    return {name: trained(jax.random.fold_in(key, index)) for index, name in enumerate(("teacher", "other"))}


def setting(config: ml_collections.ConfigDict, shared: dict[str, Any]) -> Setting:
    """Data, the perceptron that learns, and the convolutional teacher."""
    train, test = digits_noise.splits(config.shared.train, config.shared.test, config.shared.classes)
    network = teacher_network(config.shared)

    def teach(x: Array) -> dict[str, Any]:
        outputs: dict[str, Any] = jax.lax.stop_gradient(network.apply(shared["teacher"], as_images(x)))
        return outputs

    student = training.perceptron(config.widths, classes=config.shared.classes)
    return Setting(train.take(slice(config.examples)), test, student, teach)


def branches(config: ml_collections.ConfigDict, given: Setting, key: Array) -> dict[str, Any]:
    """What is dropped after training: linear exits on hidden layers, a linear map to the teacher's last feature map."""
    if config.exits not in EXITS:
        raise ValueError(f"exits must be one of {', '.join(EXITS)}, got {config.exits!r}")

    def linear(key: Array, inputs: int, outputs: int) -> dict[str, Array]:
        return {"kernel": jax.nn.initializers.lecun_normal()(key, (inputs, outputs)), "bias": jnp.zeros(outputs)}

    added: dict[str, Any] = {}
    if config.exits != "none":
        keys = jax.random.split(jax.random.fold_in(key, 4), len(config.widths))
        added["exits"] = [linear(*pair, config.shared.classes) for pair in zip(keys, config.widths, strict=True)]
    if config.hint_weight:
        last = jax.eval_shape(given.teach, given.test.x[:1])["hidden"][-1]
        added["hint"] = linear(jax.random.fold_in(key, 5), config.widths[-1], last.size)
    return added


def apply_linear(params: dict[str, Array], x: Array) -> Array:
    return x @ params["kernel"] + params["bias"]


def student_loss(config: ml_collections.ConfigDict, given: Setting) -> Loss:
    """`config.objective` of the student's head, and what exits or a hint add to it."""
    terms = objectives.parse(config.objective)

    def loss(params: Any, batch: Batch, key: Array) -> Array:
        del key
        seen = given.student.apply(params["student"], batch.x)
        taught = batch.teacher
        value = objectives.value(terms, seen["logits"], taught["logits"], batch.y)
        if config.hint_weight:
            wanted = taught["hidden"][-1].reshape(batch.x.shape[0], -1)
            value += config.hint_weight * jnp.mean((apply_linear(params["hint"], seen["features"]) - wanted) ** 2)
        if config.exits == "none":
            return value
        exits = jnp.stack([apply_linear(*pair) for pair in zip(params["exits"], seen["hidden"], strict=True)])
        if config.exits == "labels":
            return value + jnp.mean(jnp.sum(jax.vmap(training.cross_entropy, (0, None))(exits, batch.y), axis=0))
        options = {"exponents": config.exponent, "temperature": config.temperature}
        return value + jnp.mean(distillation.multi_exit(exits, seen["logits"], taught["logits"], batch.y, **options))

    return loss


def mean_alignment(first: Sequence[Array], second: Sequence[Array]) -> Array:
    """Centred kernel alignment on average over all pairs of layers, one of either network."""
    pairs = itertools.product(first, second)
    return jnp.mean(jnp.stack([representation.centered_kernel_alignment(*pair) for pair in pairs]))


def alignments(
    config: ml_collections.ConfigDict, given: Setting, shared: dict[str, Any], student: Any
) -> dict[str, Array]:
    """How alike layers of teacher and student are, and those of two teachers."""
    x = given.test.x[: config.alignment_examples]
    teacher = given.teach(x)["hidden"]
    other = teacher_network(config.shared).apply(shared["other"], as_images(x))["hidden"]
    return {
        "alignment_across": mean_alignment(teacher, given.student.apply(student, x)["hidden"]),
        "alignment_within": mean_alignment(teacher, other),
    }


def run(config: ml_collections.ConfigDict, key: Array, shared: dict[str, Any]) -> dict[str, Array]:
    """A student as `config.objective`, `config.exits` and `config.hint_weight` say."""
    given = setting(config, shared)
    initial = {"student": digits_noise.first_params(given, key), **branches(config, given, key)}
    params, _ = digits_noise.distil(config, key, given, student_loss(config, given), initial=initial)
    student = params["student"]
    result = digits_noise.measured(given, lambda x: given.student.apply(student, x)["logits"])
    return result | (alignments(config, given, shared, student) if config.alignment_examples else {})
