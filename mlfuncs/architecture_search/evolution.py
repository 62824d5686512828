"""Searching for an architecture by mutation, under a budget."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import Array

from mlfuncs import _checks

MOST_DRAWS = 1000  # infeasible architectures in a row before a search gives up


class Candidate(NamedTuple):
    """An architecture and what it scored."""

    architecture: Any
    score: float


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _tournament(key: Array, population_size: int, sample_size: int, top_k: int) -> tuple[Array, Array, Array]:
    """A key for the mutation, members of a tournament and the place in it that the parent took."""
    mutation_key, members_key, place_key = jax.random.split(key, 3)
    members = jax.random.randint(members_key, (sample_size,), 0, population_size)
    return mutation_key, members, jax.random.randint(place_key, (), 0, top_k)


def _check_evolution(population_size: int, sample_size: int, top_k: int, num_evaluations: int) -> None:
    sizes = {"population_size": population_size, "sample_size": sample_size, "top_k": top_k}
    for name, value in (*sizes.items(), ("num_evaluations", num_evaluations)):
        _checks.count(name, value)
    if top_k > sample_size:
        raise ValueError(f"top_k must be at most sample_size, got {top_k} of {sample_size}")
    if num_evaluations < population_size:
        raise ValueError(
            f"num_evaluations must be at least population_size, got {num_evaluations} for a population of {population_size}"
        )


def aging_evolution(
    key: Array,
    sample_architecture: Callable[[Array], Any],
    mutate: Callable[[Array, Any], Any],
    score: Callable[[Any], Any],
    *,
    population_size: int = 36,
    sample_size: int = 8,
    top_k: int = 5,
    num_evaluations: int = 1000,
    feasible: Callable[[Any], Any] | None = None,
) -> tuple[Any, list[Candidate]]:
    """Regularised evolution: children of good parents join a population whose oldest member leaves.

    Each child mutates a parent drawn uniformly from the `top_k` best of a tournament, whose `sample_size` members are
    drawn with replacement. The paper's code picks among the worst of a tournament, and filters by budget at the start
    alone; this is the paper's text. A loop on the host: it is not traced.

    Args:
      key: a PRNG key. The search is a function of it, and evaluation n does not depend on `num_evaluations`.
      sample_architecture: key -> an architecture, any Python value.
      mutate: (key, architecture) -> another architecture.
      score: architecture -> a number, larger is better. NaN ranks below everything.
      population_size: >= 1. Default 36, as in the paper.
      sample_size: >= 1, of a tournament. Default 8.
      top_k: from 1 to `sample_size`. Default 5.
      num_evaluations: >= `population_size`, how often `score` is called. Default 1000.
      feasible: architecture -> whether it is within the budget; what is not is drawn again, parent included, and never
        scored. None: all are.

    Returns:
      (best, history): the architecture with the best score (of equal ones the earliest), and all `Candidate`s
      (architecture, score) in the order of their evaluation. A scalar score is stored as a float.

    Raises:
      ValueError: sizes below 1, `top_k` above `sample_size`, fewer evaluations than members, or 1000 infeasible draws in
        a row.

    References:
      Dong et al., arXiv:2303.15678; Real et al., Regularized Evolution for Image Classifier Architecture Search,
      arXiv:1802.01548.
    """
    _check_evolution(population_size, sample_size, top_k, num_evaluations)
    history: list[Candidate] = []

    def rank(candidate: Candidate) -> float:
        return -math.inf if math.isnan(candidate.score) else candidate.score

    def child(key: Array) -> Any:
        mutation_key, members, place = _tournament(key, population_size, sample_size, top_k)
        # The youngest are the population. Sorting is stable: of equal scores the first drawn is the better.
        tournament = sorted((history[member - population_size] for member in members.tolist()), key=rank, reverse=True)
        return mutate(mutation_key, tournament[int(place)].architecture)

    for number in range(num_evaluations):
        draw = sample_architecture if number < population_size else child
        architecture = _first_feasible(jax.random.fold_in(key, number), draw, feasible)
        history.append(Candidate(architecture, float(score(architecture))))
    return max(history, key=rank).architecture, history


def _first_feasible(key: Array, draw: Callable[[Array], Any], feasible: Callable[[Any], Any] | None) -> Any:
    for attempt in range(MOST_DRAWS):
        architecture = draw(jax.random.fold_in(key, attempt))
        if feasible is None or feasible(architecture):
            return architecture
    raise ValueError(f"feasible must accept some architecture, got {MOST_DRAWS} in a row that it does not")
