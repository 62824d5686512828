"""Many specialists in one student: numbers of two digits, whose tens digit decides which specialist knows the ones digit."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax import Array

from experiments import models
from experiments.papers import training
from experiments.papers.training import Labelled
from mlfuncs import adapters, distillation

VECTORISED = True
VERTICALS = 10  # tens digits
CLASSES = 100
CLASS_VERTICAL = np.arange(CLASSES) // VERTICALS
TARGETS = ("labels", "specialists")


def numbers(key: Array, pool: Labelled, count: int, noise: float, tens: Array | None = None) -> Labelled:
    """Pairs of digits of a pool side by side, flat [count, 128], with noise; the left ones all `tens`, where given."""
    left_key, right_key, noise_key = jax.random.split(key, 3)
    chances = None if tens is None else (pool.y == tens) / jnp.sum(pool.y == tens)
    left = jax.random.choice(left_key, len(pool.y), (count,), p=chances)
    right = jax.random.randint(right_key, (count,), 0, len(pool.y))
    x = jnp.concatenate([pool.x[left], pool.x[right]], axis=-1)
    y = VERTICALS * pool.y[left] + pool.y[right]
    return Labelled(x + noise * jax.random.normal(noise_key, x.shape), y)


def perceptron(widths: tuple[int, ...], classes: int) -> models.Model:
    config = ml_collections.ConfigDict({"name": "perceptron", "widths": tuple(widths)})
    return models.build(config, example_shape=(2 * training.PIXELS,), num_classes=classes)


def sigmoid_cross_entropy(logits: Array, labels: Array) -> Array:
    """[B]: the sum over classes, of which the label's alone is right."""
    targets = jax.nn.one_hot(labels, logits.shape[-1])
    return jnp.sum(optax.losses.sigmoid_binary_cross_entropy(logits, targets), axis=-1)


def specialists(config: ml_collections.ConfigDict, key: Array, data: Labelled) -> Any:
    """Parameters of a network for each vertical, stacked; data: x [M, N, 128] and the ones digits y [M, N]."""
    network = perceptron(config.widths, VERTICALS)

    def trained(key: Array, data: Labelled) -> Any:
        init_key, order_key = jax.random.split(key)

        def loss(params: Any, rows: Array, key: Array) -> Array:
            del key
            x, y = data.take(rows)
            return jnp.mean(sigmoid_cross_entropy(network.apply(params, x)["logits"], y))

        rows = training.batches(order_key, len(data.y), config.batch, config.specialist_steps)
        return training.fit(loss, network.init(init_key), optax.adam(config.learning_rate), rows, key)[0]

    return jax.vmap(trained)(jax.random.split(key, VERTICALS), data)


def prepare(config: ml_collections.ConfigDict, key: Array) -> dict[str, Any]:
    """Numbers for the student and for the test, and what the specialist of each says of it: zeros outside its vertical."""
    pool_key, train_key, test_key, fit_key = jax.random.split(key, 4)
    pool, test_pool = training.digit_splits(pool_key, (config.pool, config.test_pool))
    keys, tens = jax.random.split(train_key, VERTICALS), jnp.arange(VERTICALS)
    each = jax.vmap(lambda key, tens: numbers(key, pool, config.specialist_numbers, config.noise, tens))(keys, tens)
    experts = specialists(config, fit_key, each._replace(y=each.y % VERTICALS))
    network = perceptron(config.widths, VERTICALS)

    few = config.numbers // VERTICALS
    x, y = each.x[:, :few], each.y[:, :few]
    answers = jax.vmap(network.apply)(experts, x)["logits"]
    spread = jnp.eye(VERTICALS)[:, None, :, None] * answers[:, :, None]  # [M, few, M, 10]
    test = numbers(test_key, test_pool, config.test_numbers, config.noise)
    of_test = jax.vmap(lambda params: network.apply(params, test.x)["logits"])(experts)
    own = of_test[test.y // VERTICALS, jnp.arange(len(test.y))]
    return {
        "train": {"x": x.reshape(-1, x.shape[-1]), "y": y.reshape(-1)},
        "answers": spread.reshape(-1, CLASSES),
        "test": test._asdict(),
        "specialist_accuracy": training.accuracy(own, test.y % VERTICALS),
    }


def student(config: ml_collections.ConfigDict) -> tuple[models.Model, Array]:
    """The network, and which of its last units each class sees: `config.shared_units` are seen by all."""
    mask = adapters.vertical_connection_mask(
        CLASS_VERTICAL, num_verticals=VERTICALS, width=config.width, shared=config.shared_units
    )
    return perceptron((*config.shared.widths, mask.shape[0]), CLASSES), mask


def initial(config: ml_collections.ConfigDict, key: Array) -> dict[str, Any]:
    """First parameters, with paces that are the root of a vertical's number of classes."""
    network, mask = student(config)
    params = network.init(key)
    # A class sees `width` units, fewer than the initialiser counts.
    kernel = params["last"]["kernel"] * jnp.sqrt(mask.shape[0] / config.width)
    params["last"] = params["last"] | {"kernel": kernel}
    return {"network": params, "pace": jnp.full(VERTICALS, jnp.sqrt(CLASSES / VERTICALS))}


def logits(config: ml_collections.ConfigDict, params: dict[str, Any], x: Array) -> Array:
    """[B, 100] of the student, paced where `config.paced`."""
    network, mask = student(config)
    features, last = network.apply(params["network"], x)["features"], params["network"]["last"]
    found = adapters.masked_linear(features, last["kernel"], mask, last["bias"])
    return distillation.self_paced_logits(found, params["pace"], CLASS_VERTICAL) if config.paced else found


def mean_average_precision(scores: Array, labels: Array) -> Array:
    """Mean over classes with examples of the average precision of a class; of equal scores the earlier comes first."""

    def of_class(scores: Array, relevant: Array) -> Array:
        relevant = relevant[jnp.argsort(-scores)]
        precision = jnp.cumsum(relevant) / jnp.arange(1, scores.shape[0] + 1)
        return jnp.sum(precision * relevant) / jnp.maximum(jnp.sum(relevant), 1)

    relevant = labels[:, None] == jnp.arange(scores.shape[1])
    present = jnp.any(relevant, axis=0)
    return jnp.sum(jax.vmap(of_class, 1)(scores, relevant)) / jnp.sum(present)


def run(config: ml_collections.ConfigDict, key: Array, shared: dict[str, Any]) -> dict[str, Array]:
    """A student of labels or of specialists, dense or with units of its own for each vertical."""
    if config.targets not in TARGETS:
        raise ValueError(f"targets must be one of {', '.join(TARGETS)}, got {config.targets!r}")
    train, test = Labelled(**shared["train"]), Labelled(**shared["test"])
    init_key, order_key = jax.random.split(jax.random.fold_in(key, 1))

    def loss(params: Any, rows: Array, key: Array) -> Array:
        del key
        x, y = train.take(rows)
        found = logits(config, params, x)
        if config.targets == "labels":
            return jnp.mean(sigmoid_cross_entropy(found, y))
        each = distillation.multi_teacher(found, shared["answers"][rows], y // VERTICALS, CLASS_VERTICAL)
        return jnp.mean(each)

    rates = {"network": config.learning_rate, "pace": config.pace_learning_rate}
    optimizer = optax.partition(
        {name: optax.adam(rate) for name, rate in rates.items()}, {name: name for name in rates}
    )
    rows = training.batches(order_key, len(train.y), config.batch, config.steps)
    params, losses, _ = training.fit(loss, initial(config, init_key), optimizer, rows, key)
    scores = logits(config, params, test.x)
    return {
        "mean_average_precision": mean_average_precision(scores, test.y),
        "test_accuracy": training.accuracy(scores, test.y),
        "specialist_accuracy": shared["specialist_accuracy"],
        "last_loss": jnp.mean(losses[-config.steps // 10 :]),
        "mean_pace": jnp.mean(params["pace"]),
    }
