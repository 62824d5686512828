"""Small-loss selection and co-teaching: counts, ties, NaN, global batches, bad input."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from mlfuncs import noisy_labels

KEY = jax.random.key(0)
MESH = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


def over_devices(function, count):
    return jax.jit(jax.shard_map(function, mesh=MESH, in_specs=(P("data"),) * count, out_specs=P("data")))


@pytest.mark.parametrize("num_gradual", [2, 5, 10])
def test_schedule_is_linear_then_constant(num_gradual):
    epochs = jnp.arange(15)
    expected = np.concatenate([np.linspace(0, 0.3, num_gradual), np.full(15 - num_gradual, 0.3)])
    rates = noisy_labels.forget_rate_schedule(epochs, forget_rate=0.3, num_gradual=num_gradual)
    np.testing.assert_allclose(rates, expected, rtol=1e-6, atol=1e-7)
    traced = jax.jit(lambda e: noisy_labels.forget_rate_schedule(e, forget_rate=0.3, num_gradual=num_gradual))
    np.testing.assert_allclose(traced(epochs), expected, rtol=1e-6, atol=1e-7)


def test_schedule_edges():
    np.testing.assert_allclose(noisy_labels.forget_rate_schedule(jnp.arange(3), num_gradual=0), [0.2] * 3)
    np.testing.assert_allclose(noisy_labels.forget_rate_schedule(jnp.arange(3), num_gradual=1), [0, 0.2, 0.2])
    assert noisy_labels.forget_rate_schedule(2).shape == ()
    np.testing.assert_allclose(noisy_labels.forget_rate_schedule(2), 0.1)


def test_small_losses_by_hand():
    losses = jnp.array([0.3, 2.0, 0.1, 0.3, 5.0])
    keep = noisy_labels.small_loss_mask(losses, 0.6)  # floor(0.4 * 5) = 2; of the two 0.3 the first
    np.testing.assert_array_equal(keep, [True, False, True, False, False])
    np.testing.assert_array_equal(noisy_labels.small_loss_mask(losses, 0.0), [True] * 5)
    np.testing.assert_array_equal(noisy_labels.small_loss_mask(losses, 0.9), [False] * 5)


@pytest.mark.parametrize("batch", [1, 10, 1000, 50_000])
def test_count_survives_rounding(batch):
    losses = jnp.arange(batch, 0, -1.0)
    traced = jax.jit(noisy_labels.small_loss_mask)
    for rate in (0.0, 0.1, 0.2, 0.3, 0.45, 0.7, 0.9):
        expected = int(np.floor((1 - rate) * batch + 1e-6))
        assert int(noisy_labels.small_loss_mask(losses, rate).sum()) == expected
        mask = np.asarray(traced(losses, rate))
        assert mask.sum() == expected
        assert mask[batch - expected :].all()  # the smallest


def test_a_traced_rate_is_not_compiled_in():
    traces = []

    @jax.jit
    def mask(rate):
        traces.append(None)
        return noisy_labels.small_loss_mask(jnp.arange(10.0), rate)

    assert [int(mask(rate).sum()) for rate in (0.0, 0.5, 0.9)] == [10, 5, 1]
    assert len(traces) == 1


def test_nan_losses_come_last():
    losses = jnp.array([jnp.nan, 1.0, jnp.inf, 0.5, -jnp.nan])
    np.testing.assert_array_equal(noisy_labels.small_loss_mask(losses, 0.6), [False, True, False, True, False])
    np.testing.assert_array_equal(noisy_labels.small_loss_mask(losses, 0.4), [False, True, True, True, False])
    assert int(noisy_labels.small_loss_mask(losses, 0.2).sum()) == 4  # forced by the count


@pytest.mark.parametrize("rate", [0.0, 0.25, 0.6, 0.95])
def test_the_global_batch_is_ranked(rate):
    losses = jax.random.normal(KEY, (32,)).at[5].set(jnp.nan).at[9].set(jnp.inf)
    losses = losses.at[20].set(losses[3])  # a tie over devices
    sharded = over_devices(partial(noisy_labels.small_loss_mask, axis_name="data", forget_rate=rate), 1)(losses)
    np.testing.assert_array_equal(sharded, noisy_labels.small_loss_mask(losses, rate))


def test_the_global_batch_is_ranked_under_pmap():
    losses = jax.random.normal(KEY, (8, 3))
    masks = jax.pmap(lambda x: noisy_labels.small_loss_mask(x, 0.4, axis_name="data"), axis_name="data")(losses)
    np.testing.assert_array_equal(masks.reshape(-1), noisy_labels.small_loss_mask(losses.reshape(-1), 0.4))


def test_co_teaching_by_hand():
    a, b = jnp.array([1.0, 2.0, 3.0, 4.0]), jnp.array([10.0, 20.0, 30.0, 40.0])
    keep_a, keep_b = jnp.array([True, True, False, False]), jnp.array([False, False, True, False])
    for_a, for_b = noisy_labels.co_teaching_loss(a, b, keep_a, keep_b)
    np.testing.assert_allclose(for_a, [2, 4, 0, 0])
    np.testing.assert_allclose(for_b, [0, 0, 120, 0])
    np.testing.assert_allclose([for_a.mean(), for_b.mean()], [1.5, 30.0])  # means over what is kept


def test_co_teaching_of_half_batches_of_different_sizes():
    for_a, for_b = noisy_labels.co_teaching_loss(jnp.ones(3), jnp.ones(2), jnp.ones(3, bool), jnp.ones(2, bool))
    assert (for_a.shape, for_b.shape) == ((3,), (2,))


def test_nothing_kept_is_zero_with_gradient_zero():
    none, losses = jnp.zeros(3, bool), jnp.array([1.0, jnp.nan, jnp.inf])
    total = lambda x: sum(part.sum() for part in noisy_labels.co_teaching_loss(x, x, none, none))  # noqa: E731
    assert total(losses) == 0
    np.testing.assert_array_equal(jax.grad(total)(losses), np.zeros(3))
    empty = noisy_labels.co_teaching_loss(*[jnp.zeros(0)] * 2, *[jnp.zeros(0, bool)] * 2)
    assert empty[0].shape == (0,)


def test_no_gradient_passes_through_the_choice():
    losses = jnp.array([0.5, 3.0, 0.2, 1.0])

    def total(losses):
        keep = noisy_labels.small_loss_mask(losses, 0.5)
        return noisy_labels.co_teaching_loss(losses, losses, keep, keep)[0].mean()

    np.testing.assert_allclose(jax.grad(total)(losses), [0.5, 0, 0.5, 0])


def test_co_teaching_over_devices_is_that_of_the_global_batch():
    a, b = jax.random.uniform(KEY, (2, 16))
    keep_a, keep_b = (noisy_labels.small_loss_mask(x, 0.6) for x in (b, a))
    expected = noisy_labels.co_teaching_loss(a, b, keep_a, keep_b)
    sharded = over_devices(partial(noisy_labels.co_teaching_loss, axis_name="data"), 4)(a, b, keep_a, keep_b)
    for ours, theirs in zip(sharded, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_small_loss_finds_planted_noise():
    """Clean losses exp(1), noisy ones 20 more: the mask is exactly the clean half."""
    clean = jax.random.bernoulli(KEY, 0.5, (200,))
    losses = jax.random.exponential(jax.random.key(1), (200,)) + jnp.where(clean, 0.0, 20.0)
    np.testing.assert_array_equal(noisy_labels.small_loss_mask(losses, float(1 - clean.mean())), clean)


def test_half_precision_is_widened():
    losses = jnp.array([1.0, 2.0], jnp.bfloat16)
    keep = jnp.ones(2, bool)
    assert noisy_labels.co_teaching_loss(losses, losses, keep, keep)[0].dtype == jnp.float32
    assert noisy_labels.small_loss_mask(jnp.array([3, 1, 2]), 0.5).tolist() == [False, True, False]


def test_bad_input():
    losses, keep = jnp.ones(3), jnp.ones(3, bool)
    for rate in (-0.1, 1.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="forget_rate"):
            noisy_labels.small_loss_mask(losses, rate)
        with pytest.raises(ValueError, match="forget_rate"):
            noisy_labels.forget_rate_schedule(1, forget_rate=rate)
    for count in (-1, 1.5):
        with pytest.raises(ValueError, match="num_gradual"):
            noisy_labels.forget_rate_schedule(1, num_gradual=count)
    with pytest.raises(ValueError, match="losses"):
        noisy_labels.small_loss_mask(jnp.ones((3, 2)), 0.1)
    with pytest.raises(ValueError, match="losses_a and keep_for_a"):
        noisy_labels.co_teaching_loss(losses, losses, keep[:2], keep)
    with pytest.raises(ValueError, match="losses_b"):
        noisy_labels.co_teaching_loss(losses, jnp.ones((3, 1)), keep, keep)
