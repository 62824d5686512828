"""Which examples are kept, what weighs the teacher, and the scores of hard examples."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from experiments.papers import pruned_data_distillation as study
from experiments.papers import training
from mlfuncs import distillation
from tests.experiments.papers.smoke import smoke

KEY = jax.random.key(0)


def test_rules_keep_random_ones_or_the_highest_scores():
    shared = {"error_norm": jnp.array([0.1, 0.9, 0.5, 0.7]), "forgetting": jnp.array([3.0, 0.0, 2.0, 1.0])}
    np.testing.assert_array_equal(study.kept("error_norm", KEY, shared, 4, 0.5), [1, 3])
    np.testing.assert_array_equal(study.kept("forgetting", KEY, shared, 4, 0.5), [0, 2])
    first, second = (study.kept("random", jax.random.key(seed), shared, 100, 0.2) for seed in (1, 2))
    assert len(set(first.tolist())) == 20
    assert set(first.tolist()) != set(second.tolist())
    with pytest.raises(ValueError, match="rule must be one of random, error_norm, forgetting, got 'easiest'"):
        study.kept("easiest", KEY, shared, 4, 0.5)


def test_weights_go_from_labels_alone_to_the_teacher_alone():
    logits, taught = jax.random.normal(KEY, (2, 6, 4))
    labels = jnp.arange(6) % 4
    hard, both, soft = (float(study.objective(logits, taught, labels, w, 4.0)) for w in (0.0, 0.5, 1.0))
    np.testing.assert_allclose(hard, jnp.mean(training.cross_entropy(logits, labels)), rtol=1e-5)
    np.testing.assert_allclose(
        soft, jnp.mean(distillation.kullback_leibler(logits, taught, temperature=4.0)), rtol=1e-5
    )
    np.testing.assert_allclose(both, (hard + soft) / 2, rtol=1e-5)


def test_students_learn_from_the_kept_rows_alone():
    made = ml_collections.FrozenConfigDict(
        {"classes": 2, "widths": (8,), "steps": 60, "batch": 8, "learning_rate": 0.05, "temperature": 1.0}
    )
    y = jnp.arange(40) % 2
    x = jnp.where(y[:, None] == 1, 0.5, -0.5) * jnp.ones((40, 64))
    # All but the first ten say the opposite, and the teacher says it of all.
    told = training.Labelled(x, jnp.where(jnp.arange(40) < 10, y, 1 - y))
    taught = 10 * jax.nn.one_hot(1 - y, 2)
    found = study.students(
        KEY, told, training.Labelled(x, y), taught, jnp.arange(40), 10, jnp.array([0.0, 1.0]), config=made
    )
    np.testing.assert_array_equal(found, [1, 0])


def test_the_best_weight_is_the_mean_of_equal_ones():
    weights = jnp.array([0.0, 0.5, 1.0])
    assert float(study.best(weights, jnp.array([0.1, 0.3, 0.2]))) == 0.5
    assert float(study.best(weights, jnp.array([0.3, 0.1, 0.3]))) == 0.5
    assert float(study.best(weights, jnp.array([0.1, 0.3, 0.3]))) == 0.75


def test_the_teachers_targets_lower_the_error_of_few_noisy_examples():
    made = ml_collections.ConfigDict(
        {"soft_weights": (0.0, 1.0), "ridge": {"examples": 200, "width": 20, "regularization": 0.1}}
    )
    errors = np.mean([study.ridge_errors(made, jax.random.key(seed), 0.15) for seed in range(10)], axis=0)
    assert errors[1] < errors[0] / 4


def test_wrong_labels_are_among_the_hardest():
    made = ml_collections.ConfigDict(
        {"score_widths": (16,), "classes": 2, "score_networks": 2, "score_steps": 40, "forgetting_steps": 40}
        | {"teacher_batch": 16, "teacher_learning_rate": 1e-2}
    )
    y = jnp.arange(64) % 2
    x = jnp.where(y[:, None] == 1, 0.4, -0.4) * jnp.ones((64, 64)) + 0.1 * jax.random.normal(KEY, (64, 64))
    train = training.Labelled(x, jnp.where(jnp.arange(64) < 4, 1 - y, y))
    scores = study.error_norms(made, jax.random.key(1), train)
    assert set(jnp.argsort(-scores)[:4].tolist()) == {0, 1, 2, 3}
    counts = study.forgetting(made, jax.random.key(2), train)
    assert counts.shape == (64,)
    assert float(counts[:4].min()) > float(jnp.median(counts))


def test_smoke(tmp_path):
    arms = smoke("pruned_data_distillation", tmp_path)
    assert all(0 <= records["0"]["best_weight"] <= 1 for records in arms.values())
    assert "ridge_error_at_1" in arms["random, 5 %"]["0"]
