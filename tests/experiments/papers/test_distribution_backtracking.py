"""Where the data lie, what is exact about points, when a curve arrives, and a path that ends at the teacher."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.papers import distribution_backtracking as study
from experiments.reproducing import catalogue
from tests.experiments.papers.smoke import smoke


def test_the_data_lie_on_eight_places_of_a_circle():
    points = np.asarray(study.mixture(jax.random.key(0), 4000, radius=2.0, std=0.05))
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 2.0, atol=0.3)
    eighths = np.arctan2(points[:, 1], points[:, 0]) / (2 * np.pi / 8)
    np.testing.assert_allclose(eighths, np.round(eighths), atol=0.2)
    shares = np.bincount(np.round(eighths).astype(int) % 8, minlength=8) / 4000
    np.testing.assert_allclose(shares, 1 / 8, atol=0.03)


def test_the_estimate_of_points_weighs_them_by_nearness():
    data = jnp.array([[0.0, 0.0], [2.0, 0.0]])
    x, sigma = jnp.array([[1.0, 5.0], [2.0, 0.0], [2.0, 0.0]]), jnp.array([1.0, 0.1, 1.0])
    # As near to both; at one of them; with odds of e^2 to 1.
    odds = np.exp(2)
    expected = [[1.0, 0.0], [2.0, 0.0], [2 * odds / (1 + odds), 0.0]]
    np.testing.assert_allclose(study.empirical_denoise(x, sigma, data), expected, rtol=1e-5)


def test_the_first_arrival_of_a_curve_counts():
    curve = jnp.array([5.0, 2.0, 3.0, 1.0])
    assert study.updates_until(curve, 2.0, before=100, every=10) == 120
    assert study.updates_until(curve, 1.5, before=0, every=10) == 40
    assert np.isnan(study.updates_until(curve, 0.5, before=0, every=10))


def test_trailing_means_survive_a_huge_beginning():
    values = jnp.array([1e20, 4.0, 2.0, 6.0, 1.0])
    np.testing.assert_allclose(study.trailing_mean(values, 2), [1e20, 5e19, 3.0, 4.0, 3.5], rtol=1e-6)
    np.testing.assert_allclose(study.trailing_mean(values[1:], 3), [4.0, 3.0, 4.0, 3.0], rtol=1e-6)


def test_the_path_ends_at_the_teacher():
    config = catalogue.settings(catalogue.load("distribution_backtracking"), "backtracking", smoke=True)
    keys = jax.random.split(jax.random.key(0), 3)
    start = {
        "teacher": study._denoiser(config.shared).init(keys[0]),
        "student": study._student(config.shared).init(keys[1]),
    }
    path = study.record(config, start, keys[2])
    for leaf, teacher in zip(jax.tree.leaves(path), jax.tree.leaves(start["teacher"]), strict=True):
        assert leaf.shape[0] == config.checkpoints + 1
        np.testing.assert_array_equal(leaf[-1], teacher)
    # The farther back, the more has changed.
    kernel = path["layer_0"]["kernel"]
    changes = jnp.linalg.norm(kernel - kernel[-1], axis=(1, 2))
    assert np.all(np.diff(changes) < 0)


def test_a_smoke_run(tmp_path):
    smoke("distribution_backtracking", tmp_path)
