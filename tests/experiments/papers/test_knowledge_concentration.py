"""Numbers from digits, whose specialist answers where, which units a class sees, and average precision by hand."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from configs.papers import knowledge_concentration as configs
from experiments.papers import knowledge_concentration as study
from experiments.papers.training import Labelled
from tests.experiments.papers.smoke import smoke

KEY = jax.random.key(0)
POOL = Labelled(jnp.repeat(jnp.arange(10.0)[:, None], 64, axis=1), jnp.arange(10))  # a picture is its label


def config(**changed):
    given = configs.get_config()
    made = ml_collections.ConfigDict(given.settings.to_dict())
    made.update(given.smoke.to_dict())
    made.update(changed)
    return made


def test_numbers_are_two_digits_side_by_side():
    x, y = study.numbers(KEY, POOL, 50, 0.0)
    np.testing.assert_array_equal(10 * x[:, 0] + x[:, 64], y)
    assert x.shape == (50, 128)
    noisy = study.numbers(KEY, POOL, 50, 0.2)
    np.testing.assert_array_equal(noisy.y, y)
    # 6,400 normal values: their deviation is within 4 % of 0.2 in more than 99.9 % of draws.
    assert abs(float(jnp.std(noisy.x - x)) / 0.2 - 1) < 0.04
    sevens = study.numbers(KEY, POOL, 50, 0.0, jnp.int32(7))
    np.testing.assert_array_equal(sevens.y // 10, 7)
    assert len(np.unique(sevens.y)) > 3


def test_students_learn_from_the_specialist_of_their_vertical_alone():
    found = jax.jit(lambda key: study.prepare(config().shared, key))(KEY)
    answers, vertical = np.asarray(found["answers"]).reshape(100, 10, 10), np.asarray(found["train"]["y"]) // 10
    np.testing.assert_array_equal(vertical, np.repeat(np.arange(10), 10))
    own = np.arange(10) == vertical[:, None]
    assert np.all(np.abs(answers[own]).max(-1) > 0)
    assert np.all(answers[~own] == 0)


@pytest.mark.parametrize(("shared_units", "units"), [(12, 12), (0, 120)])
def test_a_class_sees_the_units_of_its_vertical(shared_units, units):
    made = config(shared_units=shared_units)
    params = study.initial(made, KEY)
    kernel = params["network"]["last"]["kernel"]
    assert kernel.shape == (units, 100)
    # 1,200 values or more, of variance 1 / 12 whatever the number of units.
    assert abs(float(jnp.std(kernel)) * np.sqrt(12) - 1) < 0.1
    gradients = jax.grad(lambda params: study.logits(made, params, jnp.ones((4, 128)))[:, 35].sum())(params)
    of_units = np.asarray(gradients["network"]["layer_1"]["kernel"]).any(axis=0)
    seen = np.arange(units) // 12 == (3 if units == 120 else 0)
    assert not of_units[~seen].any()
    assert of_units[seen].any()


def test_paced_logits_have_the_length_of_the_pace():
    made = config(paced=True)
    params = study.initial(made, KEY)
    params["pace"] = jnp.arange(1.0, 11.0)
    found = study.logits(made, params, jax.random.normal(KEY, (4, 128))).reshape(4, 10, 10)
    np.testing.assert_allclose(jnp.linalg.norm(found, axis=-1), jnp.tile(params["pace"], (4, 1)), rtol=1e-4)


def test_mean_average_precision_by_hand():
    # Class 0 is found first and third: (1 + 2/3) / 2. Class 1 second: 1/2. Class 2 has no example.
    scores = jnp.array([[0.9, 0.1, 0.0], [0.8, 0.3, 0.0], [0.7, 0.4, 0.0]])
    labels = jnp.array([0, 1, 0])
    np.testing.assert_allclose(study.mean_average_precision(scores, labels), ((1 + 2 / 3) / 2 + 1 / 2) / 2, rtol=1e-6)
    np.testing.assert_allclose(study.mean_average_precision(jnp.eye(3), jnp.arange(3)), 1, rtol=1e-6)


def test_targets_of_nobody_known_are_refused():
    with pytest.raises(ValueError, match="targets must be one of labels, specialists, got 'all'"):
        study.run(config(targets="all"), KEY, {})


def test_smoke(tmp_path):
    smoke("knowledge_concentration", tmp_path)
