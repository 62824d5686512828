"""Measurements: closed forms, agreement with SciPy, degenerate sets, gradients, sharding, bad input."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import PartitionSpec as P

from mlfuncs import metrics

KEY = jax.random.key(0)
MESH = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


def sharded(function, *arrays):
    """`function` inside shard_map, its arrays split over eight devices."""
    specs = tuple(P("data") for _ in arrays)
    return jax.jit(jax.shard_map(function, mesh=MESH, in_specs=specs, out_specs=P()))(*arrays)


def textbook_frechet(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    first, second = np.atleast_2d(np.cov(a, rowvar=False)), np.atleast_2d(np.cov(b, rowvar=False))
    # tr (S T)^(1/2) = tr (S^(1/2) T S^(1/2))^(1/2), which is symmetric: its eigenvalues are real.
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ second @ root), 0)).sum()
    return np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(first) + np.trace(second) - 2 * cross


@pytest.mark.parametrize("sizes", [(200, 300), (50, 1000)])
def test_frechet_agrees_with_the_matrix_square_root(sizes):
    mix = jax.random.normal(jax.random.key(7), (6, 6))
    a = jax.random.normal(KEY, (sizes[0], 6)) @ mix + 1
    b = 2 * jax.random.normal(jax.random.key(1), (sizes[1], 6))
    np.testing.assert_allclose(metrics.frechet_distance(a, b), textbook_frechet(a, b), rtol=1e-4)


def test_frechet_by_hand():
    # 1-D: (difference of means)^2 + (difference of standard deviations)^2; std of {-1, 1} is sqrt 2, of {1, 5} sqrt 8.
    a, b = jnp.array([[-1.0], [1.0]]), jnp.array([[1.0], [5.0]])
    np.testing.assert_allclose(metrics.frechet_distance(a, b), 9 + (np.sqrt(8) - np.sqrt(2)) ** 2, rtol=1e-5)


def test_frechet_of_equal_and_of_moved_sets():
    a = jax.random.normal(KEY, (64, 10))
    assert 0 <= metrics.frechet_distance(a, a) < 1e-4
    np.testing.assert_allclose(metrics.frechet_distance(a, a + 3), 90, rtol=1e-4)
    np.testing.assert_allclose(metrics.frechet_distance(a, 2 * a), metrics.frechet_distance(2 * a, a), rtol=1e-4)
    assert 0 <= metrics.frechet_distance(a, a[::-1]) < 1e-4


@pytest.mark.parametrize("examples", [2, 5, 40])
def test_frechet_of_rank_deficient_covariances(examples):
    # Fewer examples than features, a constant feature, and a doubled one: no complex or missing values.
    a = jax.random.normal(KEY, (examples, 30)).at[:, 0].set(2.0)
    a = a.at[:, 1].set(a[:, 2])
    b = jax.random.normal(jax.random.key(1), (examples + 3, 30)).at[:, 0].set(2.0)
    distance = metrics.frechet_distance(a, b)
    np.testing.assert_allclose(distance, textbook_frechet(a, b), rtol=2e-3)
    gradient = jax.grad(metrics.frechet_distance)(a, b)
    assert np.all(np.isfinite(gradient))
    assert np.all(np.isfinite(jax.grad(metrics.frechet_distance)(a, a)))


def test_frechet_gradient_against_finite_differences():
    with jax.enable_x64(True):
        a = jax.random.normal(KEY, (12, 3), jnp.float64)
        b = jax.random.normal(jax.random.key(1), (9, 3), jnp.float64) * 2 + 1
        direction = jax.random.normal(jax.random.key(2), a.shape, jnp.float64)
        forward = metrics.frechet_distance(a + 1e-6 * direction, b)
        backward = metrics.frechet_distance(a - 1e-6 * direction, b)
        analytic = jnp.sum(jax.grad(metrics.frechet_distance)(a, b) * direction)
        np.testing.assert_allclose(analytic, (forward - backward) / 2e-6, rtol=1e-6)


def test_frechet_of_missing_values_is_missing():
    a = jnp.ones((4, 2)).at[0, 0].set(jnp.nan)
    assert np.isnan(metrics.frechet_distance(a, jnp.ones((4, 2))))


def brute_force_coverage(queries, points, k):
    among = np.sort(np.linalg.norm(points[:, None] - points[None], axis=2), axis=1)[:, k]
    return np.mean(np.any(np.linalg.norm(queries[:, None] - points[None], axis=2) <= among[None] + 1e-6, axis=1))


@pytest.mark.parametrize("k", [1, 3])
def test_precision_recall_agrees_with_brute_force(k):
    real = np.asarray(jax.random.normal(KEY, (150, 4)))
    generated = np.asarray(0.6 * jax.random.normal(jax.random.key(1), (90, 4)) + 0.5)
    measured = metrics.nearest_neighbor_precision_recall(real, generated, num_neighbors=k)
    np.testing.assert_allclose(measured["precision"], brute_force_coverage(generated, real, k), atol=1e-6)
    np.testing.assert_allclose(measured["recall"], brute_force_coverage(real, generated, k), atol=1e-6)


def test_precision_recall_of_known_sets():
    real = jax.random.normal(KEY, (100, 2))
    same = metrics.nearest_neighbor_precision_recall(real, real)
    assert same["precision"] == same["recall"] == 1
    far = metrics.nearest_neighbor_precision_recall(real, real + 100)
    assert far["precision"] == far["recall"] == 0
    # A collapsed generator is precise and covers nothing.
    collapsed = metrics.nearest_neighbor_precision_recall(real, real[:1] + 1e-3 * real[:20])
    assert collapsed["precision"] == 1
    assert collapsed["recall"] < 0.1
    # A common shift changes nothing.
    shifted = metrics.nearest_neighbor_precision_recall(real + 1000, 0.5 * real + 1000)
    plain = metrics.nearest_neighbor_precision_recall(real, 0.5 * real)
    np.testing.assert_allclose(shifted["recall"], plain["recall"], atol=0.02)


def test_precision_recall_by_hand():
    # Balls around 0, 1 and 10 reach to the nearest other point: 1, 1 and 9.
    real = jnp.array([[0.0], [1.0], [10.0]])
    generated = jnp.array([[-0.5], [-1.5], [2.5], [30.0]])  # inside 0's; outside; inside 10's; outside
    measured = metrics.nearest_neighbor_precision_recall(real, generated, num_neighbors=1)
    assert measured["precision"] == 0.5


@pytest.mark.parametrize(("n", "m"), [(20, 20), (12, 30), (7, 5)])
def test_sliced_distance_in_one_dimension_is_exact(n, m):
    a = np.asarray(jax.random.normal(KEY, (n, 1)))
    b = np.asarray(2 * jax.random.normal(jax.random.key(1), (m, 1)) + 1)
    expected = scipy.stats.wasserstein_distance(a[:, 0], b[:, 0])
    np.testing.assert_allclose(metrics.sliced_wasserstein_distance(KEY, a, b, order=1), expected, rtol=1e-5)


def test_sliced_distance_of_shifted_sets():
    # E |theta . v|^2 = |v|^2 / D for a direction theta: distance |v| / sqrt(D), within 5 standard errors over directions.
    a, shift, directions = jax.random.normal(KEY, (30, 4)), jnp.array([3.0, 0.0, 0.0, 4.0]), 20_000
    distance = metrics.sliced_wasserstein_distance(KEY, a, a + shift, num_projections=directions)
    spread = 25 * np.sqrt(3 / (4 * 6) - 1 / 16)  # of |theta . v|^2: E theta_1^4 = 3 / (D (D + 2))
    assert abs(float(distance) ** 2 - 25 / 4) < 5 * spread / np.sqrt(directions)


def test_sliced_distance_is_a_distance_with_finite_gradients():
    a, b = jax.random.normal(KEY, (2, 16, 3))
    assert metrics.sliced_wasserstein_distance(KEY, a, a) == 0
    np.testing.assert_allclose(
        metrics.sliced_wasserstein_distance(KEY, a, b), metrics.sliced_wasserstein_distance(KEY, b, a), rtol=1e-6
    )
    for order in (1.0, 2.0, 3.0):
        distance = partial(metrics.sliced_wasserstein_distance, KEY, order=order)
        assert np.all(np.isfinite(jax.grad(distance)(a, b)))
        assert np.all(np.isfinite(jax.grad(distance)(a, a)))
    few = metrics.sliced_wasserstein_distance(KEY, a, b, num_projections=3)
    assert few != metrics.sliced_wasserstein_distance(jax.random.key(5), a, b, num_projections=3)


def test_sharded_equals_one_device():
    a, b = jax.random.normal(KEY, (64, 5)), 1.5 * jax.random.normal(jax.random.key(1), (32, 5))
    np.testing.assert_allclose(
        sharded(partial(metrics.frechet_distance, axis_name="data"), a, b), metrics.frechet_distance(a, b), rtol=1e-4
    )
    np.testing.assert_allclose(
        sharded(partial(metrics.sliced_wasserstein_distance, KEY, axis_name="data"), a, b),
        metrics.sliced_wasserstein_distance(KEY, a, b),
        rtol=1e-5,
    )
    both = sharded(partial(metrics.nearest_neighbor_precision_recall, axis_name="data"), a, b)
    expected = metrics.nearest_neighbor_precision_recall(a, b)
    assert both["precision"] == expected["precision"]
    assert both["recall"] == expected["recall"]


def test_compiled_equals_eager():
    a, b = jax.random.normal(KEY, (2, 20, 4))
    for function in (
        metrics.frechet_distance,
        lambda a, b: metrics.nearest_neighbor_precision_recall(a, b)["recall"],
        partial(metrics.sliced_wasserstein_distance, KEY),
    ):
        np.testing.assert_allclose(jax.jit(function)(a, b), function(a, b), rtol=1e-5)


def test_low_precision_is_measured_in_float32():
    a = jax.random.normal(KEY, (20, 4)).astype(jnp.bfloat16)
    assert metrics.frechet_distance(a, a + 1).dtype == jnp.float32


A = jnp.ones((5, 3))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: metrics.frechet_distance(jnp.ones(5), A), "first"),
        (lambda: metrics.frechet_distance(A, jnp.ones((5, 2))), "second"),
        (lambda: metrics.frechet_distance(A[:1], A), "first"),
        (lambda: metrics.frechet_distance(A, A[:, :0]), "second"),
        (lambda: metrics.nearest_neighbor_precision_recall(A, A, num_neighbors=0), "num_neighbors"),
        (lambda: metrics.nearest_neighbor_precision_recall(A, A[:3]), "generated"),
        (lambda: metrics.nearest_neighbor_precision_recall(A, jnp.ones((5, 2))), "features"),
        (lambda: metrics.sliced_wasserstein_distance(KEY, A[:0], A), "first"),
        (lambda: metrics.sliced_wasserstein_distance(KEY, A, A, num_projections=0), "num_projections"),
        (lambda: metrics.sliced_wasserstein_distance(KEY, A, A, order=0.5), "order"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_power_laws_are_found_and_left():
    steps = jnp.array([10.0, 20.0, 50.0, 100.0, 400.0])
    values = (3 * steps**-0.5).at[4].multiply(2.0)  # the last point is twice what the law says
    fit = jax.jit(lambda s, v: metrics.power_law_fit(s, v, fit_count=4))(steps, values)
    np.testing.assert_allclose([fit["scale"], fit["exponent"]], [3, -0.5], rtol=1e-4)
    np.testing.assert_allclose(fit["residuals"], [0, 0, 0, 0, np.log(2)], atol=1e-5)
    noisy = values * jnp.array([1.1, 0.9, 1.2, 1.0, 0.8])
    fit = metrics.power_law_fit(steps, noisy)
    slope, intercept = np.polyfit(np.log(np.asarray(steps)), np.log(np.asarray(noisy)), 1)
    np.testing.assert_allclose([jnp.log(fit["scale"]), fit["exponent"]], [intercept, slope], rtol=1e-3)


def test_proxy_gap_by_hand():
    hacked = metrics.proxy_gap(jnp.array([4.0, 3.0, 2.0, 1.0]), jnp.array([3.0, 1.0, 1.0, 2.0]))
    assert int(hacked["onset"]) == 1  # the first of equal ones
    np.testing.assert_allclose([hacked["golden_rise"], hacked["proxy_drop"]], [1.0, 2.0])
    assert bool(hacked["hacked"])
    fine = metrics.proxy_gap(jnp.array([4.0, 3.0, 2.0]), jnp.array([3.0, 2.0, 1.0]))
    assert not bool(fine["hacked"])
    assert not bool(metrics.proxy_gap(jnp.ones(1), jnp.ones(1))["hacked"])


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: metrics.power_law_fit(jnp.array([1.0, 0.0]), jnp.ones(2)), "steps"),
        (lambda: metrics.power_law_fit(jnp.array([1.0, 2.0]), jnp.array([1.0, -1.0])), "values"),
        (lambda: metrics.power_law_fit(jnp.array([1.0, 2.0]), jnp.ones(3)), "values"),
        (lambda: metrics.power_law_fit(jnp.array([2.0, 2.0]), jnp.ones(2)), "steps must differ"),
        (lambda: metrics.power_law_fit(jnp.ones(1), jnp.ones(1)), "fit_count"),
        (lambda: metrics.power_law_fit(jnp.array([1.0, 2.0]), jnp.ones(2), fit_count=1), "fit_count"),
        (lambda: metrics.power_law_fit(jnp.array([1.0, 2.0]), jnp.ones(2), fit_count=3), "fit_count"),
        (lambda: metrics.proxy_gap(jnp.ones(2), jnp.ones(3)), "golden"),
        (lambda: metrics.proxy_gap(jnp.ones(0), jnp.ones(0)), "proxy"),
    ],
)
def test_bad_hacking_curves(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_effective_rank_of_known_sets():
    np.testing.assert_allclose(metrics.effective_rank(jnp.eye(4)), 4, rtol=1e-5)
    np.testing.assert_allclose(metrics.effective_rank(jnp.ones((6, 4)) * jnp.arange(1.0, 7)[:, None]), 1, rtol=1e-5)
    # Three rows along one axis, one along another: shares 3/4 and 1/4.
    rows = jnp.array([[1.0, 0, 0], [2.0, 0, 0], [-5.0, 0, 0], [0, 0.1, 0]])
    expected = np.exp(-0.75 * np.log(0.75) - 0.25 * np.log(0.25))
    np.testing.assert_allclose(metrics.effective_rank(rows), expected, rtol=1e-5)
    np.testing.assert_allclose(metrics.effective_rank(jnp.concatenate([rows, 0 * rows])), expected, rtol=1e-5)
    assert metrics.effective_rank(0 * rows) == 0
    assert np.isnan(metrics.effective_rank(rows * jnp.nan))


def test_effective_rank_ignores_scales_rotations_and_order():
    a = np.asarray(jax.random.normal(KEY, (16, 5)))
    rank = metrics.effective_rank(a)
    assert 1 < rank < 5
    rotation = np.linalg.qr(np.asarray(jax.random.normal(jax.random.key(1), (5, 5))))[0]
    scales = np.arange(1.0, 17)[:, None].astype(np.float32)
    for other in (a * scales, a @ rotation, a[::-1], -a):
        np.testing.assert_allclose(metrics.effective_rank(other), rank, rtol=1e-4)
    np.testing.assert_allclose(sharded(partial(metrics.effective_rank, axis_name="data"), a), rank, rtol=1e-5)
    for rows in (a, np.eye(5), np.zeros((3, 5)), np.ones((3, 5))):  # equal singular values, and ones of 0
        assert np.all(np.isfinite(jax.grad(metrics.effective_rank)(jnp.asarray(rows, jnp.float32))))


def test_effective_rank_of_nothing():
    for empty in (jnp.ones((0, 3)), jnp.ones((3, 0)), jnp.ones(3)):
        with pytest.raises(ValueError, match="embeddings"):
            metrics.effective_rank(empty)


def curve_area(rates, overlaps, limit):
    """Under a piecewise linear curve from rate 0 to the limit, in fine steps."""
    x = np.linspace(0, limit, 200001)
    return np.mean(np.interp((x[1:] + x[:-1]) / 2, rates, overlaps))


def test_per_region_overlap_by_hand():
    # Two defects: one pixel found above all else, four pixels of which two tie with the highest normal ones. Corners join.
    maps, masks = np.zeros((1, 4, 5)), np.zeros((1, 4, 5), int)
    masks[0, 0, 0], maps[0, 0, 0] = 1, 9.0
    for (row, column), score in {(0, 3): 8.0, (1, 4): 8.0, (2, 4): 3.0, (3, 3): 3.0}.items():
        masks[0, row, column], maps[0, row, column] = 1, score
    normal = np.array([0.0] * 12 + [1.0, 2.0, 3.0])
    maps[masks == 0] = normal
    # Thresholds from the highest normal score to the lowest: 3, 2, 1 and 0 twelve times, each with its place's rate.
    rates = np.append(np.arange(15) / 15, 1)
    overlaps = np.array([0.75] + [1.0] * 15)
    area = metrics.per_region_overlap_area(maps, masks, limits=(0.3, 0.05), num_thresholds=15)
    np.testing.assert_allclose(area, [curve_area(rates, overlaps, limit) for limit in (0.3, 0.05)], rtol=1e-4)
    small = metrics.per_region_overlap_area(maps, masks, limits=(0.3,), num_thresholds=15, size_range=(1, 1))
    np.testing.assert_allclose(small, [1.0])
    assert small.dtype == np.float64


def test_per_region_overlap_of_perfect_useless_and_shifted_maps():
    random = np.random.default_rng(0)
    masks = np.zeros((3, 12, 12), int)
    masks[0, 2:4, 2:4] = masks[0, 7:11, 3:9] = masks[1, 0, :3] = 1  # the third image has none
    np.testing.assert_allclose(metrics.per_region_overlap_area(masks, masks), 1.0)
    np.testing.assert_allclose(metrics.per_region_overlap_area(np.ones((3, 12, 12)), masks, limits=(0.3,)), 0.0)
    np.testing.assert_allclose(metrics.per_region_overlap_area(-masks, masks, limits=(0.3,)), 0.0)
    noisy = masks + random.normal(size=masks.shape)
    area = metrics.per_region_overlap_area(noisy, masks)
    assert np.all((area > 0) & (area < 1))
    assert np.all(np.diff(area) < 0)  # lower limits are harder
    np.testing.assert_allclose(metrics.per_region_overlap_area(np.exp(noisy), masks), area)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"maps": np.ones((1, 2, 3))}, r"\(1, 2, 3\) and \(1, 2, 2\)"),
        ({"maps": np.full((1, 2, 2), np.nan)}, "maps must not hold NaN"),
        ({"masks": np.full((1, 2, 2), 2)}, "0 and 1"),
        ({"masks": np.zeros((1, 2, 2))}, "a defect of 0 to inf pixels"),
        ({"masks": np.ones((1, 2, 2))}, "normal pixel"),
        ({"size_range": (2, 9)}, "a defect of 2 to 9 pixels"),
        ({"limits": (0.3, 0.0)}, "limits"),
        ({"limits": (1.1,)}, "limits"),
        ({"num_thresholds": 1}, "num_thresholds"),
    ],
)
def test_bad_regions(changes, match):
    arguments = {"maps": np.ones((1, 2, 2)), "masks": np.array([[[1, 0], [0, 0]]]), **changes}
    with pytest.raises(ValueError, match=match):
        metrics.per_region_overlap_area(**arguments)


def test_the_smallest_prefix_that_is_good_enough():
    accuracies, costs = jnp.array([0.5, 0.8, 0.7, 0.9]), jnp.array([1.0, 2.0, 4.0, 8.0])
    for target, expected in ((0.4, (1, 1)), (0.75, (2, 3)), (0.8, (2, 3)), (0.85, (4, 15)), (0.95, (0, 0))):
        found = metrics.smallest_sufficient_prefix(accuracies, costs, target=target)
        assert (int(found[0]), float(found[1])) == expected
        assert jax.jit(metrics.smallest_sufficient_prefix)(accuracies, costs, target=target)[0] == expected[0]
    in_flops = np.array([5, 4, 3, 2]) * 10**9  # beyond int32
    assert float(metrics.smallest_sufficient_prefix(accuracies, in_flops, target=0.9)[1]) == 14e9
    for bad, match in (
        ((accuracies, costs[:3]), r"\(4,\) and \(3,\)"),
        ((accuracies[:0], costs[:0]), "at least one"),
        ((accuracies, -costs), "costs"),
    ):
        with pytest.raises(ValueError, match=match):
            metrics.smallest_sufficient_prefix(*bad, target=0.5)
