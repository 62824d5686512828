"""Sensitive-neuron dropout: facts learned while the units that move most between checkpoints are switched off."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax import Array

from experiments import models
from experiments.papers import training
from experiments.worlds import facts
from mlfuncs import dropout, uncertainty

VECTORISED = False  # arms differ in how masks are chosen and share one compiled program
DROPPED = ("none", "random", "sensitive")


def prepare(config: ml_collections.ConfigDict, key: Array) -> dict[str, Any]:
    """The facts, and a language model that knows words and forms from the background subjects but none of the new facts."""
    return _prepare(key, config=ml_collections.FrozenConfigDict(config))


def run(config: ml_collections.ConfigDict, key: Array, shared: dict[str, Any]) -> dict[str, Array]:
    """Trains on new facts, epoch by epoch; after each, the facts are asked for in forms that were not told."""
    if config.dropped not in DROPPED:
        raise ValueError(f"dropped must be one of {', '.join(DROPPED)}, got {config.dropped!r}")
    settings = {name: value for name, value in config.items() if name != "dropped"}
    return _run(key, shared, DROPPED.index(config.dropped), config=ml_collections.FrozenConfigDict(settings))


@functools.partial(jax.jit, static_argnames="config")
def _prepare(key: Array, *, config: ml_collections.FrozenConfigDict) -> dict[str, Any]:
    truth_key, split_key, init_key, order_key, _ = jax.random.split(key, 5)
    base = _base(config)
    truth = facts.draw(truth_key, base)
    told = facts.splits(
        split_key, base, truth, background=config.background, told=config.told, held_out=config.held_out
    )
    network = _network(config, base)
    rows = training.batches(order_key, len(told.background.tokens), config.batch, config.steps)
    optimizer = optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.steps))

    def loss(params: Any, rows: Array, _: Array) -> Array:
        return next_token_loss(network, params, told.background.tokens[rows])

    params = training.fit(loss, network.init(init_key), optimizer, rows, order_key)[0]
    return {"params": params, **{name: part._asdict() for name, part in told._asdict().items()}}


@functools.partial(jax.jit, static_argnames="config")
def _run(
    key: Array, shared: dict[str, Any], dropped: Array, *, config: ml_collections.FrozenConfigDict
) -> dict[str, Array]:
    order_key, mask_key, answer_key = jax.random.split(jax.random.split(key, 5)[-1], 3)
    base = _base(config.shared)
    network = _network(config.shared, base)
    width, depth = config.shared.width, config.shared.depth
    told, paraphrase, held_out = (facts.Sentences(**shared[name]) for name in ("train", "paraphrase", "held_out"))
    tracked, asked = _spread(told, config.tracked), _spread(paraphrase, config.prompts)
    each = len(told.tokens) // config.batch
    rows = training.batches(order_key, len(told.tokens), config.batch, config.epochs * each)
    optimizer = optax.adam(config.learning_rate)

    def masks(mask: Array) -> list[Array | None]:
        """On the states that the last block takes in; no rescaling."""
        return [mask if block == depth - 2 else None for block in range(depth)]

    def states(params: Any, sentences: facts.Sentences, place: Array) -> Array:
        """Penultimate states [N, width] at one place [N] of each sentence, of the whole network."""
        every = network.apply(params, sentences.tokens)["penultimate"]
        return jnp.take_along_axis(every, place[:, None, None], axis=1)[:, 0]

    questions = (("accuracy", paraphrase), ("train_accuracy", told), ("held_out_accuracy", held_out))
    together = jax.tree.map(lambda *fields: jnp.concatenate(fields), *(part for _, part in questions))

    def accuracies(params: Any) -> dict[str, Array]:
        right, low, means = right_answers(network, params, together), 0, {}
        for name, part in questions:
            means[name] = jnp.mean(right[low : low + len(part.tokens)])
            low += len(part.tokens)
        return means

    def step(carry: Any, rows: Array) -> Any:
        params, moments, mask = carry
        loss = lambda params: next_token_loss(network, params, told.tokens[rows], masks=masks(mask))  # noqa: E731
        value, gradients = jax.value_and_grad(loss)(params)
        updates, moments = optimizer.update(gradients, moments, params)
        return (optax.apply_updates(params, updates), moments, mask), value

    def train_epoch(carry: Any, given: Any) -> Any:
        params, moments, mask, window = carry
        epoch, rows = given
        draws = jax.random.uniform(jax.random.fold_in(mask_key, epoch), (width,))
        mask = next_mask(dropped, epoch, mask, window, draws, every=config.every, fraction=config.fraction)
        (params, moments, mask), losses = jax.lax.scan(step, (params, moments, mask), rows)
        # The second-to-last token of a sentence is its answer: the end comes after it.
        window = dropout.push_window(window, states(params, tracked, tracked.answer))
        return (params, moments, mask, window), {"train_loss": jnp.mean(losses), **accuracies(params)}

    params = shared["params"]
    window = jnp.zeros((config.window, config.tracked, width))
    carry: Any = (params, optimizer.init(params), jnp.ones(width, bool), window)
    epochs = (jnp.arange(config.epochs), rows.reshape(config.epochs, each, config.batch))
    (params, *_), seen = jax.lax.scan(train_epoch, carry, epochs)

    def prompt_score(key: Array, prompt: facts.Sentences) -> Array:
        """EigenScore of sampled answers to one question."""
        logits = network.apply(params, prompt.tokens[None])["logits"][0, prompt.answer - 1]
        drawn = jax.random.categorical(key, logits, shape=(config.answers,))
        tokens = jnp.broadcast_to(prompt.tokens, (config.answers, base.length)).at[:, prompt.answer].set(drawn)
        answers = prompt._replace(tokens=tokens)
        return uncertainty.eigen_score(states(params, answers, jnp.full(config.answers, prompt.answer)))

    last = seen["accuracy"][-config.last :]
    return {
        "accuracy_deviation": jnp.std(last),
        "accuracy_change": jnp.mean(jnp.abs(jnp.diff(last))),
        "accuracy": seen["accuracy"][-1],
        "mean_accuracy": jnp.mean(last),
        "eigen_score": jnp.mean(jax.vmap(prompt_score)(jax.random.split(answer_key, config.prompts), asked)),
        "train_accuracy": seen["train_accuracy"][-1],
        "train_loss": seen["train_loss"][-1],
        "held_out_accuracy": seen["held_out_accuracy"][-1],
    }


def next_mask(
    dropped: Array, epoch: Array, mask: Array, window: Array, draws: Array, *, every: int, fraction: float
) -> Array:
    """The units [D] kept in an epoch, counted from 0; all until `every` checkpoints are seen.

    Sensitive units of the window [C, N, D] stay off for `every` epochs. Of random ones, those with the largest `draws` [D],
    there are as many, and others every epoch.
    """
    random = dropped == DROPPED.index("random")
    scores = jnp.where(random, draws, dropout.sensitivity_score(window))
    due = (dropped > 0) & (epoch >= every) & (random | (epoch % every == 0))
    return jnp.where(due, dropout.sensitive_unit_mask(scores, fraction=fraction), mask)


def _base(config: ml_collections.FrozenConfigDict) -> facts.KnowledgeBase:
    return facts.knowledge_base(subjects=config.subjects, relations=config.relations, objects=config.objects)


def _spread(sentences: facts.Sentences, number: int) -> facts.Sentences:
    """So many of them, evenly apart; facts are in random order."""
    return sentences.take(np.arange(number) * len(sentences.tokens) // number)


def _network(config: ml_collections.FrozenConfigDict, base: facts.KnowledgeBase) -> models.Model:
    settings = {"name": "transformer", "width": config.width, "depth": config.depth, "heads": config.heads}
    return models.build(
        ml_collections.ConfigDict(settings), example_shape=(base.length,), num_classes=len(base.vocabulary)
    )


def next_token_loss(network: models.Model, params: Any, tokens: Array, **settings: Any) -> Array:
    """Mean cross-entropy over the words of all sentences [B, T], padding left out."""
    logits = network.apply(params, tokens[:, :-1], **settings)["logits"]
    present = tokens[:, 1:] != facts.PAD
    return jnp.sum(training.cross_entropy(logits, tokens[:, 1:]) * present) / jnp.sum(present)


def right_answers(network: models.Model, params: Any, asked: facts.Sentences) -> Array:
    """Bool [N]: whether the most likely next word, of the whole vocabulary, is the right object."""
    logits = network.apply(params, asked.tokens)["logits"]
    at = jnp.take_along_axis(logits, asked.answer[:, None, None] - 1, axis=1)[:, 0]
    return jnp.argmax(at, -1) == asked.target
