"""A student that imitates a random, frozen teacher, without labels: do its features know more than the teacher's?"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax import Array

from experiments import models
from experiments.papers import digits_noise, training
from mlfuncs import distillation, representation

VECTORISED = True
HEAD_DEVIATION = 0.02  # of the weights of a head, normal and cut off at twice that


def networks(config: ml_collections.ConfigDict) -> tuple[models.Model, models.Model]:
    """Encoder of digits, whose features are probed, and the layers of its head up to the bottleneck."""
    encoder = training.perceptron(config.widths, classes=1)
    head = ml_collections.ConfigDict({"name": "perceptron", "widths": tuple(config.head_widths), "activation": "gelu"})
    return encoder, models.build(head, example_shape=(config.widths[-1],), num_classes=config.bottleneck)


def initial(config: ml_collections.ConfigDict, key: Array) -> dict[str, Any]:
    """Random parameters of an encoder and its head."""
    encoder_key, head_key, output_key = jax.random.split(key, 3)
    encoder, head = networks(config)
    head_params = head.init(head_key)
    for index, name in enumerate(sorted(head_params)):
        kernel = _truncated(jax.random.fold_in(head_key, index), head_params[name]["kernel"].shape)
        head_params[name] = head_params[name] | {"kernel": kernel}
    output = _truncated(output_key, (config.bottleneck, config.outputs))
    return {"encoder": encoder.init(encoder_key), "head": head_params, "output": output}


def _truncated(key: Array, shape: tuple[int, ...]) -> Array:
    return HEAD_DEVIATION * jax.random.truncated_normal(key, -2.0, 2.0, shape)


def features(config: ml_collections.ConfigDict, params: dict[str, Any], x: Array) -> Array:
    """What the encoder makes of x [B, 64]: [B, D]."""
    found: Array = networks(config)[0].apply(params["encoder"], x)["features"]
    return found


def logits(config: ml_collections.ConfigDict, params: dict[str, Any], x: Array) -> Array:
    """[B, K] in [-1, 1], of encoder and head."""
    _, head = networks(config)
    hidden = head.apply(params["head"], features(config, params, x))["features"]
    last = params["head"]["last"]
    return representation.normalized_bottleneck(hidden, last["kernel"], last["bias"], params["output"])


def probed(config: ml_collections.ConfigDict, sets: Sequence[Array], labels: tuple[Array, Array]) -> dict[str, Array]:
    """Test accuracies of nearest neighbours and of a linear classifier on standardised features of both sets."""
    train, test = sets
    scaled_train, scaled_test = (representation.standardize_features(train, part) for part in (train, test))
    votes = representation.nearest_neighbor_predictions(
        scaled_train, labels[0], scaled_test, neighbors=config.neighbors
    )
    classes = linear_probe(config, scaled_train, labels[0], scaled_test)
    return {"neighbour_accuracy": jnp.mean(votes == labels[1]), "probe_accuracy": training.accuracy(classes, labels[1])}


def linear_probe(config: ml_collections.ConfigDict, train: Array, labels: Array, test: Array) -> Array:
    """Logits [M, 10] of a logistic regression with a penalty on squared weights, fitted to all examples at once."""

    def loss(params: dict[str, Array], rows: Array, key: Array) -> Array:
        del rows, key
        penalty = 0.5 * config.probe_penalty * jnp.sum(params["kernel"] ** 2)
        return jnp.mean(training.cross_entropy(train @ params["kernel"] + params["bias"], labels)) + penalty

    params = {"kernel": jnp.zeros((train.shape[1], training.CLASSES)), "bias": jnp.zeros(training.CLASSES)}
    schedule = optax.cosine_decay_schedule(config.probe_learning_rate, config.probe_steps)
    steps = jnp.arange(config.probe_steps)
    params, _, _ = training.fit(loss, params, optax.adam(schedule), steps, jax.random.key(0))
    return test @ params["kernel"] + params["bias"]


def prepare(config: ml_collections.ConfigDict, key: Array) -> dict[str, Any]:
    """A random teacher, and what its features and the pixels themselves know."""
    train, test = digits_noise.splits(config.train, config.test, training.CLASSES)
    labels = train.y, test.y
    teacher = initial(config, key)
    of_teacher = probed(config, [features(config, teacher, part.x) for part in (train, test)], labels)
    on_pixels = training.accuracy(linear_probe(config, train.x, train.y, test.x), test.y)
    return {"teacher": teacher, "of_teacher": of_teacher, "pixel_probe_accuracy": on_pixels}


def noise_inputs(key: Array, data: Array) -> Array:
    """Normal noise in place of data, as many examples, of the mean and the deviation of all its values."""
    return jnp.mean(data) + jnp.std(data) * jax.random.normal(key, data.shape)


def run(config: ml_collections.ConfigDict, key: Array, shared: dict[str, Any]) -> dict[str, Array]:
    """A student that starts at `config.locality` from the teacher and sees data or noise; labels serve the probes alone."""
    sizes, teacher = config.shared, shared["teacher"]
    other_key, order_key, noise_key = jax.random.split(jax.random.fold_in(key, 1), 3)
    train, test = digits_noise.splits(sizes.train, sizes.test, training.CLASSES)
    seen = noise_inputs(noise_key, train.x) if config.noise else train.x
    taught = logits(sizes, teacher, seen)

    def loss(params: Any, rows: Array, key: Array) -> Array:
        del key
        return jnp.mean(distillation.soft_cross_entropy(logits(sizes, params, seen[rows]), taught[rows]))

    student = distillation.interpolate_parameters(teacher, initial(sizes, other_key), fraction=config.locality)
    rows = training.batches(order_key, sizes.train, config.batch, config.steps)
    student, _, _ = training.fit(loss, student, optax.adam(config.learning_rate), rows, key)
    found = probed(sizes, [features(sizes, student, part.x) for part in (train, test)], (train.y, test.y))
    missed = distillation.kullback_leibler(logits(sizes, student, test.x), logits(sizes, teacher, test.x))
    result = {"divergence_from_teacher": jnp.mean(missed), "pixel_probe_accuracy": shared["pixel_probe_accuracy"]}
    for probe, value in found.items():
        before = shared["of_teacher"][probe]
        result |= {probe: value, f"teacher_{probe}": before, f"{probe}_gain": value - before}
    return result
