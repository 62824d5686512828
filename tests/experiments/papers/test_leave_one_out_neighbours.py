"""Coarse labels, the supervised contrastive baseline and the silhouette by hand; what the bank holds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.papers import leave_one_out_neighbours as study
from experiments.papers import training
from tests.experiments.papers.smoke import smoke


def test_coarse_labels_are_halves_or_pairs():
    np.testing.assert_array_equal(study.coarse(jnp.arange(10), 2), [0] * 5 + [1] * 5)
    np.testing.assert_array_equal(study.coarse(jnp.arange(10), 5), [0, 0, 1, 1, 2, 2, 3, 3, 4, 4])


def test_supervised_contrastive_by_hand():
    bank = jnp.array([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])
    labels = jnp.array([0, 0, 1, -1])
    queries = jnp.array([[5.0, 0.0], [0.0, 1.0]])
    # The first compares itself with places 1 and 2 (0 is its own, 3 is empty), of which 1 is positive; the second has none.
    losses = study.supervised_contrastive(
        queries, jnp.array([0, 1]), bank, labels, temperature=0.5, exclude=jnp.array([0, 2])
    )
    np.testing.assert_allclose(losses, [np.log(1 + np.exp(-2.0)), 0.0], atol=1e-6)


def test_silhouette_is_of_fine_classes_within_their_coarse_one():
    fine = jnp.array([0, 0, 1, 1, 5, 5, 6, 6])
    groups = study.coarse(fine, 2)
    points = jnp.array([[1.0, 0], [1, 0], [0, 1], [0, 1], [1, 0], [1, 0], [0, 1], [0, 1]])
    # Classes of the other half lie on the same points, and do not count.
    np.testing.assert_allclose(study.silhouette(points, fine, groups), 1.0, atol=1e-3)
    # Every class on both points: sqrt(2) to the other member, half of that on average to the other class.
    mixed = jnp.tile(jnp.eye(2), (4, 1))
    np.testing.assert_allclose(study.silhouette(mixed, fine, groups), -0.5, atol=1e-3)


@pytest.mark.parametrize("objective", ["supervised_contrastive", "neighbours"])
def test_the_own_entry_is_left_out_and_empty_places_do_not_count(objective):
    # One step on one example of each class: nothing of its class is in the bank but itself, so nothing is learned.
    network = training.perceptron((4,), classes=3)
    params = network.init(jax.random.key(0))
    train = training.Labelled(jax.random.normal(jax.random.key(1), (5, 64)), jnp.array([0, 1, 0, 1, 1]))

    def after(rows):
        given = {"widths": (4,), "projection": 3, "objective": objective, "neighbours": 2}
        return study.contrastive(params, train, jnp.array([rows]), 0.1, 1e-2, **given)["last"]["kernel"]

    np.testing.assert_array_equal(after([0, 1]), params["last"]["kernel"])
    assert not np.allclose(after([0, 1, 2, 3]), params["last"]["kernel"])


def test_smoke(tmp_path):
    smoke("leave_one_out_neighbours", tmp_path)
