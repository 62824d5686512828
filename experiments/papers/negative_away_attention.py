"""One-step generators of scenes distilled under one or random guidance scales, and prompts that say what not to draw."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax import Array

from experiments import models, runs, worlds
from experiments.papers import training
from experiments.tasks import diffusion
from experiments.worlds import scenes
from mlfuncs import attention, guidance, metrics, score_distillation

VECTORISED = False
STEERS = ("none", "guidance", "attention")


class Asked(NamedTuple):
    """Prompts of a shape, and negative prompts of a colour, a row each."""

    tokens: Array  # [N, L]
    negative: Array  # [N, L]
    shape: np.ndarray  # [N]
    color: np.ndarray  # [N] that of the negative prompt


def run(config: ml_collections.ConfigDict, key: Array) -> dict[str, float]:
    """Distils `config.run` from the seed of the key, and draws with and without negative prompts as `config.steer` says."""
    if config.steer not in STEERS:
        raise ValueError(f"steer must be one of {', '.join(STEERS)}, got {config.steer!r}")
    student = training.engine_run(config.run, key, config.cache_dir).run
    judge = _Judge(config, student.world)
    captioned_key, asked_key = jax.random.split(jax.random.fold_in(key, 1))
    captions = jnp.asarray(student.world.test.read(np.arange(config.samples))["tokens"])
    noise = partial(jax.random.normal, shape=(config.samples, *student.world.example_shape))
    plain = sampler(student, "none", 0.0)
    steered = plain if config.steer == "none" else sampler(student, config.steer, config.scale)
    asked = questions(student.world, config.samples)
    return {
        **judge.quality(plain(noise(captioned_key), captions, captions), captions),
        **judge.obedience(steered(noise(asked_key), asked.tokens, asked.negative), asked),
    }


def questions(world: worlds.World, number: int) -> Asked:
    """Every shape with every negative colour, in turn."""
    assert world.captions is not None
    shape, color = (x.astype(int) for x in np.divmod(np.arange(number) % 30, len(scenes.COLORS)))
    words = [[scenes.SHAPES[i] for i in shape], [scenes.COLORS[i] for i in color]]
    tokens, negative = (jnp.asarray(np.stack([world.captions.encode(text) for text in texts])) for texts in words)
    return Asked(tokens, negative, shape, color)


def sampler(student: runs.Run, steer: str, scale: float) -> Any:
    """`draw(noise, tokens, negative)`: one step, led away from the negative prompt by guidance or by attention or not."""
    levels, start = student.config.teacher.diffusion, student.config.distillation.sigma_init
    network = diffusion.network(student.config, student.world)
    denoise = models.preconditioned(network, sigma_data=levels.sigma_data)

    def away(layer: str, *positive: Array, **given: Array) -> Array:
        del layer
        return attention.negative_away_attention(*positive, scale=scale, **given)

    @jax.jit
    def draw(params: Any, noise: Array, tokens: Array, negative: Array) -> Array:
        def drawn(**told: Any) -> Array:
            return score_distillation.one_step_generator(partial(denoise, params, **told), sigma_init=start)(noise)

        if steer == "attention":
            return drawn(tokens=tokens, negative_tokens=negative, attention=away)
        if steer == "guidance":
            return guidance.classifier_free_guidance(drawn(tokens=negative), drawn(tokens=tokens), scale=scale)
        return drawn(tokens=tokens)

    return partial(draw, student.state.average)


def color_entropy(colors: np.ndarray) -> float:
    """Entropy of colours, numbers in COLORS or -1, in units of that of all colours alike likely; none is left out."""
    seen = colors[colors >= 0]
    shares = np.bincount(seen, minlength=len(scenes.COLORS)) / max(1, seen.size)
    return float(-np.sum(shares * np.log(np.where(shares > 0, shares, 1.0))) / np.log(len(scenes.COLORS)))


class _Judge:
    """Reads shapes by a small classifier, since samples of one step are less sharp than the exact detector needs, and
    colours without one."""

    def __init__(self, config: ml_collections.ConfigDict, world: worlds.World):
        self._world = world
        self._outputs = training.classifier(config.judge, config.cache_dir)
        real = world.train.read(np.arange(min(len(world.train), config.reference)))["image"]
        self._real = self._outputs(world.to_model(jnp.asarray(real)))["features"]

    def _seen(self, drawn: Array) -> tuple[np.ndarray, np.ndarray, Array]:
        """Shapes and colours of samples, -1 where there is no colour, and their features."""
        outputs = self._outputs(jnp.clip(drawn, -1, 1))
        likely = jax.nn.softmax(outputs["logits"]).reshape(len(drawn), len(scenes.SHAPES), len(scenes.COLORS))
        colors = scenes.hue((jnp.clip(drawn, -1, 1) + 1) / 2)
        return np.asarray(jnp.argmax(jnp.sum(likely, axis=-1), axis=-1)), np.asarray(colors), outputs["features"]

    def quality(self, drawn: Array, captions: Array) -> dict[str, float]:
        shapes, colors, features = self._seen(drawn)
        said = scenes.read(np.asarray(captions))
        agrees = lambda seen, told: float(np.mean((seen == told)[told >= 0]))  # noqa: E731
        return {
            "frechet_distance": float(metrics.frechet_distance(self._real, features)),
            "captioned_shape": agrees(shapes, said.shape[:, 0]),
            "captioned_color": agrees(colors, said.color[:, 0]),
        }

    def obedience(self, drawn: Array, asked: Asked) -> dict[str, float]:
        """Of samples under a shape and a negative colour."""
        shapes, colors, _ = self._seen(drawn)
        right, unwanted = shapes == asked.shape, colors == asked.color
        return {
            "shape_accuracy": float(np.mean(right)),
            "negative_rate": float(np.mean(unwanted)),
            "obeyed": float(np.mean(right & ~unwanted & (colors >= 0))),
            "colored": float(np.mean(colors >= 0)),
            "color_entropy": color_entropy(colors),
        }
