"""Everything random that generator and critic learn from in one pass."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax import Array

from experiments.engine import randomness
from experiments.engine.task import Batch
from experiments.tasks.conditions import Conditions
from experiments.tasks.score_distillation.settings import RANDOM_OVERRIDE
from experiments.worlds import World
from mlfuncs import unlearning

RHO = 7.0  # of the grid of levels of Karras et al.


class Inputs(NamedTuple):
    """A row an example."""

    z: Array  # unit normal latents of the generator
    noise: Array  # unit normal
    sigma: Array  # levels at which scores are compared
    given: Conditions  # under which samples are drawn
    told: Conditions  # what the teacher is told instead
    keys: Array  # for what else a method draws


def draw(
    config: ml_collections.ConfigDict,
    world: World,
    levels: ml_collections.ConfigDict,
    kind: str,
    batch: Batch,
    keys: Array,
) -> Inputs:
    """`levels` are those of the teacher, `kind` that of the condition. Classes are drawn, captions those of the batch."""
    z_keys, noise_keys, level_keys, label_keys, told_keys, other_keys = randomness.split(keys, 6)
    given = {"tokens": batch["tokens"]} if kind == "tokens" else {}
    if kind == "labels":
        given = {"labels": draw_labels(config, world, label_keys)}
    z, noise = (randomness.normal(some, world.example_shape) for some in (z_keys, noise_keys))
    # Levels are uniform in the variable that a sampler's steps divide evenly.
    low, high = (getattr(levels, name) ** (1 / RHO) for name in ("sigma_min", "sigma_max"))
    c = config.distillation

    def draw_level(key: Array) -> Array:
        share = jax.random.uniform(key, (), minval=c.lowest_level, maxval=c.highest_level)
        return (low + share * (high - low)) ** RHO

    sigma = jax.vmap(draw_level)(level_keys)
    return Inputs(z, noise, sigma, given, teacher_conditions(config, world, given, told_keys), other_keys)


def draw_labels(config: ml_collections.ConfigDict, world: World, keys: Array) -> Array:
    """Classes [B], all alike likely; where one is forgotten, that one for a share of the batch and else another."""

    def draw(key: Array) -> Array:
        class_key, share_key = jax.random.split(key)
        label = jax.random.randint(class_key, (), 0, world.num_classes)
        if config.method != "forgetting":
            return label
        f = config.forgetting
        other = jax.random.randint(class_key, (), 0, world.num_classes - 1)
        return jnp.where(jax.random.bernoulli(share_key, f.share), f.label, other + (other >= f.label))

    return jax.vmap(draw)(keys)


def teacher_conditions(config: ml_collections.ConfigDict, world: World, given: Conditions, keys: Array) -> Conditions:
    """What the teacher is told: the condition of the sample, unless that is to be forgotten."""
    if config.method != "forgetting":
        return given
    f, labels = config.forgetting, given["labels"]
    if f.override != RANDOM_OVERRIDE:
        return {"labels": unlearning.override_labels(labels, f.label, override=f.override)}

    def draw(key: Array, label: Array) -> Array:
        return unlearning.sample_override_labels(key, label[None], f.label, num_classes=world.num_classes)[0]

    return {"labels": jax.vmap(draw)(keys, labels)}


def captions(world: World, num: int) -> dict[str, np.ndarray]:
    """Captions of the first training examples, where there are any."""
    rows = world.train.read(np.arange(num) % len(world.train)) if world.captions else {}
    return {"tokens": rows["tokens"]} if rows else {}
