"""Nested dropout on wrong labels: features cut to a random prefix, and two such networks that clean each other's batches."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax import Array

from experiments import models
from experiments.papers import training
from mlfuncs import dropout, noisy_labels

VECTORISED = True


def symmetric_noise(key: Array, labels: Array, *, rate: float, classes: int) -> Array:
    """Labels of which a share `rate`, rounded down, is exchanged for one of the other classes, all alike."""
    chosen_key, shift_key = jax.random.split(key)
    size = labels.shape[0]
    chosen = jax.random.permutation(chosen_key, size) < int(rate * size + 1e-6)
    shift = jax.random.randint(shift_key, (size,), 1, classes)
    return jnp.where(chosen, (labels + shift) % classes, labels)


def mean_prefix_accuracy(network: models.Model, pair: Any, examples: training.Labelled) -> Array:
    """Accuracy [N] of the logits that several networks, stacked along the first axis of `pair`, give on average."""

    def logits(params: Any) -> Array:
        return dropout.prefix_logits(network.apply(params, examples.x)["features"], params["last"]["kernel"])

    right = jnp.argmax(jnp.mean(jax.vmap(logits)(pair), axis=0), axis=-1) == examples.y
    return jnp.mean(right, axis=-1)


def co_teach(
    config: ml_collections.ConfigDict,
    network: models.Model,
    pair: Any,
    train: training.Labelled,
    validation: training.Labelled,
    key: Array,
) -> Any:
    """Trains two networks further, each on the examples that have a small loss for the other."""
    order_key, mask_key = jax.random.split(key)
    teach, batch, size = config.co_teaching, config.shared.batch, train.x.shape[0]
    width = config.shared.widths[-1]
    law = dropout.truncation_distribution(width, scale=config.sigma)
    steps = size // batch
    rows = training.batches(order_key, size, batch, teach.epochs * steps)
    rows = rows.reshape(teach.epochs, steps, batch)
    optimizer = _optimizer(config, teach.learning_rate)

    def losses(pair: Any, index: int, examples: training.Labelled, mask: Array) -> Array:
        params = jax.tree.map(lambda leaf: leaf[index], pair)
        return training.cross_entropy(_logits(network, params, examples.x, mask), examples.y)

    def step(carry: Any, given: Any, kept: Array, forget_rate: Array) -> Any:
        pair, state = carry
        chosen, key = given
        # Either network judges its own half of the batch, and the other one learns from it.
        halves = jnp.split(chosen, 2) if teach.halves else [chosen, chosen]
        judged_by_a, judged_by_b = (train.take(half) for half in halves)
        fixed = dropout.truncation_mask(kept, width)
        from_a = noisy_labels.small_loss_mask(losses(pair, 0, judged_by_a, fixed), forget_rate)
        from_b = noisy_labels.small_loss_mask(losses(pair, 1, judged_by_b, fixed), forget_rate)
        mask = dropout.nested_mask(key, law)  # one prefix for both networks

        def loss(pair: Any) -> Array:
            of_a, of_b = noisy_labels.co_teaching_loss(
                losses(pair, 0, judged_by_b, mask), losses(pair, 1, judged_by_a, mask), from_b, from_a
            )
            return jnp.mean(of_a) + jnp.mean(of_b)

        updates, state = optimizer.update(jax.grad(loss)(pair), state, pair)
        return (optax.apply_updates(pair, updates), state), ()

    def epoch(carry: Any, given: Any) -> Any:
        index, chosen = given
        kept = dropout.select_truncation(mean_prefix_accuracy(network, carry[0], validation))
        forget_rate = noisy_labels.forget_rate_schedule(
            index, forget_rate=teach.forget_rate, num_gradual=teach.num_gradual
        )
        keys = jax.random.split(jax.random.fold_in(mask_key, index), steps)
        return jax.lax.scan(lambda carry, given: step(carry, given, kept, forget_rate), carry, (chosen, keys))[0], ()

    return jax.lax.scan(epoch, (pair, optimizer.init(pair)), (jnp.arange(teach.epochs), rows))[0][0]


def prepare(config: ml_collections.ConfigDict, key: Array) -> dict[str, Any]:
    """Data with wrong training labels, and the initial parameters and batches of two networks."""
    data_key, noise_key, init_key, order_key = jax.random.split(key, 4)
    train, validation, test = training.digit_splits(data_key, (config.train, config.validation, config.test))
    wrong = symmetric_noise(noise_key, train.y, rate=config.noise, classes=training.CLASSES)
    network = training.perceptron(config.widths, head_bias=False)
    return {
        "train": {"x": train.x, "y": wrong},
        "validation": validation._asdict(),
        "test": test._asdict(),
        "initial": jax.vmap(network.init)(jax.random.split(init_key)),
        "rows": jax.vmap(lambda key: training.batches(key, config.train, config.batch, config.steps))(
            jax.random.split(order_key)
        ),
    }


def run(config: ml_collections.ConfigDict, key: Array, shared: dict[str, Any]) -> dict[str, Array]:
    """Trains a network on wrong labels, or two that then teach each other; validation and test labels are right."""
    train, validation, test = (training.Labelled(**shared[part]) for part in ("train", "validation", "test"))
    mask_key, teach_key = jax.random.split(key, 6)[4:]  # the first four are those of `prepare`
    network = training.perceptron(config.shared.widths, head_bias=False)
    width = config.shared.widths[-1]

    def hide(key: Array, features: Array) -> Array:
        if config.sigma:
            law = dropout.truncation_distribution(width, scale=config.sigma)
            return dropout.apply_mask(features, dropout.nested_mask(key, law))
        return dropout.dropout(key, features, rate=config.rate) if config.rate else features

    def trained(initial: Any, rows: Array, key: Array) -> Any:
        def loss(params: Any, rows: Array, key: Array) -> Array:
            examples = train.take(rows)
            features = hide(key, network.apply(params, examples.x)["features"])
            return jnp.mean(training.cross_entropy(features @ params["last"]["kernel"], examples.y))

        schedule = optax.piecewise_constant_schedule(config.learning_rate, {config.decay_at: 0.1})
        return training.fit(loss, initial, _optimizer(config, schedule), rows, key)[0]

    def measured(networks: Any) -> dict[str, Array]:
        """Of the mean logits of networks stacked along the first axis."""
        by_prefix = mean_prefix_accuracy(network, networks, validation), mean_prefix_accuracy(network, networks, test)
        # Only an ordered code is cut: the other networks use all features.
        kept = dropout.select_truncation(by_prefix[0]) if config.sigma else jnp.int32(width)
        tested = by_prefix[1]
        return {
            "test_accuracy": tested[kept - 1],
            "kept_features": kept,
            "share_of_best_with_first_features": tested[config.first - 1] / jnp.max(tested),
            **{f"accuracy_of_{k}_features": tested[k - 1] for k in config.prefixes},
        }

    # The first network is the same with and without a second.
    start = shared["initial"], shared["rows"], jax.random.split(mask_key)
    if not config.co_teaching.epochs:
        networks = jax.vmap(trained)(*jax.tree.map(lambda leaf: leaf[:1], start))
        result = measured(networks)
    else:
        pair = jax.vmap(trained)(*start)
        singles = jax.lax.map(lambda one: measured(jax.tree.map(lambda leaf: leaf[None], one))["test_accuracy"], pair)
        averaged = measured(pair)["test_accuracy"]
        networks = co_teach(config, network, pair, train, validation, teach_key)
        result = measured(networks) | {"better_single_accuracy": jnp.max(singles), "averaged_accuracy": averaged}

    mask = dropout.truncation_mask(result["kept_features"], width)
    logits = jax.vmap(lambda params: _logits(network, params, train.x, mask))(networks)
    return result | {"fitted_given_labels": training.accuracy(jnp.mean(logits, 0), train.y)}


def _logits(network: models.Model, params: Any, x: Array, mask: Array) -> Array:
    return dropout.apply_mask(network.apply(params, x)["features"], mask) @ params["last"]["kernel"]


def _optimizer(config: ml_collections.ConfigDict, learning_rate: Any) -> optax.GradientTransformation:
    return optax.chain(optax.add_decayed_weights(config.weight_decay), optax.sgd(learning_rate, momentum=0.9))
