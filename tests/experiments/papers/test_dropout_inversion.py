"""What the study of gradient inversion measures with: the assignment of a batch, and its control."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.papers import dropout_inversion as study
from tests.experiments.papers.smoke import smoke


def test_the_order_of_a_batch_is_no_error():
    true = jnp.asarray(np.random.default_rng(0).uniform(size=(4, 6)), jnp.float32)
    order = np.array([2, 0, 3, 1])
    found = true[order] + 0.1
    error, chosen = study.matched_error(found, true)
    np.testing.assert_allclose(error, 0.01, rtol=1e-4)
    np.testing.assert_array_equal(order[chosen], np.arange(4))
    np.testing.assert_allclose(found[chosen], true + 0.1, rtol=1e-6)


def test_the_assignment_is_one_to_one():
    # Both true rows are nearest to the first found row; only one may have it.
    found, true = jnp.array([[0.0], [1.0]]), jnp.array([[0.0], [0.25]])
    error, chosen = study.matched_error(found, true)
    np.testing.assert_array_equal(chosen, [0, 1])
    np.testing.assert_allclose(error, 0.75**2 / 2)
    with pytest.raises(ValueError, match=r"one shape, got \(2, 1\) and \(2, 2\)"):
        study.matched_error(found, jnp.zeros((2, 2)))


def test_shuffling_moves_values_within_their_leaf():
    tree = {"a": jnp.arange(40.0).reshape(8, 5), "b": 100 + jnp.arange(6.0)}
    mixed = study.shuffle_values(jax.random.key(0), tree)
    for name in tree:
        np.testing.assert_array_equal(np.sort(mixed[name], axis=None), np.sort(tree[name], axis=None))
        assert mixed[name].shape == tree[name].shape
        assert np.mean(mixed[name] == tree[name]) < 0.5


def test_smoke(tmp_path):
    smoke("dropout_inversion", tmp_path)
