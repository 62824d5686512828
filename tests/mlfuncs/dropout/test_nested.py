"""Nested dropout: the law of the prefix, masks, accuracies of every prefix, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import PartitionSpec as P

from mlfuncs import dropout

KEY = jax.random.key(0)


def test_truncation_distribution_by_hand():
    weights = np.exp([-0.25, -1.0, -2.25])  # exp(-(k / 2)^2)
    np.testing.assert_allclose(dropout.truncation_distribution(3, scale=2.0), weights / weights.sum(), rtol=1e-5)
    centred = np.exp([-0.25, 0.0, -0.25])
    np.testing.assert_allclose(
        dropout.truncation_distribution(3, scale=2.0, mean=2.0), centred / centred.sum(), rtol=1e-5
    )
    np.testing.assert_array_equal(dropout.truncation_distribution(1, scale=10.0), [1.0])


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 0.05, 1.0, 1e6])
def test_truncation_distribution_sums_to_one_at_every_scale(scale):
    for mean in (0.0, 300.0, -50.0, 2000.0):
        p = dropout.truncation_distribution(512, scale=scale, mean=mean)
        assert np.all(np.isfinite(p))
        np.testing.assert_allclose(np.asarray(p, np.float64).sum(), 1, rtol=1e-5)
    # A tiny scale leaves one prefix alone: that nearest to the mean.
    if scale < 0.01:
        np.testing.assert_array_equal(dropout.truncation_distribution(4, scale=scale, mean=3.2), [0, 0, 1, 0])


def test_truncation_distribution_takes_traced_scales():
    slope = jax.jit(jax.grad(lambda s: dropout.truncation_distribution(8, scale=s) @ jnp.arange(8.0)))(3.0)
    assert np.isfinite(slope)
    assert slope > 0  # a wider law keeps more


def test_keep_probability():
    p = jnp.array([0.5, 0.25, 0.25, 0.0])
    np.testing.assert_allclose(dropout.truncation_keep_probability(p), [1, 0.5, 0.25, 0])
    keep = np.asarray(dropout.truncation_keep_probability(dropout.truncation_distribution(512, scale=100.0)))
    assert np.all(np.diff(keep) <= 0)
    np.testing.assert_allclose(keep[0], 1, rtol=1e-5)


def test_truncation_mask():
    np.testing.assert_array_equal(
        dropout.truncation_mask(jnp.array([0, 1, 3, 9, -2]), 3),
        [[False] * 3, [True, False, False], [True] * 3, [True] * 3, [False] * 3],
    )
    np.testing.assert_array_equal(jax.jit(lambda k: dropout.truncation_mask(k, 3))(2), [True, True, False])


def test_nested_masks_follow_the_law():
    """Chi-squared on 2^14 draws at the 5-sigma level (p = 5.7e-7), and the keep probability of each unit at 5 sigma."""
    p = dropout.truncation_distribution(16, scale=6.0)
    masks = np.asarray(dropout.nested_mask(KEY, p, shape=(1 << 14,)))
    assert masks.shape == (1 << 14, 16)
    assert masks[:, 0].all()
    assert np.all(np.diff(masks.astype(int), axis=1) <= 0)
    counts = np.bincount(masks.sum(1), minlength=17)[1:]
    expected = np.asarray(p, np.float64) / np.asarray(p, np.float64).sum() * (1 << 14)
    assert scipy.stats.chisquare(counts, expected).pvalue > 5.7e-7
    keep = np.asarray(dropout.truncation_keep_probability(p), np.float64)
    assert np.all(np.abs(masks.mean(0) - keep) <= 5 * np.sqrt(keep * (1 - keep) / (1 << 14)) + 1e-6)


def test_nested_mask_shapes_and_impossible_prefixes():
    p = jnp.array([0.0, 0.6, 0.0, 0.4])
    assert dropout.nested_mask(KEY, p).shape == (4,)
    assert dropout.nested_mask(KEY, p, shape=(7, 1)).shape == (7, 1, 4)
    lengths = dropout.nested_mask(KEY, p, shape=(5000,)).sum(-1)
    assert set(np.asarray(lengths).tolist()) == {2, 4}
    np.testing.assert_array_equal(dropout.nested_mask(KEY, jnp.array([1.0])), [True])
    np.testing.assert_array_equal(jax.jit(dropout.nested_mask)(KEY, p), dropout.nested_mask(KEY, p))


def test_prefix_logits_by_hand():
    features, kernel = jnp.array([[1.0, 2.0]]), jnp.array([[1.0, -1.0], [3.0, 0.5]])
    np.testing.assert_allclose(dropout.prefix_logits(features, kernel), [[[1, -1]], [[7, 0]]])
    biased = dropout.prefix_logits(features, kernel, bias=jnp.array([10.0, 20.0]))
    np.testing.assert_allclose(biased, [[[11, 19]], [[17, 20]]])


@pytest.mark.parametrize("width", [1, 5, 77])
def test_every_prefix_is_a_masked_product(width):
    features = jax.random.normal(KEY, (6, width))
    kernel, bias = jax.random.normal(jax.random.key(1), (width, 3)), jnp.array([0.1, -0.2, 0.3])
    labels = jnp.array([0, 1, 2, 0, 1, 2])
    logits = dropout.prefix_logits(features, kernel, bias=bias)
    accuracy = dropout.prefix_accuracy(features, kernel, labels, bias=bias)
    assert accuracy.shape == (width,)
    for k in range(1, width + 1):
        expected = dropout.apply_mask(features, dropout.truncation_mask(k, width)) @ kernel + bias
        np.testing.assert_allclose(logits[k - 1], expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(accuracy[k - 1], jnp.mean(jnp.argmax(expected, 1) == labels), rtol=1e-6)


def test_prefix_accuracy_weights():
    features, kernel = jnp.array([[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]]), jnp.eye(2)
    labels = jnp.array([0, 1, 1])
    # One feature: argmax is 0 for all (ties to the lower class); two: 0, 1, 0.
    np.testing.assert_allclose(dropout.prefix_accuracy(features, kernel, labels), [1 / 3, 2 / 3], rtol=1e-6)
    np.testing.assert_allclose(
        dropout.prefix_accuracy(features, kernel, labels, weights=jnp.array([1, 3, 0])), [0.25, 1.0], rtol=1e-6
    )
    np.testing.assert_array_equal(dropout.prefix_accuracy(features, kernel, labels, weights=jnp.zeros(3)), [0, 0])
    empty = dropout.prefix_accuracy(jnp.zeros((0, 2)), kernel, jnp.zeros(0, int))
    np.testing.assert_array_equal(empty, [0, 0])


def test_prefix_accuracy_never_holds_all_logits():
    shapes = jax.ShapeDtypeStruct((64, 512), jnp.float32), jax.ShapeDtypeStruct((512, 100), jnp.float32)
    compiled = jax.jit(dropout.prefix_accuracy).lower(*shapes, jax.ShapeDtypeStruct((64,), jnp.int32)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 512 * 64 * 100 * 4 / 10


def test_prefix_accuracy_inside_shard_map():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    features, kernel = jax.random.normal(KEY, (16, 5)), jax.random.normal(jax.random.key(1), (5, 3))
    labels = jax.random.randint(KEY, (16,), 0, 3)
    weights = jnp.arange(16.0)
    shard = lambda f, y, w: dropout.prefix_accuracy(f, kernel, y, weights=w, axis_name="data")  # noqa: E731
    sharded = jax.jit(jax.shard_map(shard, mesh=mesh, in_specs=P("data"), out_specs=P()))(features, labels, weights)
    np.testing.assert_allclose(sharded, dropout.prefix_accuracy(features, kernel, labels, weights=weights), rtol=1e-5)


def test_select_truncation():
    assert dropout.select_truncation(jnp.array([0.1, 0.8, 0.8])) == 2  # the penalty breaks ties for the shorter
    assert dropout.select_truncation(jnp.array([0.1, 0.8, 0.8]), penalty=0.0) == 2
    assert dropout.select_truncation(jnp.array([0.1, 0.8, 0.9])) == 3
    assert dropout.select_truncation(jnp.array([0.5, 0.59]), penalty=0.1) == 1
    assert dropout.select_truncation(jnp.array([0.3])) == 1
    assert jax.jit(dropout.select_truncation)(jnp.array([0.1, 0.9, 0.2])) == 2
    assert dropout.select_truncation(jnp.array([0.1])).dtype == jnp.int32


def test_half_precision_and_integers_are_widened():
    kernel = jnp.ones((4, 2), jnp.bfloat16)
    assert dropout.prefix_logits(jnp.ones((3, 4), jnp.bfloat16), kernel).dtype == jnp.float32
    assert dropout.prefix_logits(jnp.ones((3, 4), int), kernel).dtype == jnp.float32
    assert dropout.truncation_keep_probability(jnp.array([0.5, 0.5], jnp.bfloat16)).dtype == jnp.float32


def test_bad_input():
    for count in (0, -3):
        with pytest.raises(ValueError, match="num_features"):
            dropout.truncation_distribution(count, scale=1.0)
        with pytest.raises(ValueError, match="num_features"):
            dropout.truncation_mask(jnp.array([1]), count)
    for scale in (0.0, -1.0):
        with pytest.raises(ValueError, match="scale"):
            dropout.truncation_distribution(4, scale=scale)
    for p in (jnp.ones((2, 2)) / 4, jnp.array([1.5, -0.5]), jnp.array([0.5, 0.4]), jnp.array([jnp.nan, 1.0])):
        with pytest.raises(ValueError, match="probabilities"):
            dropout.truncation_keep_probability(p)
        with pytest.raises(ValueError, match="probabilities"):
            dropout.nested_mask(KEY, p)
    features, kernel, labels = jnp.ones((3, 4)), jnp.ones((4, 2)), jnp.zeros(3, int)
    with pytest.raises(ValueError, match="kernel must have 4 rows"):
        dropout.prefix_logits(features, jnp.ones((5, 2)))
    with pytest.raises(ValueError, match="kernel must have 4 rows"):
        dropout.prefix_accuracy(features, jnp.ones((5, 2)), labels)
    with pytest.raises(ValueError, match="bias"):
        dropout.prefix_logits(features, kernel, bias=jnp.ones(3))
    with pytest.raises(ValueError, match="labels"):
        dropout.prefix_accuracy(features, kernel, jnp.zeros(4, int))
    with pytest.raises(ValueError, match="weights"):
        dropout.prefix_accuracy(features, kernel, labels, weights=jnp.ones(2))
    with pytest.raises(ValueError, match="penalty"):
        dropout.select_truncation(jnp.ones(3), penalty=-1.0)
    with pytest.raises(ValueError, match="accuracy"):
        dropout.select_truncation(jnp.ones((3, 2)))
    with pytest.raises(ValueError, match="accuracy"):
        dropout.select_truncation(jnp.ones(0))
