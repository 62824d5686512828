"""Sinkhorn distance between batches of predictions, and divergences of single ones, as what a student learns from."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax import Array

from experiments.papers import digits_noise
from experiments.tasks.distillation import objectives

VECTORISED = True
SEPARATION = 80.0  # of logits: at T = 2 no class has more than 5e-18 on both sides

prepare = digits_noise.prepare


def run(config: ml_collections.ConfigDict, key: Array, shared: dict[str, Any]) -> dict[str, Array]:
    """A student of `config.objective`, and the gradient that its divergences give where supports are disjoint."""
    norm = disjoint_gradient_norm(config.objective)
    return digits_noise.run(config, key, shared) | {"disjoint_gradient": norm}


def disjoint_gradient_norm(objective: str) -> Array:
    """Norm of the gradient of an objective without its cross-entropy, for four examples whose teacher is elsewhere."""
    terms = tuple(term for term in objectives.parse(objective) if term.name != "cross_entropy")
    teacher = SEPARATION * jnp.eye(8)[:4]
    student = SEPARATION * jnp.eye(8)[4:]
    labels = jnp.arange(4)
    return jnp.linalg.norm(jax.grad(lambda s: objectives.value(terms, s, teacher, labels))(student))
