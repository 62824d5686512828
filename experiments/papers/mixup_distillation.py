"""Mixup of the teacher and of the student, and logits that are divided by their own deviation."""

from typing import Any

import jax.numpy as jnp
import ml_collections
from jax import Array

from experiments.papers import digits_noise
from mlfuncs import distillation

VECTORISED = True
TEMPERATURE = 4.0

prepare = digits_noise.prepare


def run(config: ml_collections.ConfigDict, key: Array, shared: dict[str, Any]) -> dict[str, Array]:
    """A student of `config.objective`, and how smooth its teacher's answers are."""
    given = digits_noise.setting(config, key, shared)
    taught = given.teach(given.test.x)["logits"]
    return digits_noise.run(config, key, shared) | {
        "teacher_deviation": jnp.mean(jnp.std(taught, axis=-1, ddof=1)),
        "teacher_entropy": entropy(taught),
        "teacher_entropy_at_4": entropy(taught / TEMPERATURE),
        "teacher_entropy_scaled": entropy(distillation.divide_by_deviation(taught)),
    }


def entropy(logits: Array) -> Array:
    """Mean entropy of predictions, in nats."""
    return jnp.mean(distillation.soft_cross_entropy(logits, logits))
