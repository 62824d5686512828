"""Multi-sample dropout: several masks of one feature vector, against one."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax import Array

from experiments.papers import training
from mlfuncs import dropout

VECTORISED = True


def run(config: ml_collections.ConfigDict, key: Array) -> dict[str, Array]:
    """Trains a small network on few digits; its dropout-free training loss is looked at after every step."""
    data_key, init_key, order_key, mask_key, measure_key = jax.random.split(key, 5)
    train, test = training.digit_splits(data_key, (config.train, config.test))
    network = training.perceptron(config.widths)

    def head(params: Any, features: Array) -> Array:
        return features @ params["last"]["kernel"] + params["last"]["bias"]

    def losses(params: Any, examples: training.Labelled, key: Array) -> Array:
        features = network.apply(params, examples.x)["features"]
        return dropout.multi_sample_dropout_loss(
            key,
            lambda h: head(params, h),
            features,
            examples.y,
            training.cross_entropy,
            num_samples=config.num_samples,
            rate=config.rate,
        )

    def loss(params: Any, rows: Array, key: Array) -> Array:
        return jnp.mean(losses(params, train.take(rows), key))

    def plain_loss(params: Any) -> Array:
        return jnp.mean(training.cross_entropy(network.apply(params, train.x)["logits"], train.y))

    initial = network.init(init_key)
    rows = training.batches(order_key, config.train, config.batch, config.steps)
    optimizer = optax.sgd(config.learning_rate, momentum=0.9)
    params, _, curve = training.fit(loss, initial, optimizer, rows, mask_key, probe=plain_loss)

    # Gradients of one batch under many draws of the masks: their covariance is what the samples are to lower.
    batch = train.take(slice(config.batch))
    fixed = jax.lax.stop_gradient(network.apply(initial, batch.x)["features"])

    def gradient(key: Array) -> Array:
        def of(kernel: Array) -> Array:
            values = dropout.multi_sample_dropout_loss(
                key,
                lambda h: h @ kernel + initial["last"]["bias"],
                fixed,
                batch.y,
                training.cross_entropy,
                num_samples=config.num_samples,
                rate=config.rate,
            )
            return jnp.mean(values)

        return jax.grad(of)(initial["last"]["kernel"])

    draws = jax.lax.map(gradient, jax.random.split(measure_key, config.redraws), batch_size=8)
    reached = jnp.argmax(curve < config.threshold)
    return {
        "steps_to_threshold": jnp.where(jnp.any(curve < config.threshold), reached + 1, jnp.nan),
        "loss_early": curve[config.early - 1],
        "gradient_covariance": jnp.sum(jnp.var(draws, axis=0, ddof=1)),
        "test_accuracy": training.accuracy(network.apply(params, test.x)["logits"], test.y),
    }
