"""Sensitive-neuron dropout: scores and masks by hand, ties, NaN, windows, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlfuncs import dropout

KEY = jax.random.key(0)


def test_score_by_hand():
    # Unit 0 of the one text goes 0, 2, 1: variance 2/3, path 3. Unit 1 never moves.
    embeddings = jnp.array([[[0.0, 5.0]], [[2.0, 5.0]], [[1.0, 5.0]]])
    np.testing.assert_allclose(dropout.sensitivity_score(embeddings), [2.0, 0.0], rtol=1e-6)
    # A second text that stands still halves the mean.
    still = jnp.concatenate([embeddings, jnp.ones((3, 1, 2))], axis=1)
    np.testing.assert_allclose(dropout.sensitivity_score(still), [1.0, 0.0], rtol=1e-6)


def test_score_measures_change_over_checkpoints_not_between_texts():
    constant = jnp.broadcast_to(jax.random.normal(KEY, (1, 5, 7)), (4, 5, 7))
    np.testing.assert_array_equal(dropout.sensitivity_score(constant), np.zeros(7))


def test_score_scales_with_the_cube_and_ignores_offsets():
    e = jax.random.normal(KEY, (4, 5, 7))
    score = dropout.sensitivity_score(e)
    np.testing.assert_allclose(dropout.sensitivity_score(2 * e), 8 * score, rtol=1e-5)
    np.testing.assert_allclose(dropout.sensitivity_score(e + 3), score, rtol=1e-3)
    np.testing.assert_allclose(dropout.sensitivity_score(e[::-1]), score, rtol=1e-5)  # time reversed
    np.testing.assert_array_equal(dropout.sensitivity_score(e[:1]), np.zeros(7))
    assert np.all(np.isfinite(jax.grad(lambda e: dropout.sensitivity_score(e).sum())(jnp.zeros((3, 2, 2)))))


def test_score_accumulates_in_float32():
    e = (100 + jax.random.normal(KEY, (6, 50, 3))).astype(jnp.bfloat16)
    score = dropout.sensitivity_score(e)
    assert score.dtype == jnp.float32
    np.testing.assert_allclose(score, dropout.sensitivity_score(e.astype(jnp.float32)), rtol=1e-6)


def test_mask_by_hand():
    scores = jnp.array([0.1, 0.9, 0.5, 0.9, 0.2])
    np.testing.assert_array_equal(
        dropout.sensitive_unit_mask(scores, fraction=0.2), [True, False, True, True, True]
    )  # of the two 0.9 the first
    np.testing.assert_array_equal(dropout.sensitive_unit_mask(scores, fraction=0.6), [True, False, False, False, True])


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.2, 0.29, 0.7, 0.9, 1.0])
@pytest.mark.parametrize("units", [1, 7, 10, 100])
def test_mask_drops_an_exact_count(fraction, units):
    scores = jax.random.uniform(KEY, (units,))
    mask = dropout.sensitive_unit_mask(scores, fraction=fraction)
    assert mask.dtype == jnp.bool_
    assert int(jnp.sum(~mask)) == int(np.floor(fraction * units + 1e-6))
    if 0 < int(jnp.sum(~mask)) < units:
        assert scores[~mask].min() >= scores[mask].max()


def test_default_fraction_is_a_fifth():
    assert int(jnp.sum(~dropout.sensitive_unit_mask(jnp.arange(10.0)))) == 2


def test_nan_scores_are_never_taken_for_the_largest():
    scores = jnp.array([jnp.nan, 1.0, jnp.nan, 3.0, 2.0])
    np.testing.assert_array_equal(dropout.sensitive_unit_mask(scores, fraction=0.4), [True, True, True, False, False])
    assert not bool(jnp.any(dropout.sensitive_unit_mask(scores, fraction=1.0)))


def test_mask_stops_the_gradient_of_its_units():
    mask = dropout.sensitive_unit_mask(jnp.array([1.0, 5.0, 2.0]), fraction=0.34)
    x = jnp.ones((2, 4, 3))
    gradient = jax.grad(lambda x: (dropout.apply_mask(x, mask) ** 2).sum())(x)
    np.testing.assert_array_equal(gradient, np.broadcast_to([2.0, 0.0, 2.0], x.shape))  # and no rescaling
    rows = jax.vmap(lambda s: dropout.sensitive_unit_mask(s, fraction=0.34))(jnp.eye(3))
    np.testing.assert_array_equal(rows, ~np.eye(3, dtype=bool))


def test_window():
    window = jnp.zeros((3, 2, 4))
    for t in range(1, 5):
        window = jax.jit(dropout.push_window)(window, jnp.full((2, 4), float(t)))
    np.testing.assert_array_equal(window[:, 0, 0], [2, 3, 4])
    assert dropout.push_window(jnp.zeros((1, 2, 4)), jnp.ones((2, 4)))[0, 0, 0] == 1
    assert dropout.push_window(window.astype(jnp.bfloat16), jnp.ones((2, 4))).dtype == jnp.bfloat16


def test_bad_input():
    for shape in ((3, 4), (2, 3, 0), (0, 3, 4), (2, 0, 4)):
        with pytest.raises(ValueError, match="embeddings"):
            dropout.sensitivity_score(jnp.zeros(shape))
    for fraction in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="fraction"):
            dropout.sensitive_unit_mask(jnp.ones(3), fraction=fraction)
    with pytest.raises(ValueError, match="fraction decides a count"):
        jax.jit(lambda f: dropout.sensitive_unit_mask(jnp.ones(3), fraction=f))(0.5)
    for shape in ((2, 3), (0,)):
        with pytest.raises(ValueError, match="scores"):
            dropout.sensitive_unit_mask(jnp.zeros(shape))
    with pytest.raises(ValueError, match="embeddings must have shape"):
        dropout.push_window(jnp.zeros((3, 2, 4)), jnp.zeros((2, 5)))
    with pytest.raises(ValueError, match="window"):
        dropout.push_window(jnp.zeros((3, 2)), jnp.zeros(2))
