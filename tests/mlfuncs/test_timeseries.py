"""Sequences: means over what is valid."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from mlfuncs import timeseries


def test_masked_mean_by_hand():
    values, valid = jnp.array([[1.0, 2.0, 100.0], [6.0, 100.0, 100.0]]), jnp.array([[1, 1, 0], [1, 0, 0]], bool)
    np.testing.assert_allclose(timeseries.masked_mean(values, valid), 3.0)
    # Over steps and dimensions: the sum over (valid steps times Z).
    wide = jnp.stack([values, 3 * values], axis=-1)
    np.testing.assert_allclose(timeseries.masked_mean(wide, valid), 6.0)
    np.testing.assert_allclose(timeseries.masked_mean(wide, valid[..., None]), 6.0)
    np.testing.assert_allclose(timeseries.masked_mean(values, jnp.ones((2, 3), bool)), values.mean(), rtol=1e-6)


def test_what_is_not_valid_leaves_no_trace():
    values, valid = jnp.array([1.0, jnp.nan, jnp.inf]), jnp.array([True, False, False])
    value, gradient = jax.jit(jax.value_and_grad(timeseries.masked_mean))(values, valid)
    assert value == 1
    np.testing.assert_array_equal(gradient, [1, 0, 0])
    assert np.isnan(timeseries.masked_mean(values, ~valid))


def test_nothing_valid_is_zero():
    value, gradient = jax.value_and_grad(timeseries.masked_mean)(jnp.full((2, 3), jnp.nan), jnp.zeros((2, 3), bool))
    assert value == 0
    np.testing.assert_array_equal(gradient, np.zeros((2, 3)))
    assert timeseries.masked_mean(jnp.zeros((0, 3)), jnp.zeros((0, 3), bool)) == 0


def test_mean_of_the_global_batch():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    values, valid = jnp.arange(32.0).reshape(16, 2), jnp.arange(32).reshape(16, 2) % 5 < 2
    shard = partial(timeseries.masked_mean, axis_name="data")
    sharded = jax.jit(jax.shard_map(shard, mesh=mesh, in_specs=P("data"), out_specs=P()))(values, valid)
    np.testing.assert_allclose(sharded, timeseries.masked_mean(values, valid), rtol=1e-6)


def test_dtypes():
    # 4096 ones: bfloat16 would stop counting at 256.
    ones = jnp.ones(4096, jnp.bfloat16)
    assert timeseries.masked_mean(ones, jnp.ones(4096, bool)) == 1
    assert timeseries.masked_mean(ones, jnp.ones(4096, bool)).dtype == jnp.float32
    np.testing.assert_allclose(timeseries.masked_mean(jnp.array([1, 2]), jnp.ones(2, bool)), 1.5)


@pytest.mark.parametrize("shape", [(3,), (2, 4), (2, 3, 5), (2, 3, 4, 1)])
def test_bad_input(shape):
    with pytest.raises(ValueError, match="valid of shape"):
        timeseries.masked_mean(jnp.ones((2, 3, 4)), jnp.ones(shape, bool))
