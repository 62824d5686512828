"""Evolution climbs, keeps its budget and its key's promise; bad input."""

import math

import jax
import numpy as np
import pytest

from mlfuncs import architecture_search

KEY = jax.random.key(0)


def ones(bits):
    return sum(bits)


def random_bits(key):
    return tuple(jax.random.bernoulli(key, 0.5, (12,)).astype(int).tolist())


def flip(key, bits):
    place = int(jax.random.randint(key, (), 0, 12))
    return tuple(1 - bit if index == place else bit for index, bit in enumerate(bits))


SMALL = {"population_size": 6, "sample_size": 4, "top_k": 2, "num_evaluations": 60}


def test_evolution_climbs_and_is_a_function_of_its_key():
    best, history = architecture_search.aging_evolution(KEY, random_bits, flip, ones, **SMALL)
    assert len(history) == 60
    assert ones(best) == max(score for _, score in history)
    assert all(score == ones(architecture) for architecture, score in history)
    start, end = (np.mean([score for _, score in part]) for part in (history[:6], history[-6:]))
    assert end >= start + 2  # of 12 bits; picking among the worst of each tournament descends instead
    again = architecture_search.aging_evolution(KEY, random_bits, flip, ones, **{**SMALL, "num_evaluations": 20})
    assert again[1] == history[:20]
    assert architecture_search.aging_evolution(jax.random.key(1), random_bits, flip, ones, **SMALL)[1] != history


def test_parents_are_young_and_among_the_best():
    """With one place in the tournament's top and every member in it, each child's parent is the best of the living."""
    born = iter(range(1000))
    settings = {"population_size": 5, "sample_size": 60, "top_k": 1, "num_evaluations": 30}
    score = lambda architecture: -architecture[0]  # noqa: E731 - the oldest are the best
    _, history = architecture_search.aging_evolution(
        KEY, lambda key: (next(born), None), lambda key, parent: (next(born), parent[0]), score, **settings
    )
    # 60 draws out of five miss one in 1 of 600,000 tournaments: the parent is the oldest member, five births ago.
    assert [architecture[1] for architecture, _ in history[5:]] == list(range(25))


def test_the_budget_holds_for_children_and_what_is_outside_is_never_scored():
    seen = []
    best, history = architecture_search.aging_evolution(
        KEY, random_bits, flip, lambda bits: seen.append(bits) or ones(bits), feasible=lambda b: ones(b) <= 7, **SMALL
    )
    assert len(seen) == 60
    assert max(map(ones, seen)) == ones(best) == 7
    assert [architecture for architecture, _ in history] == seen


def test_failed_candidates_never_win():
    score = lambda bits: float("nan") if bits[0] else ones(bits)  # noqa: E731
    best, history = architecture_search.aging_evolution(KEY, random_bits, flip, score, **SMALL)
    assert best[0] == 0
    assert any(math.isnan(score) for _, score in history)
    first = architecture_search.aging_evolution(KEY, random_bits, flip, lambda bits: 0.0, **SMALL)
    assert first[0] == first[1][0].architecture  # of equal scores the earliest


def test_infeasible_budgets():
    draws = []
    with pytest.raises(ValueError, match=r"feasible.*1000 in a row"):
        architecture_search.aging_evolution(KEY, lambda key: draws.append(key), flip, ones, feasible=lambda _: False)
    assert len(draws) == 1000


def evolve(**settings):
    return architecture_search.aging_evolution(KEY, random_bits, flip, ones, **{**SMALL, **settings})


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: evolve(top_k=5), "top_k.*5 of 4"),
        (lambda: evolve(sample_size=0), "sample_size"),
        (lambda: evolve(population_size=0), "population_size"),
        (lambda: evolve(num_evaluations=5), "num_evaluations.*5.*6"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
