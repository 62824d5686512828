"""A loss on the teacher's ranking of classes that needs no cross-entropy beside it."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax import Array

from experiments.papers import digits_noise
from mlfuncs import distillation

VECTORISED = True

prepare = digits_noise.prepare


def run(config: ml_collections.ConfigDict, key: Array, shared: dict[str, Any]) -> dict[str, Array]:
    """A student of `config.objective`, and how much weight the teacher leaves to ranks below the label."""
    given = digits_noise.setting(config, key, shared)
    params, _ = digits_noise.distil(config, key, given, digits_noise.objective_loss(given, config.objective))
    rows = jnp.arange(config.examples)
    seen = digits_noise.batch(config, given, rows, jax.random.fold_in(key, 2))
    teacher = seen.teacher["logits"]
    order = distillation.teacher_ranking(teacher, seen.y)
    below = {
        f"weight_below_label_at_{temperature}": _below(teacher / temperature, order)
        for temperature in config.temperatures
    }
    return digits_noise.measured(given, lambda x: given.student.apply(params, x)["logits"]) | below


def _below(logits: Array, order: Array) -> Array:
    """Mean probability of all classes but the first of the order."""
    return 1 - jnp.mean(jnp.take_along_axis(jax.nn.softmax(logits), order[:, :1], axis=-1))
