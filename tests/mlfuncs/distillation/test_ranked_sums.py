"""Running sums along ranks: definitions in float64, many rows and few, masks and extremes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from mlfuncs.distillation import _ranked_sums

KEY = jax.random.key(0)
SHAPES = [(3, 40), (2, 3, 17), (1200, 5), (1, 1), (0, 4)]


def tails_of(scores):
    scores = np.asarray(scores, np.float64)
    with np.errstate(divide="ignore"):
        columns = [scipy.special.logsumexp(scores[..., k:], axis=-1) for k in range(scores.shape[-1])]
    return np.stack(columns, axis=-1)


@pytest.mark.parametrize("shape", SHAPES)
def test_definitions(shape):
    scores = 5 * jax.random.normal(KEY, shape)
    weights = jax.random.normal(jax.random.key(1), shape)
    expected = tails_of(scores)
    tails = jax.jit(_ranked_sums.tail_log_sum_exp)(scores)
    np.testing.assert_allclose(tails, expected, rtol=1e-5, atol=1e-5)
    sums = np.cumsum(np.asarray(weights, np.float64) * np.exp(-expected), axis=-1) * np.exp(expected)
    np.testing.assert_allclose(jax.jit(_ranked_sums.discounted_sums)(weights, tails), sums, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 2000])
def test_masked_ends_and_wide_scores(rows):
    # One piece for 2,000 rows, a piece a class for a single one.
    scores = jnp.tile(jnp.array([-jnp.inf, 1e4, -1e4, 0.0, -jnp.inf, -200.0, -jnp.inf]), (rows, 1))
    tails = _ranked_sums.tail_log_sum_exp(scores)
    np.testing.assert_allclose(tails[0], [1e4, 1e4, 0, 0, -200, -200, -np.inf], rtol=1e-6)
    sums = _ranked_sums.discounted_sums(jnp.ones_like(scores), tails)
    np.testing.assert_allclose(sums[-1], [1, 2, 1, 2, 1, 2, 1], atol=1e-6)


def test_nan_stays():
    tails = _ranked_sums.tail_log_sum_exp(jnp.array([[0.0, jnp.nan, 1.0]]))
    np.testing.assert_array_equal(np.isnan(tails), [[True, True, False]])
