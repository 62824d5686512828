"""Teacher hacking: students that come closer to a teacher while they move away from the truth, where all of it is exact."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax import Array

from experiments import models
from experiments.papers import training
from mlfuncs import distillation, metrics

VECTORISED = True


def run(config: ml_collections.ConfigDict, key: Array) -> dict[str, Array]:
    """Distils a teacher that a few samples of the truth taught, on fixed contexts, on fresh ones, or on some of each.

    A context is the tokens before the next one, so that both distances are means over all of them: "proxy",
    KL(teacher || student), and "golden", KL(truth || student).
    """
    if config.every * config.fitted > config.steps or config.steps % config.every:
        raise ValueError(
            f"steps {config.steps} must be a multiple of every {config.every}, and hold {config.fitted} of them"
        )
    oracle_key, teacher_key, student_key, source_key = jax.random.split(key, 4)
    contexts = one_hot(config.tokens, config.context)
    oracle = network(config, config.width)
    truth = config.sharpness * oracle.apply(oracle.init(oracle_key), contexts)["logits"]
    teacher = taught(config, teacher_key, contexts, truth)
    student, params = started(config, student_key, contexts, truth)

    def divergence(logits: Array, other: Array) -> Array:
        """Of next tokens: sequences of one token."""
        present = jnp.ones((len(other), 1), bool)
        return distillation.sequence_divergence(logits[:, None], other[:, None], present, divergence=config.divergence)

    def loss(params: Any, rows: Array) -> Array:
        return jnp.mean(divergence(student.apply(params, contexts[rows])["logits"], teacher[rows]))

    def distances(params: Any) -> dict[str, Array]:
        logits = student.apply(params, contexts)["logits"]
        return {name: mean_forward(other, logits) for name, other in (("proxy", teacher), ("golden", truth))}

    at = np.arange(config.every, config.steps + 1, config.every)
    rows = sources(config, source_key, len(contexts)).reshape(len(at), config.every, config.batch)
    optimizer = optax.adam(config.learning_rate)

    def step(carry: Any, rows: Array) -> Any:
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, rows), state, params)
        return (optax.apply_updates(params, updates), state), None

    def measured(carry: Any, rows: Array) -> Any:
        carry, _ = jax.lax.scan(step, carry, rows)
        return carry, distances(carry[0])

    _, seen = jax.lax.scan(measured, (params, optimizer.init(params)), rows)
    return {"teacher_golden": mean_forward(truth, teacher), **summary(config, at, seen["proxy"], seen["golden"])}


def summary(config: ml_collections.ConfigDict, steps: np.ndarray, proxy: Array, golden: Array) -> dict[str, Array]:
    """What the two curves [N] say of teacher hacking, with and without a look at the truth."""
    gap = metrics.proxy_gap(proxy, golden)
    # At steps that do not depend on the data the law can be fitted inside a compiled program.
    fit = metrics.power_law_fit(steps.astype(np.float32), proxy, fit_count=config.fitted)
    return {
        "proxy": proxy[-1],
        "golden": golden[-1],
        "golden_ratio": golden[-1] / jnp.min(golden),
        **{f"golden_at_{level:g}": at_level(proxy, golden, level) for level in config.levels},
        "hacked": gap["hacked"].astype(jnp.float32),
        "onset": jnp.asarray(steps)[gap["onset"]].astype(jnp.float32),
        "exponent": fit["exponent"],
        "excess": jnp.exp(fit["residuals"][-1]),
    }


def at_level(proxy: Array, golden: Array, level: float) -> Array:
    """Golden where the falling proxy first reaches a level, interpolated; NaN where it starts below it or never does."""
    below = proxy <= level
    after = jnp.argmax(below)
    before = jnp.maximum(after - 1, 0)
    drop = proxy[before] - proxy[after]
    share = (proxy[before] - level) / jnp.where(drop > 0, drop, 1)
    found = golden[before] + share * (golden[after] - golden[before])
    return jnp.where(below[after] & (after > 0), found, jnp.nan)


def one_hot(tokens: int, places: int) -> Array:
    """All contexts: [tokens^places, places * tokens]."""
    digits = jnp.arange(tokens**places)[:, None] // tokens ** jnp.arange(places) % tokens
    return jax.nn.one_hot(digits, tokens).reshape(tokens**places, -1)


def network(config: ml_collections.ConfigDict, width: int) -> models.Model:
    """A perceptron of one hidden layer from contexts to logits."""
    settings = ml_collections.ConfigDict({"name": "perceptron", "widths": (width,)})
    return models.build(settings, example_shape=(config.context * config.tokens,), num_classes=config.tokens)


def mean_forward(true: Array, logits: Array) -> Array:
    """KL(true || logits), a mean over all contexts [N, V]."""
    present = jnp.ones((len(true), 1), bool)
    return jnp.mean(distillation.sequence_divergence(logits[:, None], true[:, None], present))


def taught(config: ml_collections.ConfigDict, key: Array, contexts: Array, truth: Array) -> Array:
    """Logits [N, V] of a teacher fitted to samples of the truth in some of the contexts."""
    place_key, sample_key, init_key = jax.random.split(key, 3)
    c = config.teacher
    told = jax.random.permutation(place_key, len(contexts))[: c.contexts]
    drawn = jax.random.categorical(sample_key, truth[told], shape=(c.samples, c.contexts))
    shares = jnp.mean(jax.nn.one_hot(drawn, config.tokens), axis=0)
    model = network(config, c.width)

    def loss(params: Any, rows: Array, _: Array) -> Array:
        logits = model.apply(params, contexts[told[rows]])["logits"]
        return jnp.mean(optax.losses.softmax_cross_entropy(logits, shares[rows]))

    everything = jnp.broadcast_to(jnp.arange(c.contexts), (c.steps, c.contexts))
    params, _, _ = training.fit(loss, model.init(init_key), optax.adam(c.learning_rate), everything, init_key)
    return model.apply(params, contexts)["logits"]


def started(config: ml_collections.ConfigDict, key: Array, contexts: Array, truth: Array) -> tuple[models.Model, Any]:
    """A student after some steps on a few samples of the truth, and its parameters."""
    place_key, sample_key, init_key = jax.random.split(key, 3)
    c = config.student
    told = jax.random.permutation(place_key, len(contexts))[: c.samples]
    drawn = jax.random.categorical(sample_key, truth[told])
    model = network(config, config.width)

    def loss(params: Any, rows: Array, _: Array) -> Array:
        return jnp.mean(training.cross_entropy(model.apply(params, contexts[told[rows]])["logits"], drawn[rows]))

    everything = jnp.broadcast_to(jnp.arange(c.samples), (c.steps, c.samples))
    params, _, _ = training.fit(loss, model.init(init_key), optax.adam(config.learning_rate), everything, init_key)
    return model, params


def sources(config: ml_collections.ConfigDict, key: Array, contexts: int) -> Array:
    """Contexts [steps, B]: of a fixed set, epoch after epoch, or with probability `fresh_fraction` any."""
    set_key, order_key, fresh_key, coin_key = jax.random.split(key, 4)
    shape = (config.steps, config.batch)
    fixed = jax.random.permutation(set_key, contexts)[: config.stored]
    stored = fixed[training.batches(order_key, config.stored, config.batch, config.steps)]
    fresh = jax.random.randint(fresh_key, shape, 0, contexts)
    mixed = distillation.choose_source(
        coin_key, fresh.reshape(-1), stored.reshape(-1), fresh_fraction=config.fresh_fraction
    )
    return mixed.reshape(shape)
