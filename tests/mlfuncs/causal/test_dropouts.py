"""Dropout mechanisms by hand and by their shares; bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlfuncs import causal

KEY = jax.random.key(0)


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
    for call in (
        lambda: causal.logistic_dropout_probability(jnp.ones(3), 1.0, 0.0),
        lambda: causal.sample_dropout(KEY, jnp.ones(3), 0.5),
    ):
        with pytest.raises(ValueError, match="expression"):
            call()
    with pytest.raises(ValueError, match="rate must be"):
        causal.sample_dropout(KEY, jnp.ones((3, 2)), 1.5)
