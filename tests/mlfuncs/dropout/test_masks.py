"""Mask samplers and what masks do: hand-worked values, 5-sigma statistics, one mask for every mesh, edges, bad input.

A two-sided 5-sigma bound fails by chance with probability 6e-7 a comparison; keys are fixed, so what passes stays passed.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

from mlfuncs import dropout

KEY = jax.random.key(0)
MESH = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


def within_five_sigma(values, mean, variance):
    """The mean of independent `values`, of the given variance each, lies within 5 standard errors."""
    error = abs(float(np.mean(np.asarray(values, np.float64))) - mean)
    assert error <= 5 * np.sqrt(variance / np.size(values)), error / np.sqrt(variance / np.size(values))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8])
def test_share_of_kept_units(rate):
    mask = dropout.bernoulli_mask(KEY, (256, 128), rate=rate)
    assert mask.dtype == jnp.bool_
    within_five_sigma(mask, 1 - rate, rate * (1 - rate))
    # Neighbours along either axis are independent: products of deviations have variance (r (1 - r))^2.
    deviation = np.asarray(mask, np.float64) - (1 - rate)
    # So are units half an axis apart, which share a word of random bits.
    for other in (np.roll(deviation, 1, axis=0), np.roll(deviation, 1, axis=1), np.roll(deviation, 64, axis=1)):
        within_five_sigma(deviation * other, 0, (rate * (1 - rate)) ** 2)


@pytest.mark.parametrize("length", [1, 2, 7])
def test_rates_of_single_units_go_to_those_units(length):
    """At 6 standard errors, for 3 lengths and up to 7 units: wrong with probability below 1e-7."""
    rates = np.linspace(0.05, 0.95, length)
    one = dropout.bernoulli_mask(KEY, (1 << 15, length), rate=rates)
    each = dropout.bernoulli_mask(KEY, (1 << 15, length), rate=np.tile(rates, (1 << 15, 1)))
    np.testing.assert_array_equal(one, each)
    errors = np.mean(np.asarray(one), axis=0) - (1 - rates)
    assert np.all(np.abs(errors) <= 6 * np.sqrt(rates * (1 - rates) / (1 << 15)))


def test_rare_drops_have_their_rate():
    """A rate far below 2^-16: of 2^26 units 67 are dropped, give or take 8; 5 standard deviations are allowed."""
    rate = 1e-6
    dropped = jax.jit(lambda key: jnp.sum(~dropout.bernoulli_mask(key, (1 << 13, 1 << 13), rate=rate)))(KEY)
    expected = rate * (1 << 26)
    assert abs(int(dropped) - expected) <= 5 * np.sqrt(expected)


def test_masks_of_different_steps_and_samples_are_independent():
    rate = 0.3
    keys = [jax.random.fold_in(jax.random.fold_in(KEY, step), sample) for step in range(2) for sample in range(2)]
    deviations = [np.asarray(dropout.bernoulli_mask(key, (1 << 15,), rate=rate)) - (1 - rate) for key in keys]
    for i in range(4):
        for j in range(i):
            within_five_sigma(deviations[i] * deviations[j], 0, (rate * (1 - rate)) ** 2)


def test_the_same_key_and_step_draw_the_same_bits():
    draw = lambda key, step: dropout.bernoulli_mask(jax.random.fold_in(key, step), (64, 33), rate=0.4)  # noqa: E731
    first = draw(KEY, 1234)
    np.testing.assert_array_equal(first, draw(jax.random.key(0), 1234))  # a resumed run
    np.testing.assert_array_equal(first, jax.jit(draw)(KEY, jnp.int32(1234)))
    assert (np.asarray(first) != np.asarray(draw(KEY, 1235))).any()


@pytest.mark.parametrize("axes", [(0,), (1, 2), (-1,), (0, 1, 2)])
def test_shared_axes_are_constant_and_the_rest_is_not(axes):
    shape = (32, 5, 6, 16)
    mask = np.asarray(dropout.bernoulli_mask(KEY, shape, rate=0.5, shared_axes=axes))
    assert mask.shape == shape
    for axis in axes:
        np.testing.assert_array_equal(mask, np.broadcast_to(np.take(mask, [0], axis=axis), shape))
    assert 0 < mask.mean() < 1
    for axis in set(range(4)) - {axis % 4 for axis in axes}:
        assert (mask != np.take(mask, [0], axis=axis)).any()


def test_edges_of_the_rate():
    for rate, kept in ((0, True), (0.0, True), (1, False), (1.0, False)):
        for traced in (False, True):
            draw = lambda rate: dropout.bernoulli_mask(KEY, (1000,), rate=rate)  # noqa: E731
            mask = jax.jit(draw)(jnp.float32(rate)) if traced else draw(rate)
            np.testing.assert_array_equal(mask, np.full(1000, kept))


def test_a_rate_for_each_unit():
    rate = jnp.array([0.0, 0.25, 0.75, 1.0])
    mask = np.asarray(dropout.bernoulli_mask(KEY, (1 << 15, 4), rate=rate, dtype=jnp.float32))
    assert mask.dtype == np.float32
    for unit, r in enumerate([0.0, 0.25, 0.75, 1.0]):
        within_five_sigma(mask[:, unit], 1 - r, r * (1 - r) + 1e-30)
    # Learned rates can leave [0, 1]: arrays aren't checked, and act as the nearest rate.
    np.testing.assert_array_equal(dropout.bernoulli_mask(KEY, (2,), rate=jnp.array([-0.1, 1.1])), [True, False])


def test_rates_are_not_compiled_in():
    traces = []

    @jax.jit
    def draw(key, rate):
        traces.append(None)
        return dropout.dropout(key, jnp.ones(8), rate=rate)

    for rate in (0.1, 0.5, 0.9):
        draw(KEY, rate)
    assert len(traces) == 1


def test_masks_do_not_depend_on_the_mesh():
    draw = lambda key: dropout.bernoulli_mask(key, (64, 48), rate=0.5)  # noqa: E731
    compiled = jax.jit(draw, out_shardings=NamedSharding(MESH, P("data"))).lower(KEY).compile()
    mask = compiled(KEY)
    assert len(mask.sharding.device_set) == 8
    np.testing.assert_array_equal(mask, jax.jit(draw)(KEY))
    assert "all-gather" not in compiled.as_text()


def test_dropout_of_sharded_features_does_not_depend_on_the_mesh():
    x = jax.random.normal(KEY, (64, 48))
    drop = jax.jit(lambda key, x: dropout.dropout(key, x, rate=0.3))
    sharded = jax.device_put(x, NamedSharding(MESH, P("data")))
    np.testing.assert_array_equal(drop(KEY, sharded), drop(KEY, x))
    assert "all-gather" not in drop.lower(KEY, sharded).compile().as_text()


def test_shards_that_fold_in_their_index_are_independent():
    def draw(key):
        return dropout.bernoulli_mask(jax.random.fold_in(key, jax.lax.axis_index("data")), (2048,), rate=0.5)

    mask = jax.jit(jax.shard_map(draw, mesh=MESH, in_specs=P(), out_specs=P("data")))(KEY)
    deviation = np.asarray(mask).reshape(8, 2048) - 0.5
    for i in range(8):
        for j in range(i):
            within_five_sigma(deviation[i] * deviation[j], 0, 1 / 16)


def test_apply_mask_by_hand():
    x, mask = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[True, False, True]])
    np.testing.assert_allclose(dropout.apply_mask(x, mask, rate=0.5), [[2, 0, 6]])
    np.testing.assert_allclose(dropout.apply_mask(x, mask), [[1, 0, 3]])  # rate 0: no scale
    np.testing.assert_allclose(
        dropout.apply_mask(x, mask, rate=0.5, fill_value=-1.0), [[2, -1, 6]]
    )  # fill is not scaled
    soft = jnp.array([[1.0, 0.25, 0.0]])
    # m x / (1 - r) + (1 - m) f: 1 * 2, 0.25 * 4 + 0.75 * 8, 8.
    np.testing.assert_allclose(dropout.apply_mask(x, soft, rate=0.5, fill_value=8.0), [[2, 7, 8]])
    np.testing.assert_allclose(dropout.apply_mask(x, jnp.array([True, False, True]), rate=0.5), [[2, 0, 6]])


def test_the_expectation_is_the_input():
    rate, x = 0.3, np.array([1.0, -2.0, 0.5, 10.0])
    out = jax.vmap(lambda key: dropout.dropout(key, jnp.asarray(x), rate=rate))(jax.random.split(KEY, 1 << 14))
    for unit in range(4):
        within_five_sigma(out[:, unit], x[unit], x[unit] ** 2 * rate / (1 - rate))


@pytest.mark.parametrize("kind", [bool, jnp.float32])
def test_rate_one_is_fill_with_gradient_zero(kind):
    x = jnp.array([1.0, jnp.inf, -3.0])
    for mask in (jnp.zeros(3, kind), jnp.ones(3, kind)):
        np.testing.assert_array_equal(dropout.apply_mask(x, mask, rate=1.0, fill_value=7.0), [7, 7, 7])
        total = lambda x, rate, mask=mask: dropout.apply_mask(x, mask, rate=rate).sum()  # noqa: E731
        for_x, for_rate = jax.grad(total, argnums=(0, 1))(x, jnp.float32(1.0))
        np.testing.assert_array_equal(for_x, np.zeros(3))
        assert for_rate == 0


def test_what_is_dropped_leaves_no_trace():
    x, mask = jnp.array([1.0, jnp.nan, jnp.inf]), jnp.array([True, False, False])
    np.testing.assert_array_equal(dropout.apply_mask(x, mask, rate=0.5), [2, 0, 0])
    total = lambda x, rate: dropout.apply_mask(x, mask, rate=rate).sum()  # noqa: E731
    for_x, for_rate = jax.grad(total, argnums=(0, 1))(x, jnp.float32(0.5))
    np.testing.assert_allclose(for_x, [2, 0, 0])
    np.testing.assert_allclose(for_rate, 4.0)  # d/dr of 1 / (1 - r)
    # What is kept stays what it is; a float mask can't remove NaN.
    assert np.isnan(dropout.apply_mask(x, ~mask)[1])
    assert np.isnan(dropout.apply_mask(x, mask.astype(jnp.float32))[1])


def test_dtypes():
    x = jnp.full((4,), 1.0, jnp.bfloat16)
    assert dropout.apply_mask(x, jnp.ones(4, bool), rate=0.1).dtype == jnp.bfloat16
    assert dropout.apply_mask(x, jnp.ones(4), rate=0.1, fill_value=1.0).dtype == jnp.bfloat16
    # The scale is not rounded to bfloat16 first.
    np.testing.assert_array_equal(
        dropout.apply_mask(jnp.array([3.0], jnp.bfloat16), True, rate=0.1), jnp.bfloat16(3 / 0.9)
    )
    np.testing.assert_allclose(dropout.apply_mask(jnp.array([1, 2, 3]), jnp.ones(3, bool), rate=0.2), [1.25, 2.5, 3.75])
    assert dropout.dropout(KEY, jnp.zeros((0, 5))).shape == (0, 5)


def test_transformations():
    x = jax.random.normal(KEY, (3, 8))
    keys = jax.random.split(KEY, 3)
    rows = jax.vmap(lambda key, x: dropout.dropout(key, x, rate=0.5))(keys, x)
    np.testing.assert_array_equal(rows[1], dropout.dropout(keys[1], x[1], rate=0.5))
    check_grads(
        lambda x, m: dropout.apply_mask(x, m, rate=0.3, fill_value=2.0), (x, jax.random.uniform(KEY, (3, 8))), 2
    )


def test_protect():
    mask = jnp.array([[False, True, False], [False, False, True]])
    np.testing.assert_array_equal(
        dropout.protect(mask, jnp.array([True, False, False])), [[True, True, False], [True, False, True]]
    )
    np.testing.assert_allclose(dropout.protect(jnp.array([0.2, 0.3]), jnp.array([False, True])), [0.2, 1.0])
    with pytest.raises(ValueError, match="protected of shape"):
        dropout.protect(mask, jnp.ones(4, bool))


def test_temporal_mask_statistics():
    rate, shape = 0.3, (2048, 12)
    mask = np.asarray(dropout.temporal_mask(KEY, shape, rate=rate))
    assert mask.shape == (2048, 12, 1)
    within_five_sigma(mask, 1 - rate, rate * (1 - rate))
    deviation = mask[..., 0] - (1 - rate)
    within_five_sigma(deviation[:, 1:] * deviation[:, :-1], 0, (rate * (1 - rate)) ** 2)
    # One mask for all features.
    dropped = dropout.apply_mask(jnp.ones((2048, 12, 5)), mask)
    np.testing.assert_array_equal(dropped, np.broadcast_to(mask, (2048, 12, 5)))


def test_temporal_mask_edges():
    assert bool(jnp.all(dropout.temporal_mask(KEY, (5, 7), rate=0)))
    assert not bool(jnp.any(dropout.temporal_mask(KEY, (5, 7), rate=1)))
    assert dropout.temporal_mask(KEY, (3, 1), rate=0.5).shape == (3, 1, 1)
    # min_kept steps survive even rate 1, as far as there are so many; missing steps never come back.
    np.testing.assert_array_equal(dropout.temporal_mask(KEY, (50, 6), rate=1.0, min_kept=2).sum((1, 2)), np.full(50, 2))
    valid = jnp.arange(6) < jnp.array([0, 1, 3, 6])[:, None]
    kept = dropout.temporal_mask(KEY, (4, 6), rate=1.0, valid=valid, min_kept=2)[..., 0]
    np.testing.assert_array_equal(kept.sum(1), [0, 1, 2, 2])
    assert not bool(jnp.any(kept & ~valid))
    assert not bool(jnp.any(dropout.temporal_mask(KEY, (4, 6), rate=0.0, valid=valid)[..., 0] & ~valid))
    # Those kept by force are the largest draws, so they are among those that a smaller rate keeps.
    forced = dropout.temporal_mask(KEY, (50, 6), rate=1.0, min_kept=1)
    some = dropout.temporal_mask(KEY, (50, 6), rate=0.5)
    assert bool(jnp.all(~forced | some | ~jnp.any(some, axis=1, keepdims=True)))


@pytest.mark.parametrize("temperature", [0.05, 0.5, 3.0])
def test_the_median_of_a_concrete_mask_is_the_rate(temperature):
    rate = 0.3
    logit = np.log(rate / (1 - rate))
    mask = dropout.sample_concrete_mask(KEY, (1 << 15,), logit, temperature=temperature)
    assert mask.dtype == jnp.float32
    within_five_sigma(np.asarray(mask) < 0.5, rate, rate * (1 - rate))


def test_concrete_mask_by_hand():
    # 1 - sigmoid(2 (0 + logit 0.75)) = 1 / (1 + 3^2)
    np.testing.assert_allclose(dropout.concrete_mask(jnp.array([0.75]), 0.0, temperature=0.5), [0.1], rtol=1e-5)
    np.testing.assert_allclose(dropout.concrete_mask(jnp.array([0.5]), 0.0), [0.5])
    # Complementary draws at opposite rates give complementary masks.
    u = jax.random.uniform(KEY, (100,), minval=0.01, maxval=0.99)
    total = dropout.concrete_mask(u, 0.7, temperature=0.5) + dropout.concrete_mask(1 - u, -0.7, temperature=0.5)
    np.testing.assert_allclose(total, np.ones(100), rtol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_concrete_mask_edges(dtype):
    u = jnp.array([0.0, 0.5, 1.0], dtype)
    for logit in (-np.inf, -50.0, 0.0, 50.0, np.inf):
        mask = dropout.concrete_mask(u, logit)
        assert mask.dtype == jnp.float32
        assert np.all(np.isfinite(mask))
        slope = jax.grad(lambda logit: dropout.concrete_mask(u, logit).sum())(jnp.float32(logit))
        assert np.isfinite(slope)
    np.testing.assert_array_equal(dropout.concrete_mask(u, -np.inf), np.ones(3))
    np.testing.assert_array_equal(dropout.concrete_mask(u, np.inf), np.zeros(3))


def test_concrete_mask_has_a_gradient_to_the_rate_and_shares_axes():
    u = jnp.array([0.2, 0.5, 0.8])
    mask = dropout.concrete_mask(u, 0.3, temperature=0.4)
    slopes = jax.jacobian(lambda rho: dropout.concrete_mask(u, rho, temperature=0.4))(0.3)
    np.testing.assert_allclose(slopes, -mask * (1 - mask) / 0.4, rtol=1e-5)
    shared = dropout.sample_concrete_mask(KEY, (4, 6, 3), 0.0, shared_axes=(2,))
    np.testing.assert_array_equal(shared, np.broadcast_to(shared[..., :1], (4, 6, 3)))
    assert len(np.unique(shared)) > 10


def test_rate_entropy():
    rate = np.array([0.01, 0.3, 0.5, 0.9])
    expected = -rate * np.log(rate) - (1 - rate) * np.log(1 - rate)
    logits = jnp.asarray(np.log(rate / (1 - rate)), jnp.float32)
    np.testing.assert_allclose(dropout.rate_entropy(logits), expected, rtol=1e-5)
    np.testing.assert_allclose(
        jax.vmap(jax.grad(dropout.rate_entropy))(logits), -np.asarray(logits) * rate * (1 - rate), rtol=1e-4, atol=1e-7
    )
    far = jnp.array([-jnp.inf, -200.0, 200.0, jnp.inf, 30.0])
    np.testing.assert_allclose(dropout.rate_entropy(far), [0, 0, 0, 0, 31 * np.exp(-30)], rtol=1e-5, atol=1e-30)
    assert np.all(np.isfinite(jax.vmap(jax.grad(dropout.rate_entropy))(far)))
    assert np.isnan(dropout.rate_entropy(jnp.nan))


def test_mask_rate_penalty_and_projection():
    masks = {"a": jnp.array([[1.0, 0.0], [0.5, 0.5]]), "b": jnp.array([1.0, 1.0, 0.0, 1.0])}
    # |1 - 0.5 - 0.25| + |1 - 0.75 - 0.25|
    np.testing.assert_allclose(dropout.mask_rate_penalty(masks, 0.25), 0.25, rtol=1e-6)
    assert dropout.mask_rate_penalty((), 0.0) == 0
    gradient = jax.grad(lambda masks: dropout.mask_rate_penalty(masks, 0.25))(masks)
    np.testing.assert_allclose(gradient["a"], np.full((2, 2), -0.25))
    np.testing.assert_array_equal(gradient["b"], np.zeros(4))  # at the rate: 0, not NaN
    shard = lambda m: dropout.mask_rate_penalty(m, 0.25, axis_name="data")  # noqa: E731
    whole = jax.random.uniform(KEY, (16, 3))
    sharded = jax.jit(jax.shard_map(shard, mesh=MESH, in_specs=P("data"), out_specs=P()))(whole)
    np.testing.assert_allclose(sharded, dropout.mask_rate_penalty(whole, 0.25), rtol=1e-5)
    clipped = dropout.project_mask({"a": jnp.array([-1.0, 0.3, 2.0])})
    np.testing.assert_allclose(clipped["a"], [0, 0.3, 1])


@pytest.mark.parametrize("rate", [-0.1, 1.5, float("nan"), np.float32(-1)])
def test_rates_outside_the_unit_interval(rate):
    for call in (
        lambda: dropout.bernoulli_mask(KEY, (3,), rate=rate),
        lambda: dropout.apply_mask(jnp.ones(3), jnp.ones(3, bool), rate=rate),
        lambda: dropout.dropout(KEY, jnp.ones(3), rate=rate),
        lambda: dropout.temporal_mask(KEY, (3, 2), rate=rate),
        lambda: dropout.mask_rate_penalty((), rate),
    ):
        with pytest.raises(ValueError, match="rate must be in"):
            call()
    jax.jit(lambda rate: dropout.bernoulli_mask(KEY, (3,), rate=rate))(rate)  # traced: not checked


def test_bad_shapes():
    x = jnp.ones((2, 3))
    for axis in (2, -3):
        with pytest.raises(ValueError, match="shared_axes"):
            dropout.bernoulli_mask(KEY, (2, 3), shared_axes=(axis,))
    with pytest.raises(ValueError, match="rate of shape"):
        dropout.bernoulli_mask(KEY, (2, 3), rate=jnp.ones(4))
    for shape in ((4,), (2, 2), (5, 2, 3), (1, 2, 3)):  # the last two would enlarge x
        with pytest.raises(ValueError, match="mask of shape"):
            dropout.apply_mask(x, jnp.ones(shape, bool))
    with pytest.raises(ValueError, match="fill_value of shape"):
        dropout.apply_mask(x, jnp.ones(3, bool), fill_value=jnp.ones(2))
    with pytest.raises(ValueError, match="shape must be"):
        dropout.temporal_mask(KEY, (2, 3, 4), rate=0.5)
    with pytest.raises(ValueError, match="min_kept"):
        dropout.temporal_mask(KEY, (2, 3), rate=0.5, min_kept=4)
    with pytest.raises(ValueError, match="valid must have shape"):
        dropout.temporal_mask(KEY, (2, 3), rate=0.5, valid=jnp.ones((2, 4), bool))
    for temperature in (0.0, -1.0):
        with pytest.raises(ValueError, match="temperature"):
            dropout.concrete_mask(jnp.ones(3), 0.0, temperature=temperature)
    with pytest.raises(ValueError, match="rate_logit"):
        dropout.concrete_mask(jnp.ones(3), jnp.ones(4))
    with pytest.raises(ValueError, match="shared_axes"):
        dropout.sample_concrete_mask(KEY, (2, 3), 0.0, shared_axes=(5,))
    with pytest.raises(ValueError, match="rate must be in"):
        dropout.mask_rate_penalty((), 1.0)
