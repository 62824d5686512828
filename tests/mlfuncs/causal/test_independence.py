"""Independence under dropouts: partial correlations by hand and by regression, calibrated tests, bad input."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from mlfuncs import causal
from mlfuncs.causal import independence

KEY = jax.random.key(0)
NOTHING = jnp.zeros(3, bool)
THIRD = jnp.array([False, False, True])
partial_correlation = jax.jit(causal.zero_deleted_partial_correlation, static_argnames="delete")


def least_squares_partial(data, i, j, given):
    """Correlation of the residuals of i and j after regression on the given columns, in float64."""
    data = np.asarray(data, np.float64)
    design = np.column_stack([np.ones(len(data)), data[:, list(given)]])
    residual = [data[:, k] - design @ np.linalg.lstsq(design, data[:, k], rcond=None)[0] for k in (i, j)]
    return np.corrcoef(*residual)[0, 1]


def test_correlation_by_hand():
    data = jnp.array([[1.0, 2.0, 0.0], [2.0, 0.0, 5.0], [3.0, 4.0, 0.0], [0.0, 6.0, 1.0], [5.0, 1.0, 2.0]])
    found = causal.zero_deleted_partial_correlation(data, 0, 1, NOTHING)
    assert int(found["num_samples"]) == 5  # nothing given, nothing deleted
    np.testing.assert_allclose(found["correlation"], np.corrcoef(data[:, 0], data[:, 1])[0, 1], rtol=1e-5)
    assert int(causal.zero_deleted_partial_correlation(data, 0, 1, NOTHING, delete="all")["num_samples"]) == 3
    assert int(causal.zero_deleted_partial_correlation(data, 0, 1, THIRD)["num_samples"]) == 3  # 3 of 5 have a third
    assert int(causal.zero_deleted_partial_correlation(data, 0, 1, THIRD, delete="all")["num_samples"]) == 1


@pytest.mark.parametrize("delete", ["conditioning", "all"])
def test_rows_are_deleted_and_the_rest_regressed(delete):
    z = jax.random.normal(KEY, (300, 5)) @ jax.random.normal(jax.random.key(1), (5, 5)) + 20
    data = causal.sample_dropout(jax.random.key(2), z, 0.3)
    given = jnp.array([False, True, False, True, False])
    found = partial_correlation(data, 0, 4, given, delete=delete)
    looked_at = [1, 3] if delete == "conditioning" else [0, 1, 3, 4]
    rows = np.asarray(data)[(np.asarray(data)[:, looked_at] != 0).all(1)]
    assert int(found["num_samples"]) == len(rows)
    np.testing.assert_allclose(found["correlation"], least_squares_partial(rows, 0, 4, [1, 3]), rtol=1e-3, atol=1e-4)
    swapped = partial_correlation(data, 4, 0, given, delete=delete)
    np.testing.assert_allclose(swapped["correlation"], found["correlation"], rtol=1e-4)


def test_negative_values_are_not_dropouts():
    data = jax.random.normal(KEY, (50, 3))
    assert int(causal.zero_deleted_partial_correlation(data, 0, 1, THIRD)["num_samples"]) == 50


def test_tests_vmap_over_pairs_and_sets():
    data = causal.sample_dropout(KEY, jax.random.normal(jax.random.key(1), (100, 4)) + 5, 0.3)
    i, j = jnp.array([0, 1, 2]), jnp.array([1, 3, 0])
    given = jnp.array([[0, 0, 1, 0], [1, 0, 1, 0], [0, 0, 0, 0]], bool)
    together = jax.jit(jax.vmap(causal.zero_deleted_independence_test, in_axes=(None, 0, 0, 0)))(data, i, j, given)
    for row in range(3):
        alone = jax.jit(causal.zero_deleted_independence_test)(data, i[row], j[row], given[row])
        np.testing.assert_allclose(together[row], alone, rtol=1e-3)


def test_edges_of_the_correlation():
    x, noise = np.asarray(jax.random.normal(KEY, (2, 40, 1)))
    corr = lambda data, given=NOTHING: partial_correlation(np.concatenate(data, axis=1), 0, 1, given)  # noqa: E731
    for sign in (1, -1):  # copies
        np.testing.assert_allclose(corr([x, sign * x, noise])["correlation"], sign, rtol=1e-5)
    for offset in (0.0, 1e4):  # constants: nothing to correlate, and nothing to explain
        assert corr([x, np.full((40, 1), offset, np.float32), noise])["correlation"] == 0
    given = jnp.array([False, False, True, True])
    np.testing.assert_allclose(
        corr([x, x + noise, np.full((40, 1), 3.0, np.float32), noise], given)["correlation"],
        corr([x, x + noise, noise], THIRD)["correlation"], rtol=1e-3,
    )  # fmt: skip
    # The given variable determines the first: nothing is left of it. Given twice, it counts as once.
    assert corr([2 * x, x + noise, x], THIRD)["correlation"] == 0
    y = x + noise**2
    np.testing.assert_allclose(
        corr([x, y, noise, noise], given)["correlation"], corr([x, y, noise], THIRD)["correlation"], rtol=1e-3
    )
    # All rows deleted.
    found = corr([x, x, np.zeros((40, 1), np.float32)], THIRD)
    assert (float(found["correlation"]), int(found["num_samples"])) == (0.0, 0)
    # Too few rows to test: n <= |S| + 3.
    four = np.concatenate([x, y, noise], axis=1)[:4]
    assert partial_correlation(four, 0, 1, THIRD)["correlation"] == 0
    assert causal.zero_deleted_independence_test(four, 0, 1, THIRD) == 1
    slope = jax.jit(jax.grad(lambda data: partial_correlation(data, 0, 1, THIRD)["correlation"]))
    assert np.all(np.isfinite(slope(jnp.zeros((5, 3)))))


def test_far_means_lose_no_digits():
    data = jax.random.normal(KEY, (500, 3))
    here, far = (partial_correlation(data + m, 0, 1, THIRD)["correlation"] for m in (0.0, 1000.0))
    np.testing.assert_allclose(far, here, atol=1e-3)


def test_p_value_against_scipy():
    rho, n, size = np.array([0.0, 0.05, -0.3, 0.6]), np.array([50, 400, 30, 60]), np.array([0, 2, 1, 3])
    statistic = np.sqrt(n - size - 3) * np.abs(np.arctanh(rho))
    np.testing.assert_allclose(causal.fisher_z_p_value(rho, n, size), 2 * scipy.stats.norm.sf(statistic), rtol=1e-3)
    # Beyond 5.5 sigma, where 1 - Phi is 0 in float32.
    far = causal.fisher_z_p_value(np.tanh(8 / np.sqrt(97)), 100, 0)
    np.testing.assert_allclose(far, 2 * scipy.stats.norm.sf(8), rtol=1e-2)
    np.testing.assert_array_equal(causal.fisher_z_p_value(0.9, np.array([0, 3, 4, 5]), 2)[:3], [1, 1, 1])
    for rho in (1.0, -1.0):
        assert 0 <= float(causal.fisher_z_p_value(rho, 100, 0)) < 1e-30
    assert np.isnan(causal.fisher_z_p_value(jnp.nan, 100, 0))
    for rho in (0.0, 1.0):
        assert np.isfinite(jax.grad(causal.fisher_z_p_value)(rho, 100.0, 0.0))


def chain(key, count):
    """a -> b -> c with coefficients 0.8 and noise 0.6; b is shifted by 0.5."""
    a, b, c = jax.random.normal(key, (3, count))
    b = 0.8 * a + 0.6 * b
    return jnp.stack([a, b + 0.5, 0.8 * b + 0.6 * c], axis=1)


def rejections(mechanism, tests, repeats=200, count=20_000):
    """Shares of `repeats` data sets in which each test of a and c given b says dependent, at the 5 % level."""
    given = jnp.array([False, True, False])

    def one(key):
        z = chain(jax.random.fold_in(key, 0), count)
        probability = 0.5 if mechanism == "car" else causal.logistic_dropout_probability(z, 2.0, 0.0)
        data = causal.sample_dropout(jax.random.fold_in(key, 1), z, probability)
        p = [causal.zero_deleted_independence_test(data, 0, 2, given, delete=delete) for delete in tests]
        whole = jnp.where(data == 0, 1e-30, data)  # zeros that are no longer exact: nothing is deleted
        return jnp.stack([*p, causal.zero_deleted_independence_test(whole, 0, 2, given)])

    p = jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=10))(jax.random.split(KEY, repeats))
    return np.asarray((p < 0.05).mean(0))


def test_calibration_on_a_chain_with_random_dropouts():
    """200 repeats of 20,000 cells. The true shares are 10, 7.5 and 100 %, so the bars of 15 and 95 % are at
    2.4 sigma and beyond 5; the bar of 10 % for "all" is at 1.3 sigma, so keys are fixed."""
    conditioning, every, full = rejections("car", ["conditioning", "all"])
    assert conditioning <= 0.15
    assert every <= 0.10
    assert full >= 0.95


def test_calibration_on_a_chain_with_dropouts_that_depend_on_the_value():
    """Fisher's z sees linear relations only: deleting zeros of all involved variables repairs it (to 6 %)."""
    every, full = rejections("logistic", ["all"])
    assert every <= 0.10
    assert full >= 0.95


def test_rejections_find_dependence():
    """The test has power: a and b, neighbours in the chain, given c."""
    data = causal.sample_dropout(KEY, chain(jax.random.key(1), 20_000), 0.5)
    assert causal.zero_deleted_independence_test(data, 0, 1, jnp.array([False, False, True])) < 1e-6


@pytest.mark.parametrize("delete", ["conditioning", "all"])
def test_many_tests_are_the_same_as_one_by_one(delete):
    """More sets and tests than are handled at a time, in mixed sizes, each as alone."""
    d = 7
    z = jax.random.normal(KEY, (200, d)) @ jax.random.normal(jax.random.key(1), (d, d)) + 3
    data = causal.sample_dropout(jax.random.key(2), z, 0.3)
    tests = [
        (i, j, set(given))
        for i, j in itertools.permutations(range(d), 2)
        for size in range(3)
        for given in itertools.combinations([k for k in range(d) if k not in (i, j)], size)
    ]
    assert len(tests) > independence.TESTS
    assert len({frozenset(given) for _, _, given in tests}) > independence.SETS
    i, j = (np.array([test[k] for test in tests]) for k in range(2))
    given = np.array([[k in test[2] for k in range(d)] for test in tests])
    p = causal.zero_deleted_p_values(data, i, j, given, delete=delete)
    alone = jax.jit(jax.vmap(lambda i, j, s: causal.zero_deleted_independence_test(data, i, j, s, delete=delete)))
    np.testing.assert_allclose(p, alone(i, j, given), rtol=1e-3, atol=1e-6)
    assert causal.zero_deleted_p_values(data, [], [], np.zeros((0, d))).shape == (0,)


def test_many_tests_are_checked():
    data = np.ones((5, 3), np.float32)
    for arguments, match in (
        (([0], [0], np.zeros((1, 3))), "different"),
        (([0], [3], np.zeros((1, 3))), "different"),
        (([-1], [0], np.zeros((1, 3))), "different"),
        (([0], [1], np.ones((1, 3))), "conditioning must not contain"),
        (([0, 1], [1], np.zeros((1, 3))), "shapes"),
        (([0], [1], np.zeros((1, 2))), "shapes"),
    ):
        with pytest.raises(ValueError, match=match):
            causal.zero_deleted_p_values(data, *arguments)
    with pytest.raises(ValueError, match="delete"):
        causal.zero_deleted_p_values(data, [0], [1], np.zeros((1, 3)), delete="some")
    with pytest.raises(ValueError, match="NaN"):
        causal.zero_deleted_p_values(np.where(data > 0, np.nan, 0), [0], [1], np.zeros((1, 3)))


def test_bad_input():
    data = jnp.ones((5, 3)).at[0].set(2.0)
    for call in (causal.zero_deleted_partial_correlation, causal.zero_deleted_independence_test):
        for i, j, given, match in (
            (0, 0, NOTHING, "different"),
            (0, 3, NOTHING, "different"),
            (-1, 1, NOTHING, "different"),
            (0, 2, THIRD, "conditioning must not contain"),
            (2, 0, THIRD, "conditioning must not contain"),
            (0, 1, jnp.zeros(4, bool), "conditioning must have shape"),
            (jnp.array([0]), 1, NOTHING, "single indices"),
        ):
            with pytest.raises(ValueError, match=match):
                call(data, i, j, given)
        with pytest.raises(ValueError, match="delete"):
            call(data, 0, 1, NOTHING, delete="some")
        with pytest.raises(ValueError, match="data"):
            call(jnp.ones(3), 0, 1, NOTHING)
        with pytest.raises(ValueError, match="NaN"):
            call(data.at[1, 1].set(jnp.nan), 0, 1, NOTHING)
