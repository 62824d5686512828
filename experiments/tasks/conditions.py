"""What a denoiser is told beside the noise level, a class or a caption: in training, where it is left out, in sampling."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax import Array

from experiments.engine.errors import UserError
from experiments.engine.task import Batch
from experiments.worlds import Captions, World
from mlfuncs import guidance

FIELDS = ("dropout", "guidance", "prompt")
NO_CLASS = -1

Conditions = Mapping[str, Array]  # "labels" [B] or "tokens" [B, L], as networks take them; empty without a condition
Denoiser = Callable[[Array, Array], Array]


class Settings(NamedTuple):
    """`config.condition`, checked; a config without the section neither drops conditions nor guides."""

    kind: str  # labels, tokens, or empty
    guided: bool
    dropout: float = 0.0
    guidance: float = 1.0
    prompt: str = ""


def settings(config: ml_collections.ConfigDict, world: World) -> Settings:
    kinds = [
        kind
        for kind, field in (("labels", "class_condition"), ("tokens", "token_condition"))
        if config.model.get(field, False)
    ]
    if len(kinds) > 1:
        raise UserError("config.model: choose one of class_condition and token_condition, got both")
    kind, section = (kinds or [""])[0], config.get("condition", None)
    if kind == "tokens" and world.captions is None:
        raise UserError(f"config.model.token_condition needs captions, and config.data {config.data.name!r} has none")
    if not section:
        return Settings(kind, guided=False)
    if not kind:
        raise UserError("config.condition needs a network with config.model.class_condition or token_condition")
    for name in section:
        if name not in FIELDS:
            raise UserError(f"config.condition.{name} is no field of a condition, which has {', '.join(FIELDS)}")
    found = Settings(kind, guided=True, **section)
    if not 0 <= found.dropout < 1:
        raise UserError(f"config.condition.dropout must be in [0, 1), got {found.dropout}")
    if not math.isfinite(found.guidance):
        raise UserError(f"config.condition.guidance must be finite, got {found.guidance}")
    if found.prompt and kind != "tokens":
        raise UserError("config.condition.prompt needs a network with config.model.token_condition")
    return found


def of_batch(chosen: Settings, batch: Batch) -> Conditions:
    """The conditions of training examples."""
    names = {"labels": "label", "tokens": "tokens"}
    return {chosen.kind: batch[names[chosen.kind]]} if chosen.kind else {}


def of_samples(chosen: Settings, world: World) -> Callable[[int, int], dict[str, np.ndarray]]:
    """`(first, num) -> conditions` of samples: the prompt, else the captions of the test set or the classes in turn."""
    if not chosen.kind:
        return lambda first, num: {}
    if chosen.kind == "labels":
        table = np.arange(world.num_classes, dtype=np.int32)
    elif chosen.prompt:
        table = _encoded(_captions(world), chosen.prompt)[None]
    else:
        table = np.asarray(world.test.read(np.arange(len(world.test)))["tokens"])
    return lambda first, num: {chosen.kind: table[(first + np.arange(num)) % len(table)]}


def _captions(world: World) -> Captions:
    assert world.captions is not None
    return world.captions


def _encoded(captions: Captions, prompt: str) -> np.ndarray:
    try:
        return captions.encode(prompt)
    except ValueError as error:
        raise UserError(f"config.condition.prompt {prompt!r}: {error}") from None


def empty(world: World, conditions: Conditions) -> Conditions:
    """Conditions of the same shapes that say nothing: no class, the empty prompt."""
    nothing: dict[str, Any] = {"labels": lambda: NO_CLASS, "tokens": lambda: _captions(world).encode("")}
    return {
        kind: jnp.broadcast_to(jnp.asarray(nothing[kind](), jnp.result_type(value)), value.shape)
        for kind, value in conditions.items()
    }


def drop(keys: Array, conditions: Conditions, nothing: Conditions, rate: float) -> Conditions:
    """Leaves out the condition of an example with probability `rate`, as its key [B] says."""
    if not rate:
        return conditions
    dropped = jax.vmap(lambda key: jax.random.bernoulli(key, rate))(keys)
    return {
        kind: jnp.where(dropped.reshape(-1, *(1,) * (value.ndim - 1)), nothing[kind], value)
        for kind, value in conditions.items()
    }


def guided(
    denoise: Callable[..., Array], conditions: Conditions, nothing: Conditions, scale: Array | float
) -> Denoiser:
    """Classifier-free guidance of `denoise(x, sigma, **conditions)`, both predictions in one pass."""
    both = {kind: jnp.concatenate([nothing[kind], value]) for kind, value in conditions.items()}

    def guided_denoise(x: Array, sigma: Array) -> Array:
        sigma = jnp.broadcast_to(sigma, x.shape[:1])
        predictions = denoise(jnp.concatenate([x, x]), jnp.concatenate([sigma, sigma]), **both)
        unconditional, conditional = jnp.split(predictions, 2)
        return guidance.classifier_free_guidance(unconditional, conditional, scale=scale)

    return guided_denoise
