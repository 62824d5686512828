"""Choosing examples: scores by hand, counts and ties, greedy covers against a plain loop, split pools, bad input."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from jax.sharding import PartitionSpec as P

from mlfuncs import distillation, selection

KEY = jax.random.key(0)
MESH = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
POOL, KNOWN = jax.random.normal(KEY, (24, 3)), jax.random.normal(jax.random.key(1), (4, 3))


def greedy(candidates, selected, count, metric="euclidean"):
    """The definition, in float64, with the whole distance matrix."""
    points, known = np.asarray(candidates, np.float64), [np.asarray(x, np.float64) for x in selected]

    def distance(a, b):
        if metric == "euclidean":
            return np.linalg.norm(a - b)
        return 1 - a @ b / max(np.linalg.norm(a), 1e-12) / max(np.linalg.norm(b), 1e-12)

    picks = []
    for _ in range(count):
        nearest = [min(distance(p, v) for v in known) if i not in picks else -np.inf for i, p in enumerate(points)]
        picks.append(int(np.argmax(nearest)))
        known.append(points[picks[-1]])
    return picks


def test_error_norm_by_hand():
    logits, labels = jnp.log(jnp.array([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1]])), jnp.array([0, 2])
    norms = {1: [1.0, 1.8], 2: [np.sqrt(0.38), np.sqrt(1.46)], math.inf: [0.5, 0.9]}
    for order, expected in norms.items():
        np.testing.assert_allclose(selection.error_norm(logits, labels, order=order), expected, rtol=1e-5)
    exact = jax.jit(jax.value_and_grad(lambda z: selection.error_norm(z, 0)))(jnp.array([1e4, 0.0, 0.0]))
    assert exact[0] == 0
    np.testing.assert_array_equal(exact[1], np.zeros(3))
    ensemble = jax.random.normal(KEY, (5, 4, 3))  # networks on a leading axis
    assert selection.error_norm(ensemble, jnp.zeros((5, 4), int)).shape == (5, 4)


def test_forgetting_by_hand():
    correct = jnp.array([[1, 0, 1, 0], [0, 0, 1, 1], [1, 0, 1, 0], [0, 0, 1, 1]], bool)
    np.testing.assert_array_equal(selection.forgetting_count(correct), [2, 4, 0, 1])
    np.testing.assert_array_equal(selection.forgetting_count(correct[:1]), [0, 1, 0, 1])


@pytest.mark.parametrize(("size", "fraction"), [(10, 0.3), (100, 0.07), (10, 0.01), (7, 0.5), (5, 1.0), (1, 0.2)])
def test_counts_survive_rounding(size, fraction):
    expected = max(1, math.ceil(round(size * fraction, 6)))
    scores = jax.random.normal(KEY, (size,))
    kept = selection.keep_highest(scores, fraction=fraction)
    np.testing.assert_array_equal(kept, np.argsort(-np.asarray(scores), kind="stable")[:expected])
    chosen = selection.keep_random(KEY, size, fraction=fraction)
    assert len(set(chosen.tolist())) == expected == chosen.shape[0]
    assert (kept.dtype, chosen.dtype) == (jnp.int32, jnp.int32)


def test_ties_go_to_the_lower_index():
    scores = jnp.array([1.0, 2.0, 2.0, 0.0, 2.0])
    np.testing.assert_array_equal(selection.keep_highest(scores, fraction=0.6), [1, 2, 4])
    np.testing.assert_array_equal(selection.keep_highest(scores, fraction=0.4), [1, 2])
    kept = selection.keep_balanced(scores, jnp.array([0, 0, 0, 9, 9]), fraction=0.4)  # two of three, one of two
    np.testing.assert_array_equal(kept, [1, 2, 4])


def test_random_choice_is_uniform():
    draws = 2000
    keys = jax.random.split(KEY, draws)
    chosen = jax.jit(jax.vmap(lambda key: selection.keep_random(key, 8, fraction=0.25)))(keys)
    counts = np.bincount(np.asarray(chosen).ravel(), minlength=8)
    # Each within 5 deviations of Binomial(2000, 1/4): wrong alarms in fewer than 1 of 10^5 runs.
    assert np.all(np.abs(counts - 500) < 5 * np.sqrt(draws * 0.25 * 0.75))


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_farthest_first_is_greedy(metric):
    run = jax.jit(partial(selection.farthest_first, count=10, metric=metric))
    np.testing.assert_array_equal(run(POOL, KNOWN), greedy(POOL, KNOWN, 10, metric))
    everything = selection.farthest_first(POOL[:6], KNOWN, count=6, metric=metric)
    assert sorted(everything.tolist()) == list(range(6))  # a permutation


def test_farthest_first_from_nothing():
    points = jnp.array([[0.0, 1.0], [0.0, 1.1], [0.1, 1.0], [5.0, 0.0]])
    first = selection.farthest_first(points, points[:0], count=2)
    assert first.tolist() == [3, 1]  # farthest from the mean, then from that
    assert int(selection.farthest_first(points, points[:0], count=1, metric="cosine")[0]) == 3


def test_farthest_first_edges():
    same = jnp.zeros((4, 2))
    np.testing.assert_array_equal(selection.farthest_first(same, same[:1], count=4), [0, 1, 2, 3])
    # A zero vector lies at distance 1 from everything, also from another one.
    points = jnp.array([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    np.testing.assert_array_equal(selection.farthest_first(points, points[:1], count=3, metric="cosine"), [1, 2, 0])
    # Near duplicates far from the origin: differences keep their digits.
    near = 4096 + jnp.array([[0.0], [0.25], [0.75]])
    np.testing.assert_array_equal(selection.farthest_first(near, near[:1], count=2), [2, 1])


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("known", [0, 4])
def test_farthest_first_of_a_split_pool(metric, known):
    run = partial(selection.farthest_first, count=9, metric=metric)
    split = jax.jit(jax.shard_map(partial(run, axis_name="data"), mesh=MESH, in_specs=(P("data"), P()), out_specs=P()))
    np.testing.assert_array_equal(split(POOL, KNOWN[:known]), run(POOL, KNOWN[:known]))


def test_highest_entropy():
    p = scipy.special.softmax(3 * np.asarray(POOL, np.float64), -1)
    entropy = -(p * np.log(p)).sum(1)
    np.testing.assert_array_equal(selection.highest_entropy(p, count=7), np.argsort(-entropy, kind="stable")[:7])
    sure = jnp.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0], [0.5, 0.5]])
    np.testing.assert_array_equal(selection.highest_entropy(sure, count=4), [1, 3, 0, 2])
    split = jax.shard_map(
        partial(selection.highest_entropy, count=7, axis_name="data"), mesh=MESH, in_specs=P("data"), out_specs=P()
    )
    np.testing.assert_array_equal(jax.jit(split)(jnp.asarray(p, jnp.float32)), selection.highest_entropy(p, count=7))


def test_probability_coreset_covers_predictions():
    pool, labelled = jax.random.normal(KEY, (2, 24, 4)), jax.random.normal(jax.random.key(1), (2, 3, 4))
    run = jax.jit(partial(selection.probability_coreset, count=8, mix=0.3, temperature=2.0))
    picks = run(*pool, *labelled)
    mixed = [distillation.dual_head_probabilities(*x, mix=0.3, temperature=2.0) for x in (pool, labelled)]
    np.testing.assert_array_equal(picks, greedy(*mixed, 8))

    def radius(chosen):
        centres = jnp.concatenate([mixed[1], mixed[0][chosen]])
        return float(jnp.max(jnp.min(jnp.linalg.norm(mixed[0][:, None] - centres[None], axis=-1), axis=1)))

    assert radius(picks) < min(radius(selection.keep_random(jax.random.key(k), 24, fraction=1 / 3)) for k in range(5))


LOGITS, LABELS, CORRECT = jnp.ones((4, 3)), jnp.zeros(4, jnp.int32), jnp.ones((2, 4), bool)
NAN = POOL.at[0, 0].set(jnp.nan)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: selection.error_norm(LOGITS, LABELS, order=3), "order"),
        (lambda: selection.error_norm(LOGITS, LABELS + 3), "labels"),
        (lambda: selection.forgetting_count(CORRECT.astype(int)), "correct"),
        (lambda: selection.forgetting_count(CORRECT[0]), "correct"),
        (lambda: selection.forgetting_count(CORRECT[:0]), "correct"),
        (lambda: selection.keep_highest(jnp.ones(3), fraction=0.0), "fraction"),
        (lambda: selection.keep_highest(jnp.ones(3), fraction=1.1), "fraction"),
        (lambda: selection.keep_highest(jnp.ones(0), fraction=0.5), "scores"),
        (lambda: selection.keep_highest(jnp.array([1.0, jnp.nan]), fraction=0.5), "scores"),
        (lambda: selection.keep_random(KEY, 0, fraction=0.5), "size"),
        (lambda: selection.keep_random(KEY, 3, fraction=2.0), "fraction"),
        (lambda: selection.keep_balanced(jnp.ones(4), LABELS[:3], fraction=0.5), "labels"),
        (lambda: selection.keep_balanced(jnp.ones(4), LABELS * 1.0, fraction=0.5), "labels"),
        (lambda: selection.farthest_first(POOL, KNOWN, count=0), "count"),
        (lambda: selection.farthest_first(POOL, KNOWN, count=25), "count"),
        (lambda: selection.farthest_first(POOL, KNOWN[:, :2], count=2), "selected"),
        (lambda: selection.farthest_first(POOL, KNOWN, count=2, metric="manhattan"), "metric"),
        (lambda: selection.farthest_first(NAN, KNOWN, count=2), "candidates"),
        (lambda: selection.highest_entropy(POOL**2, count=25), "count"),
        (lambda: selection.highest_entropy(POOL, count=2), "probabilities"),
        (lambda: selection.highest_entropy(NAN, count=2), "probabilities"),
        (lambda: selection.probability_coreset(POOL, POOL[:2], KNOWN, KNOWN, count=2), "distilled_logits"),
        (lambda: selection.probability_coreset(POOL, POOL, KNOWN, KNOWN, count=2, mix=2), "mix"),
        (lambda: selection.probability_coreset(POOL, POOL, KNOWN, KNOWN, count=2, temperature=0), "temperature"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
