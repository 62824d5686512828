"""Removed blocks are identities, the loss is EDM's, sets reach the target, and what retraining is told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.papers import layer_pruning_normalized_distillation as study
from mlfuncs import diffusion
from tests.experiments.papers.smoke import smoke

HIDDEN = (8, 2, 4, 16)


@pytest.fixture(scope="module")
def params():
    return study.initial(jax.random.key(0), width=8, hidden=HIDDEN)


def given(size=6):
    return jax.random.normal(jax.random.key(1), (size, 64)), *study.noisy(jax.random.key(2), size)


def test_a_removed_block_is_the_identity(params):
    x, _, sigma = given()
    _, whole = study.network(params, x, sigma, jnp.ones(4))
    _, none = study.network(params, x, sigma, jnp.zeros(4))
    entered = diffusion.edm_coefficients(sigma, sigma_data=study.SIGMA_DATA)["in"][:, None] * x @ params["first"]
    gains = [1, 1, study.GAIN, 1]
    assert len(whole) == len(none) == study.STAGES
    for feature, gain in zip(none, gains, strict=True):
        np.testing.assert_allclose(feature, gain * entered, rtol=1e-5, atol=1e-6)
    _, last = study.network(params, x, sigma, jnp.array([1.0, 1, 1, 0]))
    np.testing.assert_allclose(last[3] * study.GAIN, last[2], rtol=1e-5)
    assert not np.allclose(whole[3] * study.GAIN, whole[2], rtol=1e-2)


def test_the_loss_is_edms(params):
    x, noise, sigma = given()
    run = lambda x, level: study.network(params, x / level["in"], level["sigma"], jnp.ones(4))[0]  # noqa: E731

    def denoise(noisy, sigma):
        level = diffusion.edm_coefficients(sigma, sigma_data=study.SIGMA_DATA)
        out = run(noisy * level["in"][:, None], {"in": level["in"][:, None], "sigma": sigma})
        return level["skip"][:, None] * noisy + level["out"][:, None] * out

    output, _ = study.network(params, x + sigma[:, None] * noise, sigma, jnp.ones(4))
    expected = diffusion.edm_loss(denoise, x, noise, sigma, sigma_data=study.SIGMA_DATA)
    np.testing.assert_allclose(study.task_loss(output, x, noise, sigma), expected, rtol=1e-4)


def test_sizes_follow_the_order_of_blocks():
    many = study.initial(jax.random.key(0), width=4, hidden=tuple(range(1, 13)))
    np.testing.assert_array_equal(study.sizes(many), np.arange(1, 13) * (4 + 16 + 1 + 4))


def test_every_choice_reaches_the_target():
    size = np.array([5.0, 1, 3, 9])
    cost = np.array([5.0, 0.1, 6, 1])
    weight = np.array([1.0, 9, 9, 9])
    chosen = {name: choose(cost, size, weight, 6.0).tolist() for name, choose in study.CHOICES.items()}
    assert chosen["knapsack"] == [False, False, False, True]
    assert chosen["greedy"] == [False, True, False, True]  # ratios 1, 0.1, 2 and 0.11
    assert chosen["innermost"] == [True, True, True, False]
    assert chosen["magnitude"] == [False, False, False, True]
    drawn = study.random_sets(np.random.default_rng(0), size, 6.0, 50)
    assert np.all(drawn @ size >= 6)
    assert len(np.unique(drawn, axis=0)) > 2
    sets = study._some(np.random.default_rng(0), 12, 60).sum(1)
    assert (sets.min(), sets.max()) == (2, 5)


def test_changes_are_those_of_the_output(params):
    x, _, _ = given()
    removed = jnp.array([[False] * 4, [False, True, False, True]])
    nothing, some = study.changes(params, x, jax.random.key(4), removed)
    assert float(nothing) == 0
    noise, sigma = study.noisy(jax.random.key(4), 6)
    output = [study.network(params, x + sigma[:, None] * noise, sigma, 1.0 - gone)[0] for gone in removed]
    np.testing.assert_allclose(some, jnp.mean((output[0] - output[1]) ** 2), rtol=1e-4)


def test_retraining_leaves_removed_blocks_and_the_teacher_alone(params):
    x, _, _ = given()
    keep, rows = jnp.array([1.0, 0, 1, 1]), jnp.arange(12).reshape(3, 4) % 6
    student = study.trained(params, x, rows, jax.random.key(5), keep, (params, jnp.float32(2)), peak=1e-2)
    for name, same in (("block_1", True), ("block_0", False)):
        moved = np.abs(student["blocks"][name]["second"] - params["blocks"][name]["second"]).max()
        assert (float(moved) == 0) == same
    plain = study.trained(params, x, rows, jax.random.key(5), keep, (params, jnp.float32(0)), peak=1e-2)
    assert not np.allclose(student["last"], plain["last"], atol=1e-5)


def test_smoke(tmp_path):
    smoke("layer_pruning_normalized_distillation", tmp_path)
