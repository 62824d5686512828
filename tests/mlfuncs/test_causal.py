"""Causal structure under dropouts: partial correlations, calibrated tests, PC and its orientations by hand, bad input."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from mlfuncs import causal

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
    """200 repeats of 20,000 cells. By the card the true shares are 10, 7.5 and 100 %, so the bars of 15 and 95 % are at
    2.4 sigma and beyond 5; the bar of 10 % for "all" is at 1.3 sigma, so keys are fixed."""
    conditioning, every, full = rejections("car", ["conditioning", "all"])
    assert conditioning <= 0.15
    assert every <= 0.10
    assert full >= 0.95


def test_calibration_on_a_chain_with_dropouts_that_depend_on_the_value():
    """Fisher's z sees linear relations only: deleting zeros of all involved variables repairs it (6 % by the card)."""
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
    assert len(tests) > causal.TESTS
    assert len({frozenset(given) for _, _, given in tests}) > causal.SETS
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


def separated(edges, i, j, given):
    """Whether the set d-separates i and j in the graph: no path in the moral graph of their ancestors avoids it."""
    ancestors, grown = {i, j, *given}, True
    while grown:
        before = len(ancestors)
        ancestors |= {a for a, b in edges if b in ancestors}
        grown = len(ancestors) > before
    links = {frozenset(e) for e in edges if set(e) <= ancestors}
    for k in ancestors:
        links |= {frozenset(p) for p in itertools.combinations([a for a, b in edges if b == k and a in ancestors], 2)}
    reached, grown = {i}, True
    while grown:
        before = len(reached)
        reached |= {b for link in links for a in link for b in link if a in reached and b not in given}
        grown = len(reached) > before
    return j not in reached


def oracle(edges, calls=None):
    def p_value(i, j, conditioning):
        if calls is not None:
            calls.append((np.asarray(i), np.asarray(j), np.asarray(conditioning)))
        return [
            float(separated(edges, a, b, set(np.flatnonzero(s)))) for a, b, s in zip(i, j, conditioning, strict=True)
        ]

    return p_value


def links(matrix):
    return sorted((int(i), int(j)) for i, j in zip(*np.nonzero(matrix), strict=True))


def discovered(edges, d):
    return causal.orient_skeleton(*causal.pc_skeleton(oracle(edges), d))


def test_chain_and_collider():
    skeleton, separating = causal.pc_skeleton(oracle([(0, 1), (1, 2)]), 3)
    assert links(skeleton) == [(0, 1), (1, 0), (1, 2), (2, 1)]
    assert separating == {(0, 2): (1,)}
    assert links(causal.orient_skeleton(skeleton, separating)) == links(skeleton)  # chain: no direction is implied
    skeleton, separating = causal.pc_skeleton(oracle([(0, 1), (2, 1)]), 3)
    assert separating == {(0, 2): ()}
    assert links(causal.orient_skeleton(skeleton, separating)) == [(0, 1), (2, 1)]


def test_first_rule_of_meek():
    # 0 -> 2 <- 1 and 2 -> 3: the last edge can't point back, or it would be another collider.
    assert links(discovered([(0, 2), (1, 2), (2, 3)], 4)) == [(0, 2), (1, 2), (2, 3)]


def test_second_rule_of_meek():
    # 0 -> 1 -> 2 and 0 - 2; the arrows come from colliders with 3 and 4.
    edges = [(0, 1), (3, 1), (1, 2), (4, 2), (0, 2), (3, 2)]
    assert links(discovered(edges, 5)) == sorted(edges)
    # The rule alone: arrows as given v-structures, the third edge by acyclicity.
    skeleton = np.zeros((4, 4), bool)
    for a, b in [(0, 1), (3, 1), (1, 2), (0, 2)]:
        skeleton[a, b] = skeleton[b, a] = True
    # 0 -> 1 <- 3 (collider); 3 -> 1 - 2 gives 1 -> 2 (rule 1); 0 -> 1 -> 2 and 0 - 2 give 0 -> 2 (rule 2).
    separating = {(0, 3): (), (2, 3): (1,)}
    assert links(causal.orient_skeleton(skeleton, separating)) == [(0, 1), (0, 2), (1, 2), (3, 1)]


def test_third_rule_of_meek():
    # 0 - 1 -> 3 <- 2 - 0, 1 and 2 apart, 0 - 3: the edge 0 - 3 must point to 3; 0 - 1 and 0 - 2 stay open.
    edges = [(0, 1), (0, 2), (0, 3), (1, 3), (2, 3)]
    assert links(discovered(edges, 4)) == sorted([(0, 1), (1, 0), (0, 2), (2, 0), (0, 3), (1, 3), (2, 3)])


def test_skeletons_of_random_graphs_are_exact_and_do_not_depend_on_order():
    rng = np.random.default_rng(0)
    for _ in range(10):
        d = 6
        order = rng.permutation(d)
        edges = [(int(order[a]), int(order[b])) for a, b in itertools.combinations(range(d), 2) if rng.random() < 0.4]
        skeleton, separating = causal.pc_skeleton(oracle(edges), d)
        assert set(links(skeleton)) == {e for a, b in edges for e in ((a, b), (b, a))}
        for (i, j), given in separating.items():
            assert i < j
            assert separated(edges, i, j, set(given))
        directed = causal.orient_skeleton(skeleton, separating)
        # Whatever is directed agrees with the truth.
        for i, j in links(directed):
            assert directed[j, i] or (i, j) in edges


def test_a_depth_is_one_call_and_limits_hold():
    calls = []
    causal.pc_skeleton(oracle([(0, 1), (1, 2), (2, 3), (0, 3)], calls), 4)
    assert [int(c.sum(1).min()) for _, _, c in calls] == [int(c.sum(1).max()) for _, _, c in calls] == [0, 1, 2]
    for i, j, conditioning in calls:
        rows = np.arange(len(i))
        assert not conditioning[rows, i].any()
        assert not conditioning[rows, j].any()
    skeleton, _ = causal.pc_skeleton(oracle([(0, 1), (1, 2)]), 3, max_conditioning=0)
    assert skeleton.sum() == 6  # the chain's ends need a set of one
    # The level: a p-value of 0.06 removes at 0.05, not at 0.1.
    weak = lambda i, j, conditioning: np.full(len(i), 0.06)  # noqa: E731
    assert causal.pc_skeleton(weak, 3)[0].sum() == 0
    assert causal.pc_skeleton(weak, 3, alpha=0.1)[0].sum() == 6


def test_pc_on_data():
    data = chain(KEY, 5000)
    test = jax.jit(jax.vmap(lambda i, j, s: causal.zero_deleted_independence_test(data, i, j, s)))
    skeleton, separating = causal.pc_skeleton(test, 3, alpha=1e-3)
    assert links(skeleton) == [(0, 1), (1, 0), (1, 2), (2, 1)]
    assert separating == {(0, 2): (1,)}


def test_rescaled_correlation():
    rho, n, full = 0.3, 103, 1003
    # The same statistic: sqrt(N - 3) atanh(rho') = sqrt(n - 3) atanh(rho).
    rescaled = causal.rescale_partial_correlation(rho, n, full)
    np.testing.assert_allclose(np.sqrt(1000) * np.arctanh(rescaled), 10 * np.arctanh(rho), rtol=1e-5)
    np.testing.assert_allclose(causal.rescale_partial_correlation(-0.3, n, full), rescaled)
    np.testing.assert_allclose(causal.rescale_partial_correlation(jnp.array([-0.3, 1.0]), 50, 50), [0.3, 1.0])
    np.testing.assert_array_equal(causal.rescale_partial_correlation(0.5, jnp.array([0, 3]), 100), [0, 0])
    assert 0 < causal.rescale_partial_correlation(1.0, n, full) < 1


def test_score_change():
    np.testing.assert_allclose(causal.bic_score_change(0.5, 100), -50 * np.log(0.75) - np.log(100) / 2, rtol=1e-5)
    # A larger penalty is a weaker one; without correlation an edge only costs.
    assert causal.bic_score_change(0.1, 100, penalty=1.0) < causal.bic_score_change(0.1, 100, penalty=2.0)
    np.testing.assert_allclose(causal.bic_score_change(0.0, 100, penalty=1.0), -np.log(100), rtol=1e-6)
    assert np.isfinite(causal.bic_score_change(1.0, 100))
    assert np.isfinite(jax.grad(causal.bic_score_change)(1.0, 100))


def test_dropout_mechanisms():
    z = jnp.array([[0.0, 2.0]])
    np.testing.assert_allclose(
        causal.logistic_dropout_probability(z, 1.5, -1.0), [[1 / (1 + np.exp(-1)), 1 / (1 + np.exp(2))]], rtol=1e-5
    )
    z = jnp.broadcast_to(jnp.array([3.0, -4.0]), (1 << 14, 2))
    data = np.asarray(causal.sample_dropout(KEY, z, jnp.array([0.2, 0.7])))
    assert set(np.unique(data)) == {-4.0, 0.0, 3.0}  # kept values are not scaled
    for gene, rate in enumerate((0.2, 0.7)):
        assert abs((data[:, gene] == 0).mean() - rate) <= 5 * np.sqrt(rate * (1 - rate) / len(data))


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
    for alpha in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="alpha"):
            causal.pc_skeleton(oracle([]), 3, alpha=alpha)
    with pytest.raises(ValueError, match="num_variables"):
        causal.pc_skeleton(oracle([]), 1)
    with pytest.raises(ValueError, match="max_conditioning"):
        causal.pc_skeleton(oracle([]), 3, max_conditioning=-1)
    with pytest.raises(ValueError, match="p_value"):
        causal.pc_skeleton(lambda i, j, s: 0.5, 3)
    for adjacency in (np.ones((2, 3)), np.array([[0, 1], [0, 0]])):
        with pytest.raises(ValueError, match="adjacency"):
            causal.orient_skeleton(adjacency, {})
    with pytest.raises(ValueError, match="penalty"):
        causal.bic_score_change(0.1, 10, penalty=0.0)
    for call in (
        lambda: causal.logistic_dropout_probability(jnp.ones(3), 1.0, 0.0),
        lambda: causal.sample_dropout(KEY, jnp.ones(3), 0.5),
    ):
        with pytest.raises(ValueError, match="expression"):
            call()
    with pytest.raises(ValueError, match="rate must be"):
        causal.sample_dropout(KEY, jnp.ones((3, 2)), 1.5)
