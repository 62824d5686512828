"""Training, measuring and sampling of language models."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax import Array

from experiments import models
from experiments.engine.randomness import per_example_keys
from experiments.engine.task import Batch, Sampler, Shown, Task
from experiments.models.generation import PAD, generate
from experiments.tasks import common
from experiments.tasks.language import settings
from experiments.tasks.language.distillation import Distillation
from experiments.worlds import Text, Trained, World

METRICS = ("test_loss", "perplexity", "bits_per_character")
ANSWERS, DIVERGENCE = "answer_accuracy", "teacher_divergence"


def build(config: ml_collections.ConfigDict, world: World, trained: Trained) -> Task:
    text = settings.check(config, world)
    distils = config.method == "distillation"
    common.check_best(config, [*METRICS, *[ANSWERS] * text.asks, *[DIVERGENCE] * distils])
    model, optimizer = network(config, world), common.make_optimizer(config.optimizer, config.steps)
    of, teacher = None, None
    if distils:
        run = trained(config.teacher)
        settings.check_teacher(config, world, run)
        of, teacher = Distillation(config, world, model, network(run.config, run.world)), run.state.average

    def init(key: Array) -> Any:
        params_key, stored_key = jax.random.split(key)
        state = common.initial_state(model.init(params_key), optimizer)
        return state if of is None else of.first(state, stored_key, teacher)

    def update(state: Any, batch: Batch, key: Array) -> tuple[Any, dict[str, Array]]:
        coin_key, key = jax.random.split(key)
        dropout_keys, fresh_keys = common.step_keys(key, batch, 2)
        losses: common.Losses = partial(_losses, model)
        tokens = batch["tokens"]
        if of is not None:
            losses, tokens = partial(of.losses, state.teacher), of.rows(state, batch, fresh_keys, coin_key)
        examples = (tokens, dropout_keys)
        means, gradients = common.mean_and_gradients(losses, state.params, examples, config.accumulate)
        extra = {"gradient_norm": optax.tree.norm(gradients)}
        return common.apply_gradients(state, gradients, optimizer, config.ema_decay), {**means, **extra}

    sample = _sampler(config, text, model)
    measures = _measures(config, world, text, model)
    divergence = of.divergence() if of is not None else None

    def evaluate(state: Any, key: Array) -> tuple[dict[str, float], dict[str, Shown]]:
        sample_key, divergence_key = jax.random.split(key)
        measured = measures(state.average)
        if divergence is not None:
            measured[DIVERGENCE] = divergence(state, divergence_key)
        shown = config.evaluation.samples
        return measured, {"samples": sample(state, sample_key, shown, length)} if shown else {}

    length = config.sampling.length or world.example_shape[0]
    return Task(init, update, evaluate, sample, model.axes, steps=length)


def network(config: ml_collections.ConfigDict, world: World) -> models.Model:
    """The network of a run, for its vocabulary."""
    return models.build(config.model, example_shape=world.example_shape, num_classes=world.num_classes)


def next_token_losses(logits: Array, tokens: Array, first: int = 1) -> tuple[Array, Array]:
    """Cross-entropies [B] summed over tokens [B, L] from place `first` on, and how many those are, padding left out.

    `logits` [B, L - 1, V] are those after each token but the last.
    """
    present = (tokens[:, 1:] != PAD) & (jnp.arange(1, tokens.shape[1]) >= first)
    each = optax.losses.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
    return jnp.sum(jnp.where(present, each, 0), axis=1), jnp.sum(present, axis=1)


def _losses(model: models.Model, params: Any, examples: tuple[Array, Array]) -> tuple[Array, dict[str, Array]]:
    """A mean over the tokens of each row, so that long sentences weigh no more than short ones."""
    tokens, keys = examples
    sums, counts = next_token_losses(model.apply(params, tokens[:, :-1], keys=keys)["logits"], tokens)
    return sums / jnp.maximum(counts, 1), {}


def _measures(
    config: ml_collections.ConfigDict, world: World, text: Text, model: models.Model
) -> Callable[[Any], dict[str, float]]:
    """What the test set says of parameters: a mean over its tokens, and the share of its questions answered rightly.

    Of a distilled model prompts do not count, which it never learnt to write.
    """
    size = len(world.test)
    first = config.distillation.prompt_length if config.method == "distillation" else 1
    blocks = np.array_split(np.arange(size), -(-size // config.evaluation.block))

    @jax.jit
    def losses(params: Any, tokens: Array) -> tuple[Array, Array]:
        sums, counts = next_token_losses(model.apply(params, tokens[:, :-1])["logits"], tokens, first)
        return jnp.sum(sums), jnp.sum(counts)

    @jax.jit
    def right(params: Any, tokens: Array, answer: Array) -> Array:
        """Whether the likeliest words after a question are its answer and nothing more."""
        keys = jax.random.split(jax.random.key(0), len(tokens))  # temperature 0 has no use for them
        length = tokens.shape[1]
        found = generate(model, params, keys, tokens, length=length, given=answer, end=text.end, temperature=0.0)
        return jnp.sum(jnp.all(found == tokens, axis=1))

    def measure(params: Any) -> dict[str, float]:
        total = count = answers = characters = 0.0
        for block in blocks:
            batch = world.test.read(block)
            of_block, tokens = losses(params, batch["tokens"])
            total, count = total + float(of_block), count + float(tokens)
            characters += sum(len(text.decode(row[first:])) for row in batch["tokens"])
            if text.asks:
                answers += int(right(params, batch["tokens"], batch["answer"]))
        loss = total / count
        values = (loss, math.exp(min(loss, 700.0)), total / math.log(2) / characters)
        measured = dict(zip(METRICS, values, strict=True))
        return {**measured, ANSWERS: answers / size} if text.asks else measured

    return measure


def _sampler(config: ml_collections.ConfigDict, text: Text, model: models.Model) -> Sampler:
    """`(state, key, num, steps) -> texts` of so many tokens after the prompt; text i depends on the key and i alone."""
    given, chosen = text.encode(config.sampling.prompt), config.sampling

    @partial(jax.jit, static_argnums=(3, 4))
    def draw(params: Any, key: Array, first: Array, num: int, steps: int) -> Array:
        keys = per_example_keys(key, first + jnp.arange(num))
        prompts = jnp.broadcast_to(given, (num, len(given)))
        return generate(
            model,
            params,
            keys,
            prompts,
            length=len(given) + steps,
            end=text.end,
            temperature=chosen.temperature,
            top_k=chosen.top_k,
        )

    def sample(state: Any, key: Array, num: int, steps: int) -> list[str]:
        block = min(num, config.evaluation.block)
        drawn = [draw(state.average, key, jnp.int32(first), block, steps) for first in range(0, num, block)]
        return [text.decode(row) for row in np.concatenate(drawn)[:num]]

    return sample
