"""Scenes and their foreground, masks of every kind, shares and agreement by hand, and who predicts what is hard."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from configs.papers import hard_patch_mining as configs
from experiments import worlds
from experiments.papers import hard_patch_mining as study
from tests.experiments.papers.smoke import smoke

KEY = jax.random.key(0)
FORM = study.Form(channels=3, width=8, depth=1, decoder_depth=1, heads=2, patch=8, mask_ratio=0.75)


def config(**changed):
    given = configs.get_config()
    made = ml_collections.ConfigDict(given.settings.to_dict())
    made.update(given.smoke.to_dict())
    made.update(changed)
    return made


def given(count=16):
    return study.Pictures(
        x=jax.random.normal(KEY, (count, 32, 32, 3)),
        labels=jnp.zeros((count, 4), jnp.int32),
        foreground=jnp.tile(jnp.arange(16) < 4, (count, 1)),
    )


def test_scenes_have_a_class_in_each_cell_and_foreground_where_objects_are():
    train, test, classes = study.pictures(config(patch=4), KEY)
    assert classes == 30
    assert train.x.shape == (16, 32, 32, 3)
    assert test.labels.shape == (8, 4)
    assert np.all((np.asarray(train.labels) >= 0) & (np.asarray(train.labels) < 30))
    # A patch with an object has colour; the grounds have none.
    colour = np.ptp(np.asarray(train.x), axis=-1).reshape(16, 8, 4, 8, 4).mean((2, 4)).reshape(16, 64)
    foreground = np.asarray(train.foreground)
    assert colour[foreground].min() > 0.2
    assert colour[~foreground].max() < 0.4
    assert 0.2 < foreground.mean() < 0.6


def test_other_sets_have_one_class_and_no_foreground(monkeypatch):
    split = worlds.InMemory({"image": np.full((20, 32, 32, 1), 255, np.uint8), "label": np.arange(20)})
    world = worlds.World(split, split, (32, 32, 1), 20, to_model=lambda raw: raw / 127.5 - 1)
    monkeypatch.setattr(study.worlds, "build", lambda config: world)
    train, test, classes = study.pictures(config(data="mnist"), KEY)
    assert classes == 20
    assert train.x.shape == (16, 32, 32, 1)
    np.testing.assert_array_equal(test.labels, np.arange(8)[:, None])
    assert test.foreground.shape == (8, 0)
    assert all(np.isnan(value) for value in study.foreground_shares(jnp.ones((8, 16), bool), test.foreground))


def test_blocks_are_hidden_as_one():
    noise = study.block_noise(KEY, 50, 8)
    hidden = study.masked_modeling.hard_patch_mask(jnp.zeros((50, 64)), noise, mask_ratio=0.75)
    squares = np.asarray(hidden).reshape(50, 4, 2, 4, 2).sum((2, 4))
    np.testing.assert_array_equal(squares.sum((1, 2)), 48)
    # Twelve of sixteen squares: apart from a rare tie of coarse noise, none is hidden in part.
    assert np.mean((squares == 0) | (squares == 4)) > 0.99


def test_shares_of_hard_patches():
    np.testing.assert_allclose(study.shares("scheduled", 4), [0.125, 0.25, 0.375, 0.5])
    np.testing.assert_array_equal(study.shares("hardest", 3), 1)
    np.testing.assert_array_equal(study.shares("random", 3), 0)
    np.testing.assert_array_equal(study.shares("block", 3), 0)


def test_the_averaged_model_chooses_from_whole_pictures():
    params = jax.jit(study.network(FORM).init)(KEY)
    x = given().x
    predicted = study.network(FORM).apply(params, x, method="difficulty")
    sample = lambda share: study.sample_mask(KEY, FORM, params, x, jnp.float32(share), False, guided=True)  # noqa: E731
    hardest = np.argsort(-np.asarray(predicted), axis=1)
    hidden = np.take_along_axis(np.asarray(sample(1.0)), hardest, axis=1)
    np.testing.assert_array_equal(hidden, np.tile(np.arange(16) < 12, (16, 1)))
    half = np.take_along_axis(np.asarray(sample(0.5)), hardest, axis=1)
    assert half[:, :6].all()
    assert (half.sum(1) == 12).all()
    assert half[:, 6:].mean(0).max() < 1
    # Of 10 others 6 are drawn: within 5 standard deviations of their share over 16 pictures.
    assert np.abs(half[:, 6:].mean(0) - 0.6).max() < 5 * np.sqrt(0.24 / 16)


def test_shares_of_foreground_by_hand():
    mask = jnp.array([[True, True, False, False], [True, False, True, True]])
    foreground = jnp.array([[True, False, True, False], [False, False, True, False]])
    of_foreground, of_hidden = study.foreground_shares(mask, foreground)
    np.testing.assert_allclose([of_foreground, of_hidden], [2 / 3, 2 / 5], rtol=1e-6)


def test_rank_agreement_by_hand():
    first, second = jnp.array([[1.0, 2, 3, 9], [1.0, 2, 3, 9]]), jnp.array([[1.0, 3, 2, 0], [3.0, 2, 1, 9]])
    mask = jnp.array([[True, True, True, False]] * 2)
    # Of three pairs two are in order, then none.
    np.testing.assert_allclose(study.rank_agreement(first, second, mask), ((2 - 1) / 3 - 1) / 2, rtol=1e-6)
    np.testing.assert_allclose(study.rank_agreement(first, first, jnp.ones_like(mask)), 1, rtol=1e-6)


def test_cells_are_squares_of_the_grid():
    tokens = jnp.arange(16.0).reshape(1, 16, 1)
    np.testing.assert_allclose(study.by_cell(tokens, 2)[0, :, 0], [2.5, 4.5, 10.5, 12.5])
    np.testing.assert_allclose(study.by_cell(tokens, 1)[0, :, 0], [7.5])


def test_the_predictor_learns_from_its_loss_alone():
    params = jax.jit(study.network(FORM).init)(KEY)
    mask = jax.random.permutation(KEY, jnp.tile(jnp.arange(16) < 12, (16, 1)), axis=1, independent=True)

    @jax.jit
    def gradient(params, weight):
        return jax.grad(lambda params: study.losses(FORM, params, given().x, mask, weight)[0])(params)

    none, some = (gradient(params, jnp.float32(weight)) for weight in (0, 1))
    assert not np.any(none["to_difficulty"]["kernel"])
    assert np.any(some["to_difficulty"]["kernel"])
    # The errors are constants to it: pixels learn the same with it and without.
    np.testing.assert_allclose(some["to_pixels"]["kernel"], none["to_pixels"]["kernel"], rtol=1e-4, atol=1e-6)


def test_masks_nobody_knows_are_refused():
    with pytest.raises(ValueError, match="masks must be one of random, block, scheduled, hardest, none, got 'all'"):
        study.run(config(masks="all"), KEY)


def test_smoke(tmp_path):
    smoke("hard_patch_mining", tmp_path)
