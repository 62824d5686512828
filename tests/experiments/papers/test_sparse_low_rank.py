"""Selections of one size, and a fine-tuning that stops where it should."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.papers import sparse_low_rank
from tests.experiments.papers.smoke import smoke

PARAMS = {"kernel": jnp.array([[0.1, -0.9, 0.5], [-0.2, 0.7, 0.6]]), "bias": jnp.array([0.3, -0.4, 0.8, 1.0])}


@pytest.mark.parametrize(
    ("select", "kernel", "bias"),
    [
        ("smallest", [[1, 0, 0], [1, 0, 0]], [1, 0, 0, 0]),
        ("largest", [[0, 1, 0], [0, 0, 0]], [0, 0, 1, 1]),
        ("all", np.ones((2, 3)), np.ones(4)),
    ],
)
def test_selection_by_hand(select, kernel, bias):
    masks = sparse_low_rank.selected(jax.random.key(0), PARAMS, select, 0.3)
    np.testing.assert_array_equal(masks["kernel"], np.array(kernel, bool))
    np.testing.assert_array_equal(masks["bias"], np.array(bias, bool))


def test_random_selections_are_of_the_same_size_and_differ():
    draws = [sparse_low_rank.selected(jax.random.key(seed), PARAMS, "random", 0.3) for seed in range(4)]
    assert {int(masks["kernel"].sum() + masks["bias"].sum()) for masks in draws} == {3}
    assert len({masks["kernel"].tobytes() + masks["bias"].tobytes() for masks in jax.device_get(draws)}) > 1
    with pytest.raises(ValueError, match="select must be"):
        sparse_low_rank.selected(jax.random.key(0), PARAMS, "middle", 0.3)


def test_shift_and_contrast():
    image = jnp.zeros((8, 8)).at[0, 0].set(1.0).at[7, 7].set(1.0)  # the second leaves the picture
    moved = sparse_low_rank.shifted(image.reshape(1, 64), 2, 0.5).reshape(8, 8)
    np.testing.assert_array_equal(moved, jnp.zeros((8, 8)).at[2, 2].set(0.5))


def adapt(params, masks, optimizer=None, penalty=None, **settings):
    loss = lambda p: jnp.sum((p["w"] - 1) ** 2)  # noqa: E731
    settings = {"target": 0.3, "max_steps": 50, "reselect_at": 0, "threshold": jnp.float32(0.5), **settings}
    return sparse_low_rank.adapt(loss, penalty, params, masks, optimizer or optax.sgd(0.1), **settings)


def test_each_of_a_batch_stops_at_the_first_loss_below_the_target():
    """The gap to 1 shrinks by 0.8 a step: from 1, its square is 0.262 after 3 steps; from 0.5, 0.25 at once."""
    starts = jnp.array([[0.0, 9.0], [0.5, 9.0], [-50.0, 9.0]])
    masks = {"w": jnp.array([True, False])}
    ends = jax.vmap(lambda w: adapt({"w": w}, masks, target=64.3))(starts)  # 64 of it are the frozen weight's
    np.testing.assert_array_equal(ends.step, [3, 0, 21])
    np.testing.assert_array_equal(ends.done, True)
    np.testing.assert_array_equal(ends.params["w"][:, 1], 9.0)
    np.testing.assert_allclose(ends.params["w"][:2, 0], [1 - 0.8**3, 0.5], rtol=1e-6)
    assert not adapt({"w": starts[2]}, masks, max_steps=5).done
    assert adapt({"w": starts[2]}, masks, max_steps=5).step == 5


def test_decay_does_not_move_frozen_weights():
    end = adapt(
        {"w": jnp.array([0.0, 9.0])}, {"w": jnp.array([True, False])}, optax.adamw(0.1, weight_decay=0.5), max_steps=4
    )
    assert end.params["w"][1] == 9.0
    assert end.params["w"][0] != 0.0


def test_reselection_freezes_what_has_grown_and_takes_a_step():
    """0.4 grows past 0.5 in one step, -3 does not: after reselection it alone moves, one update later than without."""
    params, masks = {"w": jnp.array([0.4, 0.0])}, {"w": jnp.array([True, True])}
    end = adapt(params, masks, target=0.0, max_steps=4, reselect_at=1, threshold=jnp.float32(0.5))
    np.testing.assert_array_equal(end.masks["w"], [False, True])
    np.testing.assert_allclose(end.params["w"], [1 - 0.6 * 0.8, 1 - 0.8**3], rtol=1e-6)


def test_reselection_starts_moments_afresh():
    """With momentum 1 and moments kept, the update after reselection would hold those of before."""
    end = adapt(
        {"w": jnp.array([0.0])},
        {"w": jnp.array([True])},
        optax.sgd(0.1, momentum=1.0),
        target=0.0,
        max_steps=3,
        reselect_at=1,
    )
    np.testing.assert_allclose(end.params["w"], [1 - 0.8**2], rtol=1e-6)


def test_smoke(tmp_path):
    smoke("sparse_low_rank", tmp_path)
