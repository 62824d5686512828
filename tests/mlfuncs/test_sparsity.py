"""Masks on weights: equal cost, densities, exact counts, RigL by hand, the nuclear norm and its subgradient, bad input."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from mlfuncs import sparsity

KEY = jax.random.key(0)


def test_widths_by_hand():
    width = sparsity.iso_flop_width
    # k = 4, 10, 2: the widths of the study.
    assert [width(family="wide", in_features=48, out_features=48, sparsity=s) for s in (0, 0.5, 0.75, 0.9)] == [
        48, 67, 96, 151
    ]  # fmt: skip
    assert [width(family="parallel", in_features=8, out_features=8, sparsity=s) for s in (0, 0.5, 0.9, 0.99)] == [
        1, 2, 10, 100
    ]  # fmt: skip
    # 9 * 64 * 32 / (0.25 * (576 + 32)) = 121.26...; 0.75 * 18432 / 608 = 22.7...
    settings = {"in_features": 64, "out_features": 32, "sparsity": 0.75, "kernel_size": 9}
    assert width(family="factorized", **settings) == 122
    assert width(family="doped", **settings) == 22
    assert width(family="doped", in_features=64, out_features=32, sparsity=1e-4) == 0  # s -> 0: no rank is left


def test_bad_widths():
    good = {"family": "wide", "in_features": 8, "out_features": 8, "sparsity": 0.5, "kernel_size": 1}
    for change in (
        {"family": "tall"}, {"in_features": 0}, {"out_features": 0}, {"kernel_size": 0}, {"sparsity": 1.0},
        {"sparsity": -0.1}, {"sparsity": float("nan")}, {"in_features": 2.5},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=next(iter(change))):
            sparsity.iso_flop_width(**{**good, **change})


SHAPES = [(3, 3, 3, 16), (3, 3, 16, 64), (3, 3, 64, 64), (64, 10), (5,)]


@pytest.mark.parametrize("sparse", [0.0, 0.3, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_densities_have_the_right_total(sparse, power):
    sizes = np.array([math.prod(shape) for shape in SHAPES])
    densities = np.array(sparsity.erdos_renyi_kernel_densities(SHAPES, sparsity=sparse, power=power))
    assert np.all((densities > 0) & (densities <= 1))
    np.testing.assert_allclose(densities @ sizes, (1 - sparse) * sizes.sum(), rtol=1e-9)
    # In proportion to the kernels' ratio wherever the cap doesn't bind.
    raw = np.array([sum(shape) / math.prod(shape) for shape in SHAPES]) ** power
    free = densities < 1
    if free.any():
        ratio = densities[free] / raw[free]
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-9)
        assert np.all(raw[~free] * ratio[0] >= 1 - 1e-9)


def test_densities_by_hand():
    # raw 1 and 0.2, sizes 4 and 100: eps (4 + 20) = 52 gives 2.17 > 1, so the first is dense and 48 of 100 are left.
    np.testing.assert_allclose(sparsity.erdos_renyi_kernel_densities([(2, 2), (10, 10)], sparsity=0.5), [1.0, 0.48])
    # Layers that tie are capped together.
    tied = sparsity.erdos_renyi_kernel_densities([(2, 2), (2, 2), (10, 10)], sparsity=0.5)
    np.testing.assert_allclose(tied, [1.0, 1.0, 0.46])
    assert sparsity.erdos_renyi_kernel_densities(SHAPES, sparsity=0) == [1.0] * 5


def test_bad_densities():
    for shapes in ([], [(3, 0)], [()]):
        with pytest.raises(ValueError, match="shapes"):
            sparsity.erdos_renyi_kernel_densities(shapes, sparsity=0.5)
    for sparse in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="sparsity"):
            sparsity.erdos_renyi_kernel_densities(SHAPES, sparsity=sparse)
        with pytest.raises(ValueError, match="sparsity"):
            sparsity.random_mask(KEY, (3,), sparsity=sparse)
    with pytest.raises(ValueError, match="sparsity decides a count"):
        jax.jit(lambda s: sparsity.random_mask(KEY, (3,), sparsity=s))(0.5)


@pytest.mark.parametrize("sparse", [0.0, 0.3, 0.7, 0.9])
def test_random_masks_have_an_exact_count(sparse):
    for shape in ((10,), (7, 9), (1,), ()):
        mask = sparsity.random_mask(KEY, shape, sparsity=sparse)
        size = math.prod(shape)
        assert (mask.shape, mask.dtype) == (shape, jnp.bool_)
        assert int(mask.sum()) == size - math.floor(sparse * size + 1e-6)


def test_random_masks_are_uniform():
    """Chi-squared of the 6 masks of 2 of 4 entries over 6000 keys, at the 5-sigma level."""
    draw = jax.jit(jax.vmap(lambda key: sparsity.random_mask(key, (4,), sparsity=0.5)))
    masks = np.asarray(draw(jax.random.split(KEY, 6000)))
    counts = np.unique(masks @ [1, 2, 4, 8], return_counts=True)[1]
    assert counts.size == 6
    assert scipy.stats.chisquare(counts).pvalue > 5.7e-7


def test_prune_and_regrow_by_hand():
    weights = jnp.array([[5.0, -1.0, 0.2], [0.0, 0.0, 3.0]])
    mask = jnp.array([[True, True, True], [False, False, True]])
    gradients = jnp.array([[0.0, 0.5, 0.1], [-2.0, 1.0, 9.0]])
    # Of 4 active, half go: 0.2 and -1. Of the 4 free places the largest gradients are 2 and 1.
    after = sparsity.prune_and_regrow(weights, gradients, mask, drop_fraction=0.5)
    np.testing.assert_array_equal(after, [[True, False, False], [True, True, True]])
    # What was just dropped may come back.
    back = sparsity.prune_and_regrow(weights, gradients.at[0, 2].set(7.0), mask, drop_fraction=0.5)
    np.testing.assert_array_equal(back, [[True, False, True], [True, False, True]])
    np.testing.assert_array_equal(sparsity.prune_and_regrow(weights, gradients, mask, drop_fraction=0.0), mask)


def test_ties_go_to_the_lower_index():
    ones = jnp.ones(6)
    mask = jnp.array([False, True, True, True, False, False])
    after = sparsity.prune_and_regrow(ones, ones, mask, drop_fraction=0.34)  # keeps 1 and 2, grows 0
    np.testing.assert_array_equal(after, [True, True, True, False, False, False])


def test_count_is_kept_for_traced_fractions_and_stale_weights_are_ignored():
    keys = jax.random.split(KEY, 3)
    weights, gradients = jax.random.normal(keys[0], (2, 9, 11))
    mask = sparsity.random_mask(keys[1], (9, 11), sparsity=0.6)
    traces = []

    @jax.jit
    def update(weights, gradients, fraction):
        traces.append(None)
        return sparsity.prune_and_regrow(weights, gradients, mask, drop_fraction=fraction)

    count = int(mask.sum())
    for fraction in (0.0, 0.1, 0.3, 0.5, 0.7, 1.0):
        after = update(weights, gradients, fraction)
        assert int(after.sum()) == count
        kept = int((after & mask).sum())
        assert kept >= count - math.floor(fraction * count + 1e-6)
        # Values outside the mask, however large, change nothing.
        stale = jnp.where(mask, weights, 1e9 * (1 + jnp.abs(weights)))
        np.testing.assert_array_equal(update(stale, gradients, fraction), after)
    assert len(traces) == 1
    for broken in (jnp.nan, jnp.inf):
        for arguments in ((jnp.full((9, 11), broken), gradients), (weights, jnp.full((9, 11), broken))):
            assert int(update(*arguments, 0.5).sum()) == count


def test_full_and_empty_masks():
    x = jax.random.normal(KEY, (4, 5))
    for mask in (jnp.ones((4, 5), bool), jnp.zeros((4, 5), bool)):
        np.testing.assert_array_equal(sparsity.prune_and_regrow(x, x, mask, drop_fraction=0.0), mask)
        assert int(sparsity.prune_and_regrow(x, x, mask, drop_fraction=0.5).sum()) == int(mask.sum())


def test_drop_fraction_follows_half_a_cosine():
    steps = jnp.array([0, 25, 50, 100, 101, 1000])
    expected = [0.3, 0.15 * (1 + np.sqrt(0.5)), 0.15, 0, 0, 0]
    np.testing.assert_allclose(sparsity.cosine_drop_fraction(steps, end_step=100), expected, atol=1e-7)
    traced = jax.jit(lambda step, end: sparsity.cosine_drop_fraction(step, end_step=end, initial=0.3))
    np.testing.assert_allclose(traced(steps, 100), expected, atol=1e-7)


def test_masked_update_keeps_zeros_against_weight_decay_and_momentum():
    params = {"w": jnp.array([1.0, 2.0, 3.0]), "b": jnp.array([1.0])}
    mask = {"w": jnp.array([True, False, True]), "b": jnp.array([True])}
    optimizer = optax.chain(optax.adamw(0.1, weight_decay=0.1), sparsity.masked_update(mask))
    plain = optax.adamw(0.1, weight_decay=0.1)
    state, plain_state, plain_params = optimizer.init(params), plain.init(params), params
    for step in range(3):
        gradients = jax.tree.map(lambda p, s=step: jnp.ones_like(p) * (s + 1), params)
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        assert params["w"][1] == 0  # even the stale 2 at the start
        updates, plain_state = plain.update(gradients, plain_state, plain_params)
        plain_params = optax.apply_updates(plain_params, updates)
    np.testing.assert_allclose(params["w"][jnp.array([0, 2])], plain_params["w"][jnp.array([0, 2])], rtol=1e-6)
    np.testing.assert_allclose(params["b"], plain_params["b"], rtol=1e-6)
    with pytest.raises(ValueError, match="params"):
        sparsity.masked_update(mask).update(params, optax.EmptyState())


def test_nuclear_norm_by_hand():
    # Singular values 3 and 2, whatever the signs.
    np.testing.assert_allclose(sparsity.nuclear_norm(jnp.array([[0.0, -3.0], [2.0, 0.0]])), 5, rtol=1e-6)
    np.testing.assert_allclose(
        sparsity.nuclear_norm_subgradient(jnp.array([[0.0, -3.0], [2.0, 0.0]])), [[0, -1], [1, 0]], atol=1e-6
    )
    # Rank one: u v^T over its norms.
    u, v = jnp.array([3.0, 4.0]), jnp.array([1.0, 2.0, 2.0])
    np.testing.assert_allclose(sparsity.nuclear_norm(jnp.outer(u, v)), 15, rtol=1e-5)
    np.testing.assert_allclose(sparsity.nuclear_norm_subgradient(jnp.outer(u, v)), jnp.outer(u / 5, v / 3), atol=1e-5)


@pytest.mark.parametrize("shape", [(4, 4), (6, 3), (2, 5)])
def test_gradient_is_the_subgradient_and_the_slope(shape):
    matrix, direction = jax.random.normal(KEY, (2, *shape))
    gradient = jax.grad(sparsity.nuclear_norm)(matrix)
    np.testing.assert_allclose(gradient, sparsity.nuclear_norm_subgradient(matrix), atol=1e-5)
    m, d = np.asarray(matrix, np.float64), np.asarray(direction, np.float64)
    slope = (np.linalg.norm(m + 1e-6 * d, "nuc") - np.linalg.norm(m - 1e-6 * d, "nuc")) / 2e-6
    np.testing.assert_allclose(jnp.sum(gradient * direction), slope, rtol=1e-3)


def test_gradient_at_deficient_repeated_and_zero_singular_values():
    deficient = jnp.outer(jnp.arange(1.0, 5.0), jnp.ones(3)) + jnp.outer(jnp.ones(4), jnp.arange(3.0))
    for matrix in (jnp.zeros((3, 4)), jnp.eye(3), deficient, jnp.diag(jnp.array([1.0, 1.0, 0.0]))):
        gradient = jax.jit(jax.grad(sparsity.nuclear_norm))(matrix)
        assert np.all(np.isfinite(gradient))
        singular = np.linalg.svd(np.asarray(gradient), compute_uv=False)
        rank = np.linalg.matrix_rank(np.asarray(matrix))
        np.testing.assert_allclose(singular, np.arange(3) < rank, atol=1e-4)
        # Of any subgradient: <G, M> is the norm.
        np.testing.assert_allclose(jnp.sum(gradient * matrix), sparsity.nuclear_norm(matrix), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(jax.grad(sparsity.nuclear_norm)(jnp.zeros((3, 4))), np.zeros((3, 4)))


def test_nuclear_norm_transforms():
    batch = jax.random.normal(KEY, (3, 4, 5))
    np.testing.assert_allclose(
        jax.vmap(jax.grad(sparsity.nuclear_norm))(batch)[1], jax.grad(sparsity.nuclear_norm)(batch[1]), atol=1e-5
    )
    assert sparsity.nuclear_norm(jnp.ones((2, 2), jnp.bfloat16)).dtype == jnp.float32
    np.testing.assert_allclose(sparsity.nuclear_norm(jnp.array([[2]])), 2)
    assert sparsity.nuclear_norm(jnp.zeros((0, 3))) == 0
    for shape in ((3,), (2, 3, 4)):
        with pytest.raises(ValueError, match="matrix"):
            sparsity.nuclear_norm(jnp.ones(shape))
        with pytest.raises(ValueError, match="matrix"):
            sparsity.nuclear_norm_subgradient(jnp.ones(shape))


def test_bad_input():
    x, mask = jnp.ones((2, 3)), jnp.ones((2, 3), bool)
    with pytest.raises(ValueError, match="weights and mask"):
        sparsity.prune_and_regrow(jnp.ones(3), x, mask, drop_fraction=0.1)
    with pytest.raises(ValueError, match="gradients and mask"):
        sparsity.prune_and_regrow(x, jnp.ones(3), mask, drop_fraction=0.1)
    for fraction in (-0.1, 1.1):
        with pytest.raises(ValueError, match="drop_fraction"):
            sparsity.prune_and_regrow(x, x, mask, drop_fraction=fraction)
    with pytest.raises(ValueError, match="end_step"):
        sparsity.cosine_drop_fraction(1, end_step=0)
    with pytest.raises(ValueError, match="initial"):
        sparsity.cosine_drop_fraction(1, end_step=5, initial=2.0)


def test_leading_slices_are_the_first_rows_and_columns():
    params = {
        "dense": {"kernel": jnp.arange(12.0).reshape(3, 4), "bias": jnp.arange(4.0)},
        "more": [jnp.ones((2, 2, 2))],
    }
    shapes = {"dense": {"kernel": (2, 3), "bias": (3,)}, "more": [(1, 2, 2)]}
    cut = sparsity.leading_slice(params, shapes)
    np.testing.assert_array_equal(cut["dense"]["kernel"], [[0, 1, 2], [4, 5, 6]])
    np.testing.assert_array_equal(cut["dense"]["bias"], [0, 1, 2])
    assert cut["more"][0].shape == (1, 2, 2)
    # What is shared gets the gradient, the rest none.
    gradient = jax.grad(lambda p: sparsity.leading_slice(p, shapes)["dense"]["kernel"].sum())(params)
    np.testing.assert_array_equal(gradient["dense"]["kernel"], [[1, 1, 1, 0], [1, 1, 1, 0], [0] * 4])
    for bad, match in (
        ({**shapes, "more": [(3, 2, 2)]}, r"at most.*\(3, 2, 2\) of \(2, 2, 2\)"),
        ({**shapes, "more": [(2, 2)]}, "3 sizes"),
        ({**shapes, "more": [(0, 2, 2)]}, "a size in shapes"),
        ({"dense": shapes["dense"]}, "shapes must be a tree like params"),
        ({**shapes, "more": [2]}, "3 sizes"),
    ):
        with pytest.raises(ValueError, match=match):
            sparsity.leading_slice(params, bad)
