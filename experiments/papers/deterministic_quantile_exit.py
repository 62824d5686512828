"""When to stop thinking: a quantile of the learned exits against a draw from them, an average, and fixed rules."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax import Array

from experiments import models
from experiments.papers import training
from mlfuncs import early_exit

VECTORISED = True

QUANTILES = (0.3, 0.5, 0.7)
SIDE = 8  # of the digits, in pixels


def encoder(config: ml_collections.ConfigDict) -> models.Model:
    """One transformer block that is applied again and again, as in ALBERT, to 16 patches of a digit."""
    network = {"name": "vit", "width": config.width, "depth": 1, "repeats": config.layers, "heads": config.heads}
    made = ml_collections.ConfigDict(network | {"expansion": 2})
    return models.build(made, example_shape=(SIDE, SIDE, 1), num_classes=training.CLASSES)


def initial(config: ml_collections.ConfigDict, key: Array) -> dict[str, Any]:
    """Parameters of the encoder, with the head that layers share in it, of the pooler, and of the halting head."""
    encoder_key, pooler_key, halting_key = jax.random.split(key, 3)
    hidden = [dense(jax.random.fold_in(halting_key, i), 2 * config.width) for i in range(config.halting_layers - 1)]
    output = dense(jax.random.fold_in(halting_key, config.halting_layers), 2 * config.width, 1)
    return {
        "encoder": encoder(config).init(encoder_key),
        "pooler": dense(pooler_key, config.width),
        "halting": {"hidden": hidden, "output": output},
    }


def dense(key: Array, inputs: int, outputs: int = 0) -> dict[str, Array]:
    """As many outputs as inputs by default."""
    outputs = outputs or inputs
    return {
        "kernel": jax.nn.initializers.lecun_normal()(key, (inputs, outputs)),
        "bias": jnp.zeros(outputs),
    }


def layers(config: ml_collections.ConfigDict, params: dict[str, Any], x: Array) -> tuple[Array, Array]:
    """Logits [L, B, C] of every layer, and probabilities [B, L] of halting there once it is reached."""
    hidden = encoder(config).apply(params["encoder"], x.reshape(-1, SIDE, SIDE, 1))["hidden"]
    pooler, head = params["pooler"], params["encoder"]["last"]
    states = jnp.tanh(jnp.mean(jnp.stack(hidden), axis=2) @ pooler["kernel"] + pooler["bias"])
    earlier = jnp.concatenate([jnp.zeros_like(states[:1]), states[:-1]])
    if not config.see_previous:
        earlier = jnp.zeros_like(earlier)
    halting = jax.vmap(lambda *pair: early_exit.halting_logits(params["halting"], *pair))(states, earlier)
    return states @ head["kernel"] + head["bias"], jax.nn.sigmoid(halting.T)


def train(config: ml_collections.ConfigDict, params: Any, examples: training.Labelled, rows: Array) -> Any:
    """By the loss of layers that the halting head expects, and its divergence from a geometric prior."""
    prior = early_exit.geometric_prior(config.layers, rate=config.prior_rate)

    def loss(params: Any, rows: Array, key: Array) -> Array:
        del key
        x, y = examples.take(rows)
        logits, halting = layers(config, params, x)
        each = training.cross_entropy(logits, jnp.broadcast_to(y, logits.shape[:2])).T
        exits = early_exit.exit_distribution(halting, epsilon=config.epsilon)
        return jnp.mean(early_exit.pondering(each, exits, prior, beta=config.beta))

    optimizer = optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.steps))
    return training.fit(loss, params, optimizer, rows, jax.random.key(0))[0]


def expected_probabilities(logits: Array, halting: Array) -> Array:
    """Class probabilities [B, C] of all layers, weighted by their exits; who never left before leaves at the last layer."""
    exits = early_exit.exit_distribution(halting.at[:, -1].set(1.0), epsilon=0.0)
    return jnp.einsum("bl,lbc->bc", exits, jax.nn.softmax(logits))


def measured(
    config: ml_collections.ConfigDict, key: Array, logits: Array, halting: Array, y: Array
) -> dict[str, Array]:
    """Accuracy of every rule of exit, and after how many layers, counted from 1, it leaves on average."""
    right = (jnp.argmax(logits, axis=-1) == y).T  # [B, L]

    def told(name: str, exits: Array) -> dict[str, Array]:
        hits = jnp.take_along_axis(right, exits[:, None], axis=1)
        return {f"{name}_accuracy": jnp.mean(hits), f"{name}_layers": jnp.mean(exits + 1.0)}

    found: dict[str, Array] = {}
    for threshold in QUANTILES:
        found |= told(f"quantile_{threshold}", early_exit.quantile_exit(halting, threshold=threshold))
    found |= told("patience", early_exit.patience_exit(logits, patience=config.patience))
    draws = jax.vmap(lambda key: early_exit.sample_exit(key, halting))(jax.random.split(key, config.draws))
    sampled = jax.vmap(lambda exits: told("sampled", exits))(draws)
    found |= {name: jnp.mean(values) for name, values in sampled.items()}
    return found | {
        "sampled_exit_variance": jnp.mean(jnp.var(draws.astype(jnp.float32), axis=0)),
        "expected_accuracy": training.accuracy(expected_probabilities(logits, halting), y),
        "last_layer_accuracy": jnp.mean(right[:, -1]),
        "first_layer_accuracy": jnp.mean(right[:, 0]),
    }


def run(config: ml_collections.ConfigDict, key: Array) -> dict[str, Array]:
    """Trains encoder and halting head together, and lets every rule decide when to leave, on the same weights."""
    data_key, init_key, order_key, draw_key = jax.random.split(key, 4)
    seen, test = training.digit_splits(data_key, (config.train, config.test))
    rows = training.batches(order_key, config.train, config.batch, config.steps)
    params = train(config, initial(config, init_key), seen, rows)
    logits, halting = layers(config, params, test.x)
    return measured(config, draw_key, logits, halting, test.y)
