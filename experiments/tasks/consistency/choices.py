"""The choices a consistency config can name, as tables of library functions under one signature each."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import ml_collections
from jax import Array

from experiments.engine.errors import UserError, unknown
from mlfuncs import consistency, diffusion, robust, transport

Choice = TypeVar("Choice")


def choose(config: ml_collections.ConfigDict, field: str, table: Mapping[str, Choice]) -> Choice:
    """The entry that `config.consistency.<field>` names."""
    name = config.consistency[field]
    if name not in table:
        raise unknown(f"config.consistency.{field}", name, table)
    return table[name]


class Pairs(NamedTuple):
    """One pair of noise levels for each example, and where in the curriculum it stands."""

    sigma_low: Array
    sigma_high: Array
    level: Array
    num_levels: Array


DISCRETIZATIONS = {
    "doubling_discretization": consistency.doubling_discretization,
    "progressive_discretization": consistency.progressive_discretization,
}

PROPOSALS: dict[str, Callable[[ml_collections.ConfigDict], Callable[[Array], Array]]] = {
    "lognormal_level_probabilities": lambda c: (
        lambda sigmas: consistency.lognormal_level_probabilities(sigmas, mean=c.proposal_mean, std=c.proposal_std)
    ),
    "uniform_level_probabilities": lambda c: consistency.uniform_level_probabilities,
}

WEIGHTS = {
    "inverse_gap_weight": consistency.inverse_gap_weight,
    "unit_weight": consistency.unit_weight,
}

# (number of values per example, current number of levels) -> c
ROBUST_SCALES: dict[str, Callable[[int, Array], Any]] = {
    "adaptive": lambda values, num_levels: consistency.adaptive_robust_scale(num_levels),
    "dimension": lambda values, num_levels: 0.00054 * math.sqrt(values),
    "zero": lambda values, num_levels: 0.0,
}

DISTANCES: dict[str, Callable[[Any], Callable[[Array, Array], Array]]] = {
    "cauchy": lambda c: lambda a, b: robust.cauchy(a, b, c=c),
    "geman_mcclure": lambda c: lambda a, b: robust.geman_mcclure(a, b, c=c),
    "mean_absolute": lambda c: robust.mean_absolute,
    "mean_squared": lambda c: robust.mean_squared,
    "pseudo_huber": lambda c: lambda a, b: robust.pseudo_huber(a, b, c=c),
}


# (key, data, noise) -> for each example the index of its noise; None leaves noise where it is
COUPLINGS: dict[str, Callable[[Array, Array, Array], Array] | None] = {
    "entropic_coupling": transport.entropic_coupling,
    "independent": None,
    "minibatch_coupling": lambda key, data, noise: transport.minibatch_coupling(data, noise),
}


def grid_pairs(config: ml_collections.ConfigDict) -> Callable[[Array, Array], Pairs]:
    """Neighbouring levels of a Karras grid whose size follows the curriculum, drawn from the proposal.

    The grid is padded to its final size, so that one compiled program serves the whole curriculum.
    """
    c = config.consistency
    discretization = choose(config, "discretization", DISCRETIZATIONS)
    proposal = choose(config, "proposal", PROPOSALS)(c)

    def number(step: Array) -> Array:
        return discretization(step, config.steps, initial_steps=c.initial_steps, final_steps=c.final_steps)

    number(jnp.int32(0))  # a curriculum that does not fit config.steps is refused here, before anything compiles

    def pairs(keys: Array, step: Array) -> Pairs:
        num_levels = number(step)
        grid = consistency.karras_levels(
            num_levels, sigma_min=c.sigma_min, sigma_max=c.sigma_max, size=c.final_steps + 1
        )
        probabilities = proposal(grid)
        level = jax.vmap(lambda key: consistency.sample_levels(key, probabilities, ()))(keys)
        return Pairs(grid[level], grid[level + 1], level, num_levels)

    return pairs


def shrinking_gap_pairs(config: ml_collections.ConfigDict) -> Callable[[Array, Array], Pairs]:
    """Lognormal upper levels, with a gap that shrinks over `config.consistency.stages` equal stages."""
    c = config.consistency
    if not 1 <= c.stages <= config.steps:
        raise UserError(f"config.consistency.stages must be in [1, config.steps], got {c.stages}")
    period = config.steps // c.stages

    def pairs(keys: Array, step: Array) -> Pairs:
        stage = step // period
        draw = lambda key: diffusion.sample_training_sigmas(key, (), mean=c.proposal_mean, std=c.proposal_std)  # noqa: E731
        sigma_high = jax.vmap(draw)(keys)
        sigma_low = consistency.shrinking_gap(sigma_high, stage)
        return Pairs(sigma_low, sigma_high, jnp.zeros_like(keys, dtype=jnp.int32), stage + 2)

    return pairs


PAIRS = {"grid": grid_pairs, "shrinking_gap": shrinking_gap_pairs}


class Terms(NamedTuple):
    """All that a loss of this family may use."""

    student: Callable[[Array, Array], Array]
    teacher: Callable[[Array, Array], Array] | None
    denoise: Callable[[Array, Array], Array] | None
    data: Array
    noise: Array
    pairs: Pairs
    c: Any
    distance: Callable[[Array, Array], Array]
    weight: Array


def _training(config: ml_collections.ConfigDict, t: Terms) -> Array:
    return consistency.consistency_training_loss(
        t.student,
        t.data,
        t.noise,
        t.pairs.sigma_low,
        t.pairs.sigma_high,
        teacher_fn=t.teacher,
        distance=t.distance,
        weight=t.weight,
    )


def _distillation(config: ml_collections.ConfigDict, t: Terms) -> Array:
    assert t.denoise is not None
    return consistency.consistency_distillation_loss(
        t.student,
        t.denoise,
        t.data,
        t.noise,
        t.pairs.sigma_low,
        t.pairs.sigma_high,
        teacher_fn=t.teacher,
        method=config.consistency.solver,
        distance=t.distance,
        weight=t.weight,
    )


def _robust(config: ml_collections.ConfigDict, t: Terms) -> Array:
    return consistency.robust_consistency_loss(
        t.student,
        t.data,
        t.noise,
        t.pairs.sigma_low,
        t.pairs.sigma_high,
        t.pairs.level,
        t.pairs.num_levels,
        c=t.c,
        teacher_fn=t.teacher,
        distance=t.distance,
        weight=t.weight,
        diffusion_fraction=config.consistency.diffusion_fraction,
        diffusion_weight=config.consistency.diffusion_weight,
    )


LOSSES: dict[str, Callable[[ml_collections.ConfigDict, Terms], Array]] = {
    "consistency_distillation_loss": _distillation,
    "consistency_training_loss": _training,
    "robust_consistency_loss": _robust,
}
