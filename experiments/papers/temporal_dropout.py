"""Monte Carlo temporal dropout: whole time steps are dropped in training and at inference, at a fixed or a learned rate."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax import Array

from experiments import models
from experiments.papers import training
from experiments.worlds import series
from mlfuncs import dropout, uncertainty

VECTORISED = True
MECHANISMS = ("concrete", "hidden", "temporal")


def run(config: ml_collections.ConfigDict, key: Array) -> dict[str, Array]:
    """Trains a recurrent network on complete series and tests its Monte Carlo prediction with more and more steps missing.

    What is dropped at inference is `config.mechanism`: "temporal", time steps at `config.rate`; "concrete", time steps at
    a learned rate; "hidden", the features under the head, which is the baseline. In training, features are dropped in
    every arm, and time steps too in the first two.
    """
    if config.mechanism not in MECHANISMS:
        raise ValueError(f"mechanism must be one of {', '.join(MECHANISMS)}, got {config.mechanism!r}")
    data_key, init_key, order_key, mask_key, missing_key, sample_key = jax.random.split(key, 6)
    all_x, all_y = _data(config, data_key, config.train + config.test)
    (x, test_x), (y, test_y) = jnp.split(all_x, [config.train]), jnp.split(all_y, [config.train])
    network = models.build(
        ml_collections.ConfigDict({"name": "recurrent", "width": config.width}),
        example_shape=x.shape[1:],
        num_classes=2,
    )

    def feature_mask(key: Array, size: int) -> Array:
        shape = (size, config.width)
        kept = dropout.bernoulli_mask(key, shape, rate=config.hidden_rate)
        return dropout.apply_mask(jnp.ones(shape), kept, rate=config.hidden_rate)

    def step_mask(key: Array, size: int, rate_logit: Array) -> Array:
        if config.mechanism == "concrete":
            shape = (size, config.length, 1)
            return dropout.sample_concrete_mask(key, shape, rate_logit, temperature=config.temperature)
        rate = config.rate if config.mechanism == "temporal" else 0.0
        return dropout.temporal_mask(key, (size, config.length), rate=rate)

    def loss(params: Any, rows: Array, key: Array) -> Array:
        feature_key, step_key = jax.random.split(key)
        masked = dropout.apply_mask(x[rows], step_mask(step_key, rows.size, params["rate_logit"]))
        outputs = network.apply(params["network"], masked, mask=feature_mask(feature_key, rows.size))["logits"]
        return jnp.mean(uncertainty.gaussian_negative_log_likelihood(*_moments(outputs), y[rows]))

    initial = {"network": network.init(init_key), "rate_logit": jnp.float32(config.rate_logit)}
    rows = training.batches(order_key, config.train, config.batch, config.steps)
    params, _, _ = training.fit(loss, initial, optax.adam(config.learning_rate), rows, mask_key)

    def predict_series(x: Array) -> tuple[Array, Array]:
        return _moments(network.apply(params["network"], x)["logits"])

    def predict_features(features: Array) -> tuple[Array, Array]:
        return _moments(network.apply(params["network"], features, method="head"))

    def moments(x: Array) -> dict[str, Array]:
        if config.mechanism == "hidden":
            means, variances = uncertainty.monte_carlo_predict(
                sample_key,
                predict_features,
                network.apply(params["network"], x)["features"],
                lambda key: feature_mask(key, config.test),
                num_samples=config.samples,
            )
        else:
            means, variances = uncertainty.monte_carlo_predict(
                sample_key,
                predict_series,
                x,
                lambda key: step_mask(key, config.test, params["rate_logit"]),
                num_samples=config.samples,
                batch_size=config.samples_at_once,
            )
        return uncertainty.predictive_moments(means, variances)

    def measure(fraction: Array) -> dict[str, Array]:
        # One key: what is missing at 20 % is missing at 40 % too.
        there = dropout.temporal_mask(missing_key, (config.test, config.length), rate=fraction)
        found = moments(dropout.apply_mask(test_x, there))
        mean, variance = found["mean"], found["predictive"]
        return {
            "rmse": jnp.sqrt(jnp.mean((mean - test_y) ** 2)),
            "epistemic": jnp.mean(found["epistemic"]),
            "aleatoric": jnp.mean(found["aleatoric"]),
            "calibration": uncertainty.regression_calibration_error(mean, variance, test_y),
        }

    measured = jax.lax.map(measure, jnp.asarray(config.missing) / 100)
    rates = {"concrete": jax.nn.sigmoid(params["rate_logit"]), "temporal": config.rate, "hidden": 0.0}
    return {
        "rate": jnp.float32(rates[config.mechanism]),
        **{f"{name}_{p}": values[i] for name, values in measured.items() for i, p in enumerate(config.missing)},
    }


def _data(config: ml_collections.ConfigDict, key: Array, size: int) -> tuple[Array, Array]:
    wave_key, noise_key = jax.random.split(key)
    waves = series.waves(
        wave_key,
        size,
        steps=config.length,
        frequencies=tuple(config.frequencies),
        amplitudes=tuple(config.amplitudes),
        coefficient=config.noise_coefficient,
        deviation=config.noise_deviation,
    )
    targets, _ = series.amplitude_target(
        noise_key, waves, quiet=config.quiet, loud=config.loud, threshold=config.threshold
    )
    return waves.x, targets


def _moments(outputs: Array) -> tuple[Array, Array]:
    """Mean and variance [B] from the two outputs [B, 2]."""
    return outputs[:, 0], jnp.exp(outputs[:, 1])
