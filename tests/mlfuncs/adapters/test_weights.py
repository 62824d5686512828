"""Low-rank and sparse adapters: scales and gradients by hand, merging, sparse training, the rank penalty, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mlfuncs import adapters, sparsity

KEY = jax.random.key(0)


def factors(rank=3, inputs=5, outputs=4):
    keys = jax.random.split(KEY, 3)
    a, b = jax.random.normal(keys[0], (rank, inputs)), jax.random.normal(keys[1], (outputs, rank))
    return jax.random.normal(keys[2], (2, 6, inputs)), a, b


def test_row_scale_by_hand():
    # BA has rows (3, 4), of norm 5, and (0, 0): 1 / sqrt(5 + 1/4) and eta = 2.
    a, b = jnp.array([[3.0, 4.0]]), jnp.array([[1.0], [0.0]])
    np.testing.assert_allclose(adapters.low_rank_row_scale(a, b, eta=2.0), [5.25**-0.5, 2.0], rtol=1e-5)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_row_scale_is_that_of_the_product(rank):
    _, a, b = factors(rank)
    norms = np.linalg.norm(np.asarray(b, np.float64) @ np.asarray(a, np.float64), axis=1)
    for eta in (0.5, 1.0, 2.0):
        np.testing.assert_allclose(adapters.low_rank_row_scale(a, b, eta=eta), (norms + eta**-2) ** -0.5, rtol=1e-4)
    # Rank components in another order are the same adapter.
    order = jnp.arange(rank)[::-1]
    np.testing.assert_allclose(
        adapters.low_rank_row_scale(a[order], b[:, order]), adapters.low_rank_row_scale(a, b), rtol=1e-5
    )


def test_row_scale_edges():
    _, a, _ = factors()
    zero = jnp.zeros((4, 3))
    np.testing.assert_allclose(adapters.low_rank_row_scale(a, zero, eta=np.sqrt(2)), np.full(4, np.sqrt(2)), rtol=1e-6)
    gradients = jax.grad(lambda a, b: adapters.low_rank_row_scale(a, b).sum(), argnums=(0, 1))(a, zero)
    for gradient in gradients:
        assert np.all(np.isfinite(gradient))
    half = adapters.low_rank_row_scale(a.astype(jnp.bfloat16), zero.astype(jnp.bfloat16), eta=jnp.bfloat16(2))
    assert half.dtype == jnp.float32
    assert np.isnan(adapters.low_rank_row_scale(a, zero.at[1, 0].set(jnp.nan))[1])
    np.testing.assert_allclose(jax.jit(adapters.low_rank_row_scale)(a, zero), np.ones(4))


def test_gradients_by_hand():
    # x = (1, 2), A = (3, 4), B = (2; 0): x A' = 11, y = (22, 0). s = ((BA norms 10, 0) + 1)^(-1/2).
    x, a, b = jnp.array([[1.0, 2.0]]), jnp.array([[3.0, 4.0]]), jnp.array([[2.0], [0.0]])
    g, s = jnp.array([[1.0, 5.0]]), 11**-0.5
    np.testing.assert_allclose(adapters.adaptive_low_rank(x, a, b), [[22, 0]], rtol=1e-6)
    found = adapters.adaptive_low_rank_gradients(x, a, b, g)
    np.testing.assert_allclose(found["b"], [[11 * s], [55]], rtol=1e-5)
    np.testing.assert_allclose(found["a"], [[2 * s, 4 * s]], rtol=1e-5)
    np.testing.assert_allclose(found["x"], [[6, 8]], rtol=1e-6)  # not scaled


@pytest.mark.parametrize("eta", [0.5, 1.0, 2.0])
def test_autodiff_is_the_written_out_rule(eta):
    x, a, b = factors()
    cotangent = jax.random.normal(jax.random.key(3), (2, 6, 4))
    loss = lambda x, a, b, eta: jnp.sum(adapters.adaptive_low_rank(x, a, b, eta=eta) * cotangent)  # noqa: E731
    expected = adapters.adaptive_low_rank_gradients(x, a, b, cotangent, eta=eta)
    found = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(x, a, b, eta)
    for name, gradient in zip("xab", found, strict=True):
        np.testing.assert_allclose(gradient, expected[name], rtol=1e-5, atol=1e-6)
    # Against the plain gradient: rows of B are scaled, x is not, and A's is that of the scaled cotangent.
    plain = jax.grad(lambda x, a, b, g: jnp.sum(((x @ a.T) @ b.T) * g), argnums=(0, 1, 2))
    scale = adapters.low_rank_row_scale(a, b, eta=eta)
    np.testing.assert_allclose(found[0], plain(x, a, b, cotangent)[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[1], plain(x, a, b, cotangent * scale)[1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[2], scale[:, None] * plain(x, a, b, cotangent)[2], rtol=1e-4, atol=1e-5)


def test_adaptive_branch_transforms():
    x, a, b = factors()
    loss = lambda x, a, b: adapters.adaptive_low_rank(x, a, b).sum()  # noqa: E731
    whole = jax.grad(loss, argnums=1)(x, a, b)
    remat = jax.grad(jax.checkpoint(loss), argnums=1)(x, a, b)
    parts = jax.vmap(jax.grad(loss, argnums=1), in_axes=(0, None, None))(x, a, b)
    np.testing.assert_allclose(remat, whole, rtol=1e-5)
    np.testing.assert_allclose(parts.sum(0), whole, rtol=1e-4, atol=1e-5)
    # No gradient to eta, none from an empty batch.
    assert jax.grad(lambda eta: adapters.adaptive_low_rank(x, a, b, eta=eta).sum())(1.0) == 0
    for gradient in jax.grad(loss, argnums=(0, 1, 2))(jnp.zeros((0, 5)), a, b):
        assert np.all(gradient == 0)
    # eta -> 0 stops the learning of A and B.
    slow = jax.grad(lambda b: adapters.adaptive_low_rank(x, a, b, eta=1e-4).sum())(b)
    assert np.abs(slow).max() <= 1.1e-4 * np.abs(x @ a.T).sum()


def test_adaptive_branch_dtypes():
    x, a, b = (v.astype(jnp.bfloat16) for v in factors())
    value, gradients = jax.value_and_grad(
        lambda x, a, b: adapters.adaptive_low_rank(x, a, b).astype(jnp.float32).sum(), argnums=(0, 1, 2)
    )(x, a, b)
    assert np.isfinite(value)
    assert all(g.dtype == jnp.bfloat16 for g in gradients)
    # Integer inputs, such as one-hot rows.
    one_hot = jnp.eye(5, dtype=jnp.int32)
    _, a, b = factors()
    np.testing.assert_allclose(adapters.adaptive_low_rank(one_hot, a, b), (b @ a).T, rtol=1e-4, atol=1e-5)
    gradient = jax.grad(lambda a: adapters.adaptive_low_rank(one_hot, a, b).sum())(a)
    found = adapters.adaptive_low_rank_gradients(one_hot, a, b, jnp.ones((5, 4), int))
    np.testing.assert_allclose(gradient, found["a"], rtol=1e-5)


def test_output_dependent_scale():
    np.testing.assert_allclose(
        adapters.output_dependent_scale(jnp.array([0.0, -3.75, 8.75]), eta=2.0), [2, 0.5, 1 / 3], rtol=1e-6
    )
    slopes = jax.vmap(jax.grad(lambda f: adapters.output_dependent_scale(f, eta=2.0)))(jnp.array([0.0, -3.75, 3.75]))
    np.testing.assert_allclose(slopes, [0, 1 / 16, -1 / 16], rtol=1e-5)  # -1/2 * 4^(-3/2)


def test_merging_is_the_adapter_in_the_weight():
    x, a, b = factors()
    kernel = jax.random.normal(jax.random.key(4), (4, 5))
    merged = adapters.merge_low_rank(kernel, a, b)
    np.testing.assert_allclose(x @ merged.T, x @ kernel.T + adapters.adaptive_low_rank(x, a, b), rtol=1e-4, atol=1e-4)
    assert adapters.merge_low_rank(kernel.astype(jnp.bfloat16), a, b).dtype == jnp.bfloat16
    np.testing.assert_allclose(adapters.merge_low_rank(jnp.zeros((4, 5), int), a, b), b @ a, rtol=1e-5, atol=1e-6)


def test_bad_low_rank_input():
    x, a, b = factors()
    good = {"x": x, "a": a, "b": b, "cotangent": jnp.ones((2, 6, 4))}
    for change, match in (
        ({"a": a[0]}, "a must have 2 axes"),
        ({"b": b[0]}, "b must have 2 axes"),
        ({"b": b[:, :2]}, "share a rank"),
        ({"x": x[..., :4]}, "x must have 5"),
        ({"cotangent": jnp.ones((2, 6, 5))}, "cotangent"),
        ({"eta": 0.0}, "eta"),
        ({"eta": -1.0}, "eta"),
    ):
        with pytest.raises(ValueError, match=match):
            adapters.adaptive_low_rank_gradients(**{**good, **change})
        rest = {name: value for name, value in {**good, **change}.items() if name != "cotangent"}
        if "cotangent" not in change:
            with pytest.raises(ValueError, match=match):
                adapters.adaptive_low_rank(**rest)
        if not {"cotangent", "x"} & set(change):
            rest.pop("x")
            with pytest.raises(ValueError, match=match):
                adapters.low_rank_row_scale(**rest)
    with pytest.raises(ValueError, match="kernel"):
        adapters.merge_low_rank(jnp.ones((5, 4)), a, b)
    with pytest.raises(ValueError, match="eta"):
        adapters.output_dependent_scale(jnp.ones(3), eta=0.0)


PARAMS = {"w": jnp.array([[0.5, -0.01], [0.0, 2.0]]), "b": jnp.array([0.0, -0.02])}


def test_small_weights_by_hand():
    masks = adapters.small_weight_mask(PARAMS, threshold=0.02)
    np.testing.assert_array_equal(masks["w"], [[False, True], [True, False]])
    np.testing.assert_array_equal(masks["b"], [True, False])  # strictly below
    chosen = adapters.small_weight_mask(PARAMS, threshold=0.02, select=lambda path, leaf: leaf.ndim == 2)
    np.testing.assert_array_equal(chosen["b"], [False, False])
    np.testing.assert_array_equal(chosen["w"], masks["w"])
    named = adapters.small_weight_mask(PARAMS, threshold=9.0, select=lambda path, leaf: path[-1].key == "b")
    assert (int(named["w"].sum()), int(named["b"].sum())) == (0, 2)
    assert not any(m.any() for m in jax.tree.leaves(adapters.small_weight_mask(PARAMS, threshold=0.0)))
    # The threshold isn't rounded to the weights' precision.
    half = jnp.array([2e-3], jnp.bfloat16)
    np.testing.assert_array_equal(adapters.small_weight_mask(half, threshold=2e-3), half.astype(jnp.float32) < 2e-3)
    traced = jax.jit(lambda t: adapters.small_weight_mask(PARAMS, threshold=t))(0.02)
    np.testing.assert_array_equal(traced["w"], masks["w"])


def test_magnitude_threshold_selects_a_fraction():
    params = {"w": jnp.array([0.4, -0.1, 0.3]), "b": jnp.array([-0.2, 0.5])}
    for fraction, threshold, count in ((0.0, 0.1, 0), (0.2, 0.2, 1), (0.59, 0.3, 2), (0.6, 0.4, 3), (1.0, np.inf, 5)):
        found = adapters.magnitude_threshold(params, fraction=fraction)
        np.testing.assert_allclose(found, threshold)
        masks = adapters.small_weight_mask(params, threshold=found)
        assert sum(int(m.sum()) for m in jax.tree.leaves(masks)) == count


def test_gather_and_scatter():
    masks = adapters.small_weight_mask(PARAMS, threshold=0.02)
    indices = adapters.masked_indices(masks)
    assert indices["w"].dtype == jnp.int32
    np.testing.assert_array_equal(indices["w"], [1, 2])
    values = adapters.gather_values(PARAMS, indices)
    np.testing.assert_allclose(values["w"], [-0.01, 0.0])  # with its sign
    back = jax.tree.map(adapters.scatter_values, PARAMS, indices, values)
    for name in PARAMS:
        np.testing.assert_array_equal(back[name], PARAMS[name])
    moved = adapters.scatter_values(PARAMS["w"], indices["w"], jnp.array([7.0, 8.0]))
    np.testing.assert_allclose(moved, [[0.5, 7.0], [8.0, 2.0]])
    for none in (jnp.zeros((2, 2), bool), jnp.zeros((0, 2), bool)):
        param = jnp.ones(none.shape)
        empty = adapters.masked_indices(none)
        np.testing.assert_array_equal(
            adapters.scatter_values(param, empty, adapters.gather_values(param, empty)), param
        )


def test_gradient_of_values_is_the_gathered_gradient():
    masks = adapters.small_weight_mask(PARAMS, threshold=0.02)
    indices = adapters.masked_indices(masks)
    values = adapters.gather_values(PARAMS, indices)
    loss = lambda p: jnp.sum(jnp.sin(p["w"] @ p["w"]) * (1 + p["b"])) + p["b"].prod()  # noqa: E731
    rebuilt = lambda p, v: jax.tree.map(adapters.scatter_values, p, indices, v)  # noqa: E731
    for_params, for_values = jax.jit(jax.grad(lambda p, v: loss(rebuilt(p, v)), argnums=(0, 1)))(PARAMS, values)
    expected = adapters.gather_values(jax.grad(loss)(PARAMS), indices)
    for name in PARAMS:
        np.testing.assert_allclose(for_values[name], expected[name], rtol=1e-6)
        np.testing.assert_array_equal(for_params[name], jnp.zeros_like(PARAMS[name]))  # frozen


def test_frozen_weights_stay_bit_identical():
    """AdamW with weight decay on the values alone."""
    param = jax.random.normal(KEY, (8, 8))
    mask = adapters.small_weight_mask(param, threshold=0.5)
    indices = adapters.masked_indices(mask)
    values = adapters.gather_values(param, indices)
    optimizer = optax.adamw(0.05, weight_decay=0.1)

    @jax.jit
    def step(values, state):
        gradient = jax.grad(lambda v: jnp.sum((adapters.scatter_values(param, indices, v) - 1) ** 2))(values)
        updates, state = optimizer.update(gradient, state, values)
        return optax.apply_updates(values, updates), state

    state = optimizer.init(values)
    for _ in range(5):
        values, state = step(values, state)
    after = adapters.scatter_values(param, indices, values)
    np.testing.assert_array_equal(after[~mask], param[~mask])
    assert np.all(np.asarray(after[mask] != param[mask]))
    # Reselection only ever shrinks the mask.
    again = adapters.reselect_mask(after, mask, threshold=0.5)
    np.testing.assert_array_equal(again, mask & (jnp.abs(after) < 0.5))
    assert 0 < int(again.sum()) < int(mask.sum())


def test_learning_rate_of_a_threshold():
    np.testing.assert_allclose(adapters.threshold_learning_rate(2e-3), 4.966e-4, rtol=1e-3)  # 4.97e-4 to three digits
    np.testing.assert_allclose(adapters.threshold_learning_rate(0.0, base=0.1), 0.1)
    np.testing.assert_allclose(adapters.threshold_learning_rate(0.5, base=1.0, slope=2.0), np.exp(-1), rtol=1e-6)


def test_rank_penalty_is_a_mean_over_eligible_matrices():
    keys = jax.random.split(KEY, 2)
    params = {
        "one": jax.random.normal(keys[0], (5, 6)), "two": jax.random.normal(keys[1], (7, 5)),
        "small": jnp.ones((4, 9)), "conv": jnp.ones((5, 5, 5, 5)), "bias": jnp.ones(9),
    }  # fmt: skip
    masks = adapters.small_weight_mask(params, threshold=0.8)
    penalty = lambda p: adapters.sparse_nuclear_penalty(p, masks, weight=0.1, min_dimension=4)  # noqa: E731
    norms = [np.linalg.norm(np.where(masks[name], params[name], 0), "nuc") for name in ("one", "two")]
    value, gradient = jax.jit(jax.value_and_grad(penalty))(params)
    np.testing.assert_allclose(value, 0.1 * np.mean(norms), rtol=1e-5)
    for name in ("one", "two"):
        subgradient = sparsity.nuclear_norm_subgradient(jnp.where(masks[name], params[name], 0.0))
        np.testing.assert_allclose(gradient[name], 0.05 * jnp.where(masks[name], subgradient, 0.0), atol=1e-6)
    for name in ("small", "conv", "bias"):
        np.testing.assert_array_equal(gradient[name], jnp.zeros_like(params[name]))
    # By default nothing of 64 or less takes part, and with nothing selected all is finite.
    assert adapters.sparse_nuclear_penalty(params, masks) == 0
    none = jax.tree.map(lambda m: jnp.zeros_like(m), masks)
    silent = jax.jit(jax.grad(lambda p: adapters.sparse_nuclear_penalty(p, none, min_dimension=4)))(params)
    np.testing.assert_array_equal(silent["one"], np.zeros((5, 6)))
    assert adapters.sparse_nuclear_penalty({}, {}) == 0


def test_bad_sparse_input():
    masks = adapters.small_weight_mask(PARAMS, threshold=0.02)
    for threshold in (-1.0, float("nan")):
        for call in (
            lambda t: adapters.small_weight_mask(PARAMS, threshold=t),
            lambda t: adapters.reselect_mask(PARAMS, masks, threshold=t),
            adapters.threshold_learning_rate,
        ):
            with pytest.raises(ValueError, match="threshold"):
                call(threshold)
    for fraction in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="fraction"):
            adapters.magnitude_threshold(PARAMS, fraction=fraction)
    with pytest.raises(ValueError, match="params must hold"):
        adapters.magnitude_threshold({}, fraction=0.5)
    with pytest.raises(ValueError, match="fraction decides a count"):
        jax.jit(lambda f: adapters.magnitude_threshold(PARAMS, fraction=f))(0.5)
    with pytest.raises(ValueError, match="masks must be a tree like params"):
        adapters.reselect_mask(PARAMS, {"w": masks["w"]}, threshold=0.1)
    with pytest.raises(ValueError, match="a leaf of params"):
        adapters.reselect_mask(PARAMS, {**masks, "w": masks["w"][:1]}, threshold=0.1)
    with pytest.raises(ValueError, match="masks must be a tree like params"):
        adapters.sparse_nuclear_penalty(PARAMS, {"w": masks["w"]})
    with pytest.raises(ValueError, match="weight"):
        adapters.sparse_nuclear_penalty(PARAMS, masks, weight=-1.0)
    with pytest.raises(ValueError, match="indices must be a tree like params"):
        adapters.gather_values(PARAMS, {"w": jnp.array([0])})
    with pytest.raises(ValueError, match="indices and values"):
        adapters.scatter_values(PARAMS["w"], jnp.array([0, 1]), jnp.ones(3))
    with pytest.raises(ValueError, match="indices"):
        adapters.scatter_values(PARAMS["w"], jnp.array([[0]]), jnp.ones((1, 1)))
    with pytest.raises(ValueError, match="masks decide shapes"):
        jax.jit(adapters.masked_indices)(masks)
