"""Running sums along ranks: definitions in float64, many rows and few, masks and extremes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from mlfuncs.distillation import _ranked_sums

KEY = jax.random.key(0)
# As on this device, and as on either kind of device.
TAILS = [_ranked_sums.tail_log_sum_exp, _ranked_sums._tails_in_steps, _ranked_sums._tails_in_pairs]
SUMS = [_ranked_sums.discounted_sums, _ranked_sums._discounted_in_steps, _ranked_sums._discounted_in_pairs]
BOTH = pytest.mark.parametrize(
    ("tail_sums", "sums_of"), list(zip(TAILS, SUMS, strict=True)), ids=["here", "steps", "pairs"]
)
SHAPES = [(3, 40), (2, 3, 17), (1200, 5), (1, 1), (0, 4)]


def tails_of(scores):
    scores = np.asarray(scores, np.float64)
    with np.errstate(divide="ignore"):
        columns = [scipy.special.logsumexp(scores[..., k:], axis=-1) for k in range(scores.shape[-1])]
    return np.stack(columns, axis=-1)


@BOTH
@pytest.mark.parametrize("shape", SHAPES)
def test_definitions(shape, tail_sums, sums_of):
    scores = 5 * jax.random.normal(KEY, shape)
    weights = jax.random.normal(jax.random.key(1), shape)
    expected = tails_of(scores)
    tails = jax.jit(tail_sums)(scores)
    np.testing.assert_allclose(tails, expected, rtol=1e-5, atol=1e-5)
    sums = np.cumsum(np.asarray(weights, np.float64) * np.exp(-expected), axis=-1) * np.exp(expected)
    np.testing.assert_allclose(jax.jit(sums_of)(weights, tails), sums, rtol=1e-4, atol=1e-5)


@BOTH
@pytest.mark.parametrize("rows", [1, 2000])
def test_masked_ends_and_wide_scores(rows, tail_sums, sums_of):
    # One piece for 2,000 rows, a piece a class for a single one.
    scores = jnp.tile(jnp.array([-jnp.inf, 1e4, -1e4, 0.0, -jnp.inf, -200.0, -jnp.inf]), (rows, 1))
    tails = tail_sums(scores)
    np.testing.assert_allclose(tails[0], [1e4, 1e4, 0, 0, -200, -200, -np.inf], rtol=1e-6)
    sums = sums_of(jnp.ones_like(scores), tails)
    np.testing.assert_allclose(sums[-1], [1, 2, 1, 2, 1, 2, 1], atol=1e-6)


@pytest.mark.parametrize("tail_sums", TAILS)
def test_nan_stays(tail_sums):
    tails = tail_sums(jnp.array([[0.0, jnp.nan, 1.0]]))
    np.testing.assert_array_equal(np.isnan(tails), [[True, True, False]])


@pytest.mark.parametrize("sums_of", SUMS)
def test_nan_stays_in_sums(sums_of):
    sums = sums_of(jnp.ones((1, 3)), jnp.array([[jnp.nan, 1.0, 0.0]]))
    np.testing.assert_array_equal(np.isnan(sums), [[True] * 3])
