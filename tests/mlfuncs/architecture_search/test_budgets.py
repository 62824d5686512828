"""Choosing candidates: sandwiches drawn evenly, fronts against every pair, the best within a budget, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlfuncs import architecture_search

KEY = jax.random.key(0)


def test_a_sandwich_has_both_ends_and_distinct_others():
    draw = jax.jit(jax.vmap(lambda key: architecture_search.sandwich(key, 6)))
    chosen = np.asarray(draw(jax.random.split(KEY, 2000)))
    assert chosen.dtype == np.int32
    np.testing.assert_array_equal(chosen[:, :2], [[5, 0]] * 2000)
    assert np.all((chosen[:, 2:] >= 1) & (chosen[:, 2:] <= 4))
    assert np.all(chosen[:, 2] != chosen[:, 3])
    # 12 ordered pairs, each expected 166.7 times; chi-squared of 11 degrees exceeds 31.3 once in 1000.
    pairs = np.bincount(chosen[:, 2] * 5 + chosen[:, 3], minlength=25)
    pairs = pairs[pairs > 0]
    assert pairs.size == 12
    assert np.sum((pairs - 2000 / 12) ** 2 / (2000 / 12)) < 31.3
    np.testing.assert_array_equal(architecture_search.sandwich(KEY, 2, num_random=0), [1, 0])
    assert sorted(architecture_search.sandwich(KEY, 4).tolist()) == [0, 1, 2, 3]


def front_of_all_pairs(costs, losses):
    no_worse = (costs[:, None] <= costs) & (losses[:, None] <= losses)
    better = (costs[:, None] < costs) | (losses[:, None] < losses)
    return ~np.any(no_worse & better, axis=0)


def test_the_front_is_that_of_all_pairs():
    random = np.random.default_rng(0)
    front = jax.jit(architecture_search.pareto_front)
    for _ in range(40):
        costs, losses = random.integers(0, 5, (2, 12)).astype(np.float32)  # with ties and duplicates
        np.testing.assert_array_equal(front(costs, losses), front_of_all_pairs(costs, losses))
    assert architecture_search.pareto_front([1.0], [np.inf]).tolist() == [True]
    assert architecture_search.pareto_front([1.0, 2.0], [np.inf, np.inf]).tolist() == [True, False]


def test_the_best_within_a_budget():
    costs, losses = jnp.array([4.0, 2.0, 3.0, 1.0, 2.0]), jnp.array([0.1, 0.3, 0.3, 0.9, 0.3])
    best = jax.jit(architecture_search.best_under_budget)
    for budget, expected in ((9, 0), (3.5, 1), (2, 1), (1, 3)):
        assert int(architecture_search.best_under_budget(costs, losses, budget=budget)) == expected
        assert int(best(costs, losses, budget=budget)) == expected
    assert int(best(costs, losses, budget=0.5)) == -1
    assert int(architecture_search.best_under_budget([1.0, 2.0], [np.inf, 0.0], budget=1.0)) == 0


MILLIONS = np.array([79_000_001, 79_000_002, 79_000_000, 16_777_217])  # float32 knows the third alone


@pytest.mark.parametrize("costs", [MILLIONS, MILLIONS.astype(np.int32), MILLIONS * 10**4, MILLIONS.astype(np.float64)])
def test_large_counts_are_compared_exactly(costs):
    losses = np.array([1.0, 1.0 - 1e-12, 2.0, 3.0])
    assert architecture_search.pareto_front(costs, losses).all()
    assert int(architecture_search.best_under_budget(costs, losses, budget=int(costs[0]))) == 0
    assert int(architecture_search.best_under_budget(costs, losses, budget=10**13)) == 1
    assert int(architecture_search.best_under_budget(costs, np.ones(4), budget=costs[0])) == 3


def test_large_counts_are_compared_exactly_where_they_are_traced():
    costs, losses = jnp.asarray(MILLIONS, jnp.int32), jnp.array([1.0, 0.9, 2.0, 3.0])
    assert jax.jit(architecture_search.pareto_front)(costs, losses).all()
    best = jax.jit(architecture_search.best_under_budget)
    assert int(best(costs, losses, budget=79_000_001)) == 0
    within = jax.jit(
        lambda costs, budget: architecture_search.best_under_budget(costs, losses, budget=budget), static_argnums=1
    )
    assert [int(within(costs, budget)) for budget in (79_000_000, 10**13, np.inf, 5)] == [2, 1, 1, -1]
    of_budget = jax.jit(lambda budget: architecture_search.best_under_budget(MILLIONS * 10**4, losses, budget=budget))
    assert int(of_budget(3e11)) == 3


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: architecture_search.sandwich(KEY, 3), "at least 4 for 2 more, got 3"),
        (lambda: architecture_search.sandwich(KEY, 3, num_random=-1), "num_random"),
        (lambda: architecture_search.pareto_front([1.0], [1.0, 2.0]), r"\(1,\) and \(2,\)"),
        (lambda: architecture_search.pareto_front([], []), "at least one candidate"),
        (lambda: architecture_search.pareto_front([1.0], [np.nan]), "losses must not hold NaN"),
        (lambda: architecture_search.best_under_budget([np.nan], [1.0], budget=1), "costs must not hold NaN"),
        (lambda: architecture_search.best_under_budget([3.0, 2.0], [1.0, 1.0], budget=1), "cheapest costs 2, got 1"),
        (lambda: architecture_search.best_under_budget([3.0], [1.0], budget=[4.0]), "budget"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
