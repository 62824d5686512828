"""An adapter of cross-attention that gives guidance and larger steps in one pass, on its base and on a fine-tune."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax import Array

from experiments import models, runs, worlds
from experiments.models import prompts
from experiments.papers import training
from experiments.tasks import diffusion
from experiments.worlds import scenes
from mlfuncs import attention, consistency, guidance
from mlfuncs import diffusion as methods

VECTORISED = False
BRANCHES = ("negative", "extra")

Denoise = Callable[..., Any]  # (params, x, sigma, tokens, attention=...) -> clean estimate


class Asked(NamedTuple):
    """What samples are to show and not to show, a row each."""

    tokens: Array  # [N, L]
    negative: Array  # [N, L]
    color: Array  # [N] in either prompt
    open: Array  # bool [N]: the prompt leaves the colour open, and the negative prompt names one


def prepare(shared: ml_collections.ConfigDict, key: Array) -> dict[str, Any]:
    """Parameters of the base, of a fine-tune to another style and of the adapter that learns on the base, and samples of
    both bases, by many guided steps and by few without guidance."""
    trained = runs.obtain(shared.teacher, Path(shared.cache_dir))
    tune_key, adapt_key, noise_key = jax.random.split(key, 3)
    base = trained.state.average
    noise = jax.random.normal(noise_key, (shared.samples, *trained.world.example_shape))
    bases = {"base": base, "tuned": _tune(shared, base, tune_key)}
    asked, adapter = questions(trained.world, shared.samples), _adapt(shared, trained, adapt_key)
    drawn: dict[str, Any] = {}
    for how in ("reference", "unguided"):
        sample = _sampler(shared, how)
        drawn[how] = {
            name: sample(params, adapter, noise, asked.tokens, asked.negative) for name, params in bases.items()
        }
    return {**bases, "adapter": adapter, "noise": noise, "drawn": drawn}


def run(config: ml_collections.ConfigDict, key: Array, given: dict[str, Any]) -> dict[str, float]:
    """Draws what prompts ask for by `config.sampler`, and compares with many guided steps from the same noise."""
    del key
    if config.sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {config.sampler!r}")
    world = worlds.describe(config.shared.teacher.data, None)  # type: ignore[arg-type]
    asked = questions(world, config.shared.samples)
    sample, drawn = _sampler(config.shared, config.sampler), given["drawn"]
    measured: dict[str, float] = {}
    for name, prefix in (("base", ""), ("tuned", "tuned_")):
        if config.sampler in drawn:
            found = drawn[config.sampler][name]
        else:
            found = sample(given[name], given["adapter"], given["noise"], asked.tokens, asked.negative)
        seen, plain = judged(world, found, asked), judged(world, drawn["unguided"][name], asked)
        measured |= {f"{prefix}{metric}": value for metric, value in seen.items()}
        measured[f"{prefix}gain"] = seen["accuracy"] - plain["accuracy"]
        measured[f"{prefix}squared_error"] = float(jnp.mean((found - drawn["reference"][name]) ** 2))
    return measured


def questions(world: worlds.World, number: int) -> Asked:
    """In turn a prompt of a colour and a shape with an empty negative prompt, and one of a shape with a negative colour."""
    assert world.captions is not None
    shape, color = np.divmod(np.arange(number) // 2 % 30, len(scenes.COLORS))
    bare = np.arange(number) % 2 == 1

    def encoded(before: np.ndarray, after: np.ndarray) -> Array:
        texts = (" ".join(words).strip() for words in zip(before, after, strict=True))
        return jnp.asarray(np.stack([world.captions.encode(text) for text in texts]))  # type: ignore[union-attr]

    colors, silent = np.asarray(scenes.COLORS)[color], np.full(number, "")
    tokens = encoded(np.where(bare, silent, colors), np.asarray(scenes.SHAPES)[shape])
    return Asked(tokens, encoded(silent, np.where(bare, colors, silent)), jnp.asarray(color), jnp.asarray(bare))


def judged(world: worlds.World, found: Array, asked: Asked) -> dict[str, float]:
    """Shares of samples as prompts say, and, where prompts leave the colour open, of the colour they are not to be of."""
    assert world.captions is not None
    pictures = np.asarray(world.to_pixels(found))
    right, bare = world.captions.agree(pictures, np.asarray(asked.tokens)), np.asarray(asked.open)
    shown = np.asarray(scenes.hue(pictures.astype(np.float32) / 255)) == np.asarray(asked.color)
    return {
        "accuracy": float(np.mean((right["color"] & right["shape"])[~bare])),
        "negative_rate": float(np.mean(shown[bare])),
    }


def denoiser(shared: ml_collections.ConfigDict, world: worlds.World) -> tuple[models.Model, Denoise]:
    """The base's network, and the denoiser it is."""
    model = diffusion.network(shared.teacher, world)
    return model, models.preconditioned(model, sigma_data=shared.teacher.diffusion.sigma_data)


def initial_adapter(params: Any) -> dict[str, Any]:
    """An adapter for each layer that attends to words: the layer's own projections twice, so that the two branches cancel
    where both prompts are the same."""
    return {
        layer: {
            branch: {
                "key": block["cross"]["key"]["kernel"],
                "value": block["cross"]["value"]["kernel"],
                "gain": jnp.ones(block["cross"]["value"]["kernel"].shape[1]),
                "bias": jnp.zeros(block["cross"]["value"]["kernel"].shape[1]),
            }
            for branch in BRANCHES
        }
        for layer, block in params.items()
        if "cross" in block
    }


def adapted(model: models.Model, params: Any, adapter: Any, tokens: Array, negative: Array) -> prompts.Attention:
    """Cross-attention with the offset of an adapter, which has projections of its own of the words of both prompts."""
    positive, opposed = (model.apply(params, some, method="encode") for some in (tokens, negative))

    def attend(layer: str, query: Array, key: Array, value: Array, *, mask: Array) -> Array:
        def projected(heard: prompts.Prompt, kernel: Array) -> Array:
            by_head = (heard.states @ kernel).reshape(*heard.states.shape[:2], query.shape[1], -1)
            return jnp.moveaxis(by_head, 2, 1)

        away, towards = (adapter[layer][branch] for branch in BRANCHES)
        return attention.negative_offset_attention(
            query,
            key,
            value,
            projected(opposed, away["key"]),
            projected(opposed, away["value"]),
            projected(positive, towards["key"]),
            projected(positive, towards["value"]),
            negative_gain=away["gain"],
            negative_bias=away["bias"],
            extra_gain=towards["gain"],
            extra_bias=towards["bias"],
            mask=mask,
            negative_mask=opposed.mask,
        )

    return attend


def level_grid(shared: ml_collections.ConfigDict) -> Array:
    """Levels [steps * substeps + 1] down to 0; the sampler's few steps take each `substeps`-th."""
    levels = shared.teacher.diffusion
    return methods.karras_sigmas(shared.steps * shared.substeps, sigma_min=levels.sigma_min, sigma_max=levels.sigma_max)


def _sampler(shared: ml_collections.ConfigDict, how: str) -> Callable[..., Array]:
    """`draw(params, adapter, noise, tokens, negative)`."""
    world = worlds.describe(shared.teacher.data, None)  # type: ignore[arg-type]
    model, denoise = denoiser(shared, world)
    levels = shared.teacher.diffusion
    few = level_grid(shared)[:: shared.substeps]
    many = methods.karras_sigmas(shared.reference_steps, sigma_min=levels.sigma_min, sigma_max=levels.sigma_max)

    @jax.jit
    def draw(params: Any, adapter: Any, noise: Array, tokens: Array, negative: Array) -> Array:
        guided, attends = how in ("guided", "reference"), how == "adapter"
        attend = adapted(model, params, adapter, tokens, negative) if attends else None
        towards = partial(denoise, params, tokens=tokens, attention=attend)
        both = jnp.concatenate([negative, tokens])

        def twice(x: Array, sigma: Array) -> Array:
            away, towards = jnp.split(denoise(params, jnp.tile(x, (2, 1, 1, 1)), jnp.tile(sigma, 2), both), 2)
            return guidance.classifier_free_guidance(away, towards, scale=shared.scale)

        return methods.sample_euler(
            twice if guided else towards, levels.sigma_max * noise, many if how == "reference" else few
        )

    return draw


SAMPLERS = ("adapter", "unguided", "guided", "reference")


def adapter_loss(
    shared: ml_collections.ConfigDict,
    model: models.Model,
    denoise: Denoise,
    base: Any,
    adapter: Any,
    data: Array,
    tokens: Array,
    negative: Array,
    key: Array,
) -> Array:
    """One pass with the adapter against the guided steps of the base between two levels of the few-step sampler: [B].

    Weighted as in the base's training, in the scale of the network's outputs: in that of clean images the lowest levels,
    where details are made, would count for nothing.
    """
    place_key, noise_key = jax.random.split(key)
    place = jax.random.randint(place_key, (len(data),), 0, shared.steps)
    levels = level_grid(shared)[shared.substeps * place + jnp.arange(shared.substeps + 1)[:, None]]
    x = data + levels[0][:, None, None, None] * jax.random.normal(noise_key, data.shape)
    losses = consistency.multi_step_consistency_loss(
        partial(denoise, base, tokens=tokens, attention=adapted(model, base, adapter, tokens, negative)),
        partial(denoise, base, tokens=tokens),
        partial(denoise, base, tokens=negative),
        x,
        levels,
        scale=shared.scale,
    )
    return losses / methods.edm_coefficients(levels[0], sigma_data=shared.teacher.diffusion.sigma_data)["out"] ** 2


def _adapt(shared: ml_collections.ConfigDict, trained: runs.Run, key: Array) -> Any:
    """The adapter after `shared.adapter.steps` updates, the base as it is."""
    c, (described, examples) = shared.adapter, scenes.examples(shared.teacher.data, "train")
    model, denoise = denoiser(shared, trained.world)
    rows_key, negative_key, empty_key, fit_key = jax.random.split(key, 4)
    data, tokens = trained.world.to_model(jnp.asarray(examples["image"])), jnp.asarray(examples["tokens"])
    negative = scenes.negative(negative_key, jax.tree.map(jnp.asarray, described))
    assert trained.world.captions is not None
    empty = jnp.asarray(trained.world.captions.encode(""))
    silent = jax.random.bernoulli(empty_key, c.empty, (len(tokens), 1))
    negative = jnp.where(silent, empty, negative)
    rows = training.batches(rows_key, len(data), c.batch, c.steps)
    optimizer = optax.adam(optax.cosine_decay_schedule(c.learning_rate, c.steps))

    @jax.jit
    def fit(base: Any, rows: Array, key: Array, data: Array, tokens: Array, negative: Array) -> Any:
        def loss(adapter: Any, rows: Array, key: Array) -> Array:
            given = data[rows], tokens[rows], negative[rows]
            return jnp.mean(adapter_loss(shared, model, denoise, base, adapter, *given, key))

        return training.fit(loss, initial_adapter(base), optimizer, rows, key)[0]

    return fit(trained.state.average, rows, fit_key, data, tokens, negative)


def _tune(shared: ml_collections.ConfigDict, base: Any, key: Array) -> Any:
    """The base after some updates on scenes of another style. Its words stay as they are, as is usual."""
    c, levels = shared.tuning, shared.teacher.diffusion
    world = worlds.build(c.data)
    _, denoise = denoiser(shared, world)
    rows_key, fit_key = jax.random.split(key)
    examples = world.train.read(np.arange(len(world.train)))
    data, tokens = world.to_model(jnp.asarray(examples["image"])), jnp.asarray(examples["tokens"])
    rows = training.batches(rows_key, len(data), c.batch, c.steps)

    @jax.jit
    def fit(base: Any, rows: Array, key: Array, data: Array, tokens: Array) -> Any:
        words = base["tokens"]

        def loss(params: Any, rows: Array, key: Array) -> Array:
            level_key, noise_key = jax.random.split(key)
            sigma = methods.sample_training_sigmas(level_key, (len(rows),), mean=levels.mean, std=levels.std)
            noise = jax.random.normal(noise_key, data[rows].shape)
            told = partial(denoise, {**params, "tokens": words}, tokens=tokens[rows])
            return jnp.mean(methods.edm_loss(told, data[rows], noise, sigma, sigma_data=levels.sigma_data))

        rest = {name: part for name, part in base.items() if name != "tokens"}
        return {**training.fit(loss, rest, optax.adam(c.learning_rate), rows, key)[0], "tokens": words}

    return fit(base, rows, fit_key, data, tokens)
