"""Low-rank adapters in short training: an adaptive rate for every row, against dropout and fixed rates."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax import Array

from experiments.papers import training
from mlfuncs import adapters, dropout

VECTORISED = True

Factors = dict[str, dict[str, Array]]  # of each layer a [rank, inputs] and b [outputs, rank]


def turned(x: Array, quarters: int) -> Array:
    """Images [N, 64] rotated by so many quarter turns."""
    return jnp.rot90(x.reshape(-1, 8, 8), quarters, axes=(1, 2)).reshape(-1, training.PIXELS)


def new_factors(key: Array, params: Any, rank: int) -> Factors:
    """a uniform within 1 / sqrt(inputs), as LoRA's code draws it, and b zero."""
    shapes = {name: layer["kernel"].shape for name, layer in sorted(params.items())}
    *bounds, total = itertools.accumulate(inputs for inputs, _ in shapes.values())
    parts = jnp.split(jax.random.uniform(key, (rank, total), minval=-1.0), bounds, axis=1)
    return {
        name: {"a": part * inputs**-0.5, "b": jnp.zeros((outputs, rank))}
        for (name, (inputs, outputs)), part in zip(shapes.items(), parts, strict=True)
    }


def prepare(config: ml_collections.ConfigDict, key: Array) -> dict[str, Any]:
    """What all arms start from: a network trained on rotated digits, new adapters, upright digits, the order of batches."""
    data_key, init_key, pretrain_key, factor_key, order_key = jax.random.split(key, 5)
    rotated, train, test = training.digit_splits(data_key, (config.pretrain, config.adapt, config.test))
    rotated = training.Labelled(turned(rotated.x, config.quarter_turns), rotated.y)
    network = training.perceptron(config.widths)

    def loss(params: Any, rows: Array, key: Array) -> Array:
        batch = rotated.take(rows)
        return jnp.mean(training.cross_entropy(network.apply(params, batch.x)["logits"], batch.y))

    rows = training.batches(pretrain_key, config.pretrain, config.batch, config.pretrain_steps)
    params, _, _ = training.fit(loss, network.init(init_key), optax.adam(config.learning_rate), rows, key)
    return {
        "params": params,
        "factors": new_factors(factor_key, params, config.rank),
        "train": train._asdict(),
        "test": test._asdict(),
        "rows": training.batches(order_key, config.adapt, config.batch, config.steps),
    }


def merged(params: Any, factors: Factors) -> Any:
    """The network with its adapters in its kernels."""
    return {
        name: {**layer, "kernel": adapters.merge_low_rank(layer["kernel"].T, **factors[name]).T}
        for name, layer in params.items()
    }


def mean_norm(factors: Factors) -> Array:
    """Frobenius norm of BA, the mean over layers, found without forming BA."""
    squared = [jnp.sum((f["b"].T @ f["b"]) * (f["a"] @ f["a"].T)) for f in factors.values()]
    return jnp.mean(jnp.sqrt(jnp.maximum(jnp.stack(squared), 0)))


def run(config: ml_collections.ConfigDict, key: Array, shared: dict[str, Any]) -> dict[str, Array]:
    """Adapts the pretrained network to upright digits, once for every learning rate of the grid."""
    network = training.perceptron(config.shared.widths)
    params = shared["params"]
    train, test = training.Labelled(**shared["train"]), training.Labelled(**shared["test"])
    layers = [*(f"layer_{index}" for index in range(len(config.shared.widths))), "last"]
    eta = config.eta_squared**0.5
    adaptive = {"adaptive": True, "plain": False}[config.method]

    def logits(factors: Factors, x: Array, key: Array) -> Array:
        shape = (x.shape[0], len(layers), config.shared.rank)
        masks = dropout.bernoulli_mask(key, shape, rate=config.rate) if config.rate else None
        for index, name in enumerate(layers):
            a, b = factors[name]["a"], factors[name]["b"]
            fixed = x @ params[name]["kernel"] + params[name]["bias"]
            if adaptive:
                branch = adapters.adaptive_low_rank(x, a, b, eta=eta)
            else:
                hidden = x @ a.T
                if masks is not None:
                    hidden = dropout.apply_mask(hidden, masks[:, index], rate=config.rate)
                branch = hidden @ b.T
            x = fixed + branch
            x = x if name == "last" else jax.nn.relu(x)
        return x

    def loss(factors: Factors, rows: Array, key: Array) -> Array:
        batch = train.take(rows)
        return jnp.mean(training.cross_entropy(logits(factors, batch.x, key), batch.y))

    optimizer = {"sgd": optax.sgd, "adam": optax.adam}[config.optimizer]

    def adapted(rate: Array) -> dict[str, Any]:
        rate = rate if adaptive else rate * eta
        factors, _, curve = training.fit(loss, shared["factors"], optimizer(rate), shared["rows"], key, probe=mean_norm)
        score = network.apply(merged(params, factors), test.x)["logits"]
        scales = [adapters.low_rank_row_scale(**f, eta=eta) / eta for f in factors.values()]
        return {
            "accuracy": training.accuracy(score, test.y),
            "curve": curve,
            "row_scale": jnp.mean(jnp.concatenate(scales)),
        }

    grid = jax.vmap(adapted)(jnp.asarray(config.grids[config.optimizer]))
    curve, early = grid["curve"][config.base], config.early
    return {
        **{f"accuracy_lr_{index}": value for index, value in enumerate(grid["accuracy"])},
        "norm_early": curve[early - 1],
        "norm_late": curve[-1],
        "late_growth": (curve[-1] - curve[-1 - early]) / curve[early - 1],
        "row_scale": grid["row_scale"][config.base],
    }
