"""Removing layers: changes by hand and over devices, exact knapsacks against every set, additivity, bad input."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from mlfuncs import architecture_search

RANDOM = np.random.default_rng(0)
REMOVAL = architecture_search.knapsack_removal


def test_changes_by_hand():
    full = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    pruned = jnp.stack([full, full + 2, full.at[1, 1].set(0.0)])
    np.testing.assert_allclose(architecture_search.output_change(full, pruned), [0, 4, 4])
    half = architecture_search.output_change(full.astype(jnp.float16) * 300, pruned.astype(jnp.float16) * 300)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, [0, 360000, 360000])  # squares that overflow in half precision


def test_changes_of_a_split_batch_are_those_of_the_whole():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    full, pruned = (RANDOM.normal(size=shape).astype(np.float32) for shape in ((8, 3, 2), (5, 8, 3, 2)))
    change = partial(architecture_search.output_change, axis_name="data")
    split = jax.jit(jax.shard_map(change, mesh=mesh, in_specs=(P("data"), P(None, "data")), out_specs=P()))
    np.testing.assert_allclose(split(full, pruned), architecture_search.output_change(full, pruned), rtol=1e-5)


def best_of_all_sets(costs, sizes, target):
    sets = (np.array(mask) for mask in itertools.product([False, True], repeat=len(costs)))
    enough = [mask for mask in sets if sizes[mask].sum() >= target]
    return min(enough, key=lambda mask: (costs[mask].sum(), sizes[mask].sum(), tuple(mask)))


def test_removal_is_the_best_of_all_sets_ties_included():
    for _ in range(60):
        costs, sizes = RANDOM.integers(0, 4, 7).astype(float), RANDOM.integers(0, 6, 7).astype(float)
        target = RANDOM.integers(-1, int(sizes.sum()) + 1)
        np.testing.assert_array_equal(
            REMOVAL(costs, sizes, target_size=target),
            best_of_all_sets(costs, sizes, target),
            f"{costs} {sizes} {target}",
        )
    costs, sizes = RANDOM.random(9), RANDOM.random(9)
    for share in (0.1, 0.3, 0.5, 0.9):
        target = share * sizes.sum()
        np.testing.assert_array_equal(REMOVAL(costs, sizes, target_size=target), best_of_all_sets(costs, sizes, target))


def test_removal_at_the_edges():
    # Cheapest for its size alone is 0 (1 for 4); both others together cost less than it with either.
    np.testing.assert_array_equal(REMOVAL([1.0, 3.0, 2.5], [4.0, 5.0, 5.0], target_size=6), [True, False, True])
    for target in (0, -1.0):
        np.testing.assert_array_equal(REMOVAL([0.0, 1.0], [1.0, 1.0], target_size=target), [False, False])
    np.testing.assert_array_equal(REMOVAL([1.0, 2.0], [1.0, 2.0], target_size=3.0), [True, True])
    # 0.55 * 100 is a rounding above 55, which the first two save.
    np.testing.assert_array_equal(REMOVAL([1, 1, 9], [25, 30, 45], target_size=0.55 * 100), [True, True, False])
    answer = REMOVAL(jnp.ones(3), jnp.arange(3), target_size=1)
    assert isinstance(answer, np.ndarray)
    np.testing.assert_array_equal(answer, [False, True, False])


def test_removal_of_as_many_layers_as_real_networks_have():
    costs, sizes = RANDOM.random(100), RANDOM.choice([9 * 320**2, 9 * 640**2, 9 * 1280**2], 100).astype(float)
    target = 0.5 * sizes.sum()
    chosen = REMOVAL(costs, sizes, target_size=target)
    assert sizes[chosen].sum() >= target
    # No better than the fractional problem, which splits one layer, and no worse than rounding that one up.
    order = np.argsort(costs / sizes)
    last = np.searchsorted(np.cumsum(sizes[order]), target)
    part = (target - sizes[order][:last].sum()) / sizes[order][last]
    least = costs[order][:last].sum() + part * costs[order][last]
    assert least - 1e-9 <= costs[chosen].sum() <= costs[order][: last + 1].sum() + 1e-9


def test_thousands_of_ties_still_give_a_cheapest_set():
    sizes = RANDOM.integers(1, 10**6, 40).astype(float)
    target = 0.5 * sizes.sum()
    chosen = REMOVAL(np.ones(40), sizes, target_size=target)
    fewest = np.searchsorted(np.cumsum(np.sort(sizes)[::-1]), target) + 1
    assert chosen.sum() == fewest
    assert sizes[chosen].sum() >= target


def test_additivity():
    individual = jnp.array([1.0, 2.0, 4.0])
    masks = jnp.array([[1, 0, 0], [1, 1, 0], [0, 1, 1], [1, 1, 1]], bool)
    sums = jnp.array([1.0, 3.0, 6.0, 7.0])
    for joint, expected in ((sums, 1), (1e-15 * sums, 1), (2 - sums, -1)):
        np.testing.assert_allclose(architecture_search.additivity(individual, joint, masks), expected, rtol=1e-5)
    joint = jnp.array([3.0, 1.0, 2.0, 7.0])
    np.testing.assert_allclose(
        architecture_search.additivity(individual, joint, masks), np.corrcoef(sums, joint)[0, 1], rtol=1e-5
    )
    value, gradient = jax.value_and_grad(architecture_search.additivity, argnums=1)(individual, jnp.full(4, 0.1), masks)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: REMOVAL([1.0], [1.0], target_size=1.1), "target_size must be at most the sum of sizes, 1, got 1.1"),
        (lambda: REMOVAL([1.0], [1.0], target_size=float("nan")), "target_size"),
        (lambda: REMOVAL([1.0], [1.0], target_size=-float("inf")), "target_size"),
        (lambda: REMOVAL([-1.0], [1.0], target_size=1), "costs"),
        (lambda: REMOVAL([float("nan")], [1.0], target_size=1), "costs"),
        (lambda: REMOVAL([1.0], [-1.0], target_size=0), "sizes"),
        (lambda: REMOVAL([], [], target_size=0), "costs must hold at least one"),
        (lambda: REMOVAL([1.0, 2.0], [1.0], target_size=1), r"\(2,\) and \(1,\)"),
        (lambda: architecture_search.output_change(jnp.ones((2, 3)), jnp.ones((4, 3))), "pruned_outputs"),
        (lambda: architecture_search.output_change(jnp.ones((0, 3)), jnp.ones((4, 0, 3))), "full_output"),
        (lambda: architecture_search.additivity(jnp.ones(2), jnp.ones(3), jnp.ones((2, 3), bool)), "masks"),
        (lambda: architecture_search.additivity(jnp.ones(2), jnp.ones(3), jnp.ones((3, 2))), "bool"),
        (lambda: architecture_search.additivity(jnp.ones(2), jnp.ones(1), jnp.ones((1, 2), bool)), "at least 2 sets"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
