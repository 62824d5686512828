"""What each network is given, who learns from whom, the best epoch, masks of one layer, and how a gate is moved."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from configs.papers import mixture_of_specialised_teachers as configs
from experiments.papers import mixture_of_specialised_teachers as study
from mlfuncs import distillation
from tests.experiments.papers.smoke import smoke

KEY = jax.random.key(0)
SILENT = study.Noise(0.0, 1.0, 0.0, 0.0)
WIDTHS = (6, 6)


def config(**changed):
    given = configs.get_config()
    made = ml_collections.ConfigDict(given.settings.to_dict())
    made.update(given.smoke.to_dict())
    made.update(changed)
    return made


@pytest.fixture(scope="module")
def data():
    return study.splits(KEY, config().shared)


def test_a_quarter_of_an_image_is_hidden_at_a_place_of_its_own():
    seen = np.asarray(study.glimpsed(KEY, jnp.ones((60, 8, 8, 1)), 0.0)).reshape(60, 8, 8)
    np.testing.assert_array_equal((seen == 0).sum((1, 2)), 16)
    rows, columns = (seen == 0).any(2), (seen == 0).any(1)
    np.testing.assert_array_equal(rows[:, :, None] & columns[:, None, :], seen == 0)  # in one piece
    # Of 25 places each of 60 images has one: that fewer than 10 turn up has a chance below 1e-9.
    assert len(np.unique(seen, axis=0)) >= 10
    noisy = np.asarray(study.glimpsed(KEY, jnp.ones((60, 8, 8, 1)), 0.5)) - seen.reshape(60, -1)
    # 3,840 normal values: their deviation is within 5 % of 0.5 in more than 99.9 % of draws.
    assert abs(noisy.std() / 0.5 - 1) < 0.05


def test_pairs_of_digits_sound_alike():
    labels = jnp.arange(10)
    same = study.spoken(KEY, labels, SILENT)
    np.testing.assert_allclose(same[::2], same[1::2], atol=1e-6)
    apart = study.spoken(KEY, labels, SILENT._replace(alike=0.0))
    np.testing.assert_array_equal(study.spoken(jax.random.key(9), labels, SILENT._replace(alike=0.0)), apart)
    distance = np.linalg.norm(apart[:, None] - apart[None], axis=-1) + 9 * np.eye(10)
    assert distance.min() > 0.5
    other = study.spoken(KEY, labels, SILENT._replace(speaker=1.0))
    assert np.linalg.matrix_rank(np.asarray(other - same), tol=1e-4) == 4


def test_each_network_gets_its_modalities_alone(data):
    train, validation, test = data
    assert [part.x.shape for part in data] == [(3, 20, 128)] * 3
    for x in (train.x, validation.x, test.x):
        both, other, own = np.asarray(x)
        np.testing.assert_array_equal(other[:, :64], 0)
        np.testing.assert_array_equal(own[:, 64:], 0)
        np.testing.assert_array_equal(own + other, both)
    assert not np.allclose(train.x[0], validation.x[0], atol=0.1)


def test_networks_that_exchange_agree_more(data):
    train = data[0]
    given = {"widths": WIDTHS, "batch": 10, "epochs": 10}
    logits = [study.said(study.together(KEY, train, x, 1e-2, **given), train.x, widths=WIDTHS) for x in (0.0, 1.0)]
    alone, exchanged = (float(jnp.mean(distillation.mutual(each))) for each in logits)
    assert exchanged < 0.5 * alone


def test_the_epoch_that_misses_least_is_kept():
    # A step adds 1, two an epoch: 2, 4, 6, 8; nearest to 5 are 4 and 6, of which the first is kept.
    best, least = study.fit_best(
        lambda x, rows, now: -x * now,
        lambda x: jnp.abs(x - 5),
        jnp.float32(0),
        optax.sgd(1.0),
        jnp.zeros((4, 2, 1), int),
        jnp.ones(4),
    )
    assert (float(best), float(least)) == (4.0, 1.0)
    none, _ = study.fit_best(
        lambda x, rows, now: -x * now,
        lambda x: jnp.abs(x - 5),
        jnp.float32(0),
        optax.sgd(1.0),
        jnp.zeros((4, 2, 1), int),
        jnp.array([0.0, 0, 2, 0]),
    )
    assert float(none) == 4.0


def test_masks_bring_teachers_nearer_to_the_student(data):
    params = study.together(KEY, data[0], 0.0, 1e-2, widths=WIDTHS, batch=10, epochs=5)
    given = {"widths": WIDTHS, "heads": 1, "batch": 10, "epochs": 6}
    found = study.specialised(KEY, params, *data, 1e-2, **given)
    assert found["logits"].shape == (4, 20, 10)
    assert found["tested"].shape == (4, 20, 10)
    # Masks of one teacher start from the same distance, and those of another from another one.
    before = np.asarray(found["apart_before"])
    np.testing.assert_array_equal(before[[0, 2]], before[[1, 3]])
    assert before[0] != before[2]
    assert np.all(np.asarray(found["apart"]) < before)


def test_weights_fall_as_in_the_official_code():
    found = np.asarray(study.emphasis(64, 0))
    np.testing.assert_allclose(found[[0, 1, 30, 31, 60, 61], 0], [1, 0.5, 0.5, 0.25, 0.25, 0.125])
    np.testing.assert_allclose(found[[0, 1, 10, 11], 1], [1, 0.9, 0.9, 0.81], rtol=1e-6)
    np.testing.assert_array_equal(study.emphasis(7, 3)[:, 0], [1, 1, 1, 1, 0.5, 0.5, 0.5])


def taught(data, teachers, weights, **changed):
    train, validation, test = data
    own = study.OWN
    return study.student(
        KEY,
        study.network(WIDTHS, 128).init(KEY),
        (train.x[own], train.y),
        (validation.x[own], validation.y),
        test.x[own],
        teachers,
        weights,
        1e-2,
        widths=WIDTHS,
        taught=study.Taught(**{"k": 1, "weighted": False, "detached": True, **changed}),
        batch=10,
    )


def test_only_a_gate_that_is_not_detached_moves_the_student(data):
    weights = jnp.tile(jnp.array([0.0, 1.0]), (3, 1))  # even use alone
    teachers = jax.random.normal(KEY, (2, 20, 10))
    logits, shares = taught(data, teachers, weights)
    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-5)
    alone, _ = taught(data, teachers, jnp.zeros((3, 2)))
    np.testing.assert_array_equal(logits, alone)
    moved, _ = taught(data, teachers, weights, detached=False)
    assert not np.allclose(moved, alone, atol=1e-6)


def test_a_weighted_gate_learns_who_is_near_the_student(data):
    # One teacher says what labels say, the other as surely the class after; even use does not count.
    train = data[0]
    right = 8 * jax.nn.one_hot(train.y, 10)
    wrong = jnp.roll(right, 1, axis=1)
    weights = jnp.tile(jnp.array([1.0, 0.0]), (20, 1))
    _, shares = taught(data, jnp.stack([wrong, right]), weights, k=2, weighted=True)
    _, fixed = taught(data, jnp.stack([wrong, right]), weights, k=2)
    assert float(jnp.mean(shares[:, 1])) > float(jnp.mean(fixed[:, 1])) + 0.02


def test_smoke(tmp_path):
    smoke("mixture_of_specialised_teachers", tmp_path)
