"""Score changes of edges by hand and by regression, at their edges, many at a time; bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlfuncs import causal


def test_rescaled_correlation():
    rho, n, full = 0.3, 103, 1003
    # The same statistic: sqrt(N - 3) atanh(rho') = sqrt(n - 3) atanh(rho).
    rescaled = causal.rescale_partial_correlation(rho, n, full)
    np.testing.assert_allclose(np.sqrt(1000) * np.arctanh(rescaled), 10 * np.arctanh(rho), rtol=1e-5)
    np.testing.assert_allclose(causal.rescale_partial_correlation(-0.3, n, full), rescaled)
    np.testing.assert_allclose(causal.rescale_partial_correlation(jnp.array([-0.3, 1.0]), 50, 50), [0.3, 1.0])
    np.testing.assert_array_equal(causal.rescale_partial_correlation(0.5, jnp.array([0, 3]), 100), [0, 0])
    assert 0 < causal.rescale_partial_correlation(1.0, n, full) < 1


def test_score_change():
    np.testing.assert_allclose(causal.bic_score_change(0.5, 100), -50 * np.log(0.75) - np.log(100) / 2, rtol=1e-5)
    # A larger penalty is a weaker one; without correlation an edge only costs.
    assert causal.bic_score_change(0.1, 100, penalty=1.0) < causal.bic_score_change(0.1, 100, penalty=2.0)
    np.testing.assert_allclose(causal.bic_score_change(0.0, 100, penalty=1.0), -np.log(100), rtol=1e-6)
    assert np.isfinite(causal.bic_score_change(1.0, 100))
    assert np.isfinite(jax.grad(causal.bic_score_change)(1.0, 100))


@pytest.mark.parametrize("delete", ["conditioning", "all"])
def test_score_changes_of_many_edges(delete):
    """Each as composed from its correlation: of the rows that are left, as significant in all rows."""
    z = jax.random.normal(jax.random.key(0), (300, 4)) @ jax.random.normal(jax.random.key(1), (4, 4)) + 3
    data = causal.sample_dropout(jax.random.key(2), z, 0.3)
    edges = [(0, 1, ()), (1, 0, ()), (0, 3, (2,)), (2, 1, (0, 3))]
    given = np.array([[k in others for k in range(4)] for _, _, others in edges])
    i, j = (np.array([edge[k] for edge in edges]) for k in range(2))
    gains = causal.zero_deleted_score_changes(data, i, j, given, penalty=1.0, delete=delete)
    for row, gain in enumerate(gains):
        found = causal.zero_deleted_partial_correlation(data, i[row], j[row], given[row], delete=delete)
        rho = causal.rescale_partial_correlation(found["correlation"], found["num_samples"], 300)
        np.testing.assert_allclose(gain, causal.bic_score_change(rho, 300, penalty=1.0), rtol=1e-3, atol=1e-3)
    assert gains[0] == pytest.approx(gains[1], rel=1e-5)
    assert causal.zero_deleted_score_changes(data, [], [], np.zeros((0, 4))).shape == (0,)


def test_score_change_is_that_of_the_likelihood():
    """Without zeros: half the criterion of least squares, in float64, with the parent less that without."""
    mix = jnp.eye(4) + jax.random.uniform(jax.random.key(1), (4, 4))
    data = np.asarray(jax.random.normal(jax.random.key(0), (200, 4)) @ mix)

    def criterion(j, parents):
        design = np.column_stack([np.ones(200), data[:, parents]]).astype(np.float64)
        residual = data[:, j] - design @ np.linalg.lstsq(design, data[:, j], rcond=None)[0]
        return -100 * np.log(np.mean(residual**2)) - len(parents) * np.log(200) / 2

    others = np.array([[False, False, True, True]])
    gain = causal.zero_deleted_score_changes(data, [0], [1], others)
    np.testing.assert_allclose(gain, [criterion(1, [2, 3, 0]) - criterion(1, [2, 3])], rtol=1e-3)


def test_score_changes_where_nothing_can_be_tested():
    """All cells deleted: the edge only costs."""
    data = np.ones((50, 3), np.float32) * np.arange(50)[:, None]
    data[:, 2] = 0
    gain = causal.zero_deleted_score_changes(data, [0], [1], [[False, False, True]])
    np.testing.assert_allclose(gain, [-np.log(50) / 2], rtol=1e-5)


def test_bad_input():
    with pytest.raises(ValueError, match="penalty"):
        causal.bic_score_change(0.1, 10, penalty=0.0)
    data, nothing = np.ones((5, 3), np.float32), np.zeros((1, 3))
    with pytest.raises(ValueError, match=r"penalty must be .*got -1"):
        causal.zero_deleted_score_changes(data, [0], [1], nothing, penalty=-1.0)
    with pytest.raises(ValueError, match="delete"):
        causal.zero_deleted_score_changes(data, [0], [1], nothing, delete="some")
    with pytest.raises(ValueError, match="different"):
        causal.zero_deleted_score_changes(data, [0], [0], nothing)
    with pytest.raises(ValueError, match="NaN"):
        causal.zero_deleted_score_changes(data * np.nan, [0], [1], nothing)
