"""Which rows are annotated, what a round learns from, and the study from end to end."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from experiments.papers import probability_coreset as study
from experiments.papers import training
from tests.experiments.papers.smoke import smoke

KEY = jax.random.key(0)
select = jax.jit(study.select, static_argnames="count")


def seen(size=20, classes=4):
    keys = jax.random.split(jax.random.key(1), 3)
    label, distilled = (3 * jax.random.normal(key, (size, classes)) for key in keys[:2])
    return study.Answers(label, distilled, jax.random.normal(keys[2], (size, 5)))


def test_the_first_labels_are_one_of_each_class_and_fill_the_slots():
    labels = jnp.arange(30) % 3
    rows = study.first_labelled(KEY, labels, 3, 8)
    np.testing.assert_array_equal(labels[rows[:3]], [0, 1, 2])
    np.testing.assert_array_equal(rows[3:], jnp.full(5, rows[0]))
    others = study.first_labelled(jax.random.key(2), labels, 3, 8)
    assert rows[:3].tolist() != others[:3].tolist()


@pytest.mark.parametrize("rule", range(4))
def test_no_rule_asks_twice_for_one_row(rule):
    labelled = jnp.array([3, 7, 11, 3, 3])
    picks = select(rule, KEY, seen(), labelled, count=17, mix=0.5)
    assert sorted([*picks.tolist(), 3, 7, 11]) == list(range(20))


def test_entropy_and_coreset_pick_by_what_they_are_named_for():
    # Three sure of class 0, one in doubt, one sure of class 1.
    label = jnp.array([[9.0, 0.0], [9.0, 0.0], [9.0, 0.0], [0.5, 0.0], [0.0, 9.0]])
    features = jnp.array([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0], [1.0, 0.2], [1.0, 0.3]])
    answers = study.Answers(label, label, features)
    labelled = jnp.array([0, 0])
    expected = {"entropy": 3, "feature_coreset": 2, "probability_coreset": 4}
    for rule, row in expected.items():
        assert select(study.RULES.index(rule), KEY, answers, labelled, count=1, mix=0.5).tolist() == [row]


def test_without_a_teacher_the_head_for_labels_answers_alone():
    found = seen()
    np.testing.assert_allclose(study.probabilities(found, 0.0), jax.nn.softmax(found.label), rtol=1e-5)
    both = (jax.nn.softmax(found.label) + jax.nn.softmax(found.distilled)) / 2
    np.testing.assert_allclose(study.probabilities(found, 0.5), both, rtol=1e-5)


def test_the_widest_gap_is_to_the_nearest_labelled_point():
    points = jnp.array([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]])
    assert float(study.widest_gap(points, jnp.array([0]))) == 10
    assert float(study.widest_gap(points, jnp.array([0, 2]))) == 5


def test_a_round_learns_from_its_labels_and_its_teacher():
    made = ml_collections.FrozenConfigDict(
        {"widths": (8,), "steps": 80, "batch": 8, "unlabelled_batch": 8, "learning_rate": 0.05, "temperature": 2.0}
    )
    y = jnp.arange(40) % 2
    pool = training.Labelled(jnp.where(y[:, None] == 1, 0.5, -0.5) * jnp.ones((40, 64)), y)
    student = training.perceptron((8,), classes=4)
    taught = 5 * jax.nn.one_hot(1 - y, 2)  # wrong of all
    labelled = jnp.array([0, 1, 0, 0])
    params = study.train(made, KEY, student, pool, taught, labelled, 2, 0.5)
    found = study.answers(student, params, pool.x)
    np.testing.assert_array_equal(jnp.argmax(found.label, -1), y)
    np.testing.assert_array_equal(jnp.argmax(found.distilled, -1), 1 - y)


def test_an_unknown_rule_is_named():
    with pytest.raises(ValueError, match="got 'margin'"):
        study.run(ml_collections.ConfigDict({"rule": "margin"}), KEY, {})


def test_smoke(tmp_path):
    arms = smoke("probability_coreset", tmp_path)
    assert all(records["0"]["different_rows"] == 1 for records in arms.values())
