"""What exits and hints add to a student's loss, and how alike layers are."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from configs.papers import multi_exit_distillation as configs
from experiments.papers import digits_noise, training
from experiments.papers import multi_exit_distillation as study
from mlfuncs import distillation
from tests.experiments.papers.smoke import smoke

KEY = jax.random.key(0)


def start(**changed):
    given = configs.get_config()
    made = ml_collections.ConfigDict(given.settings.to_dict())
    made.update(given.smoke.to_dict())
    made.update(changed)
    setting = study.setting(made, {"teacher": study.teacher_network(made.shared).init(jax.random.key(7))})
    params = {"student": digits_noise.first_params(setting, KEY), **study.branches(made, setting, KEY)}
    return made, setting, params, digits_noise.batch(made, setting, jnp.arange(24), jax.random.key(1))


def head_and_exits(setting, params, batch):
    seen = setting.student.apply(params["student"], batch.x)
    exits = [h @ branch["kernel"] + branch["bias"] for h, branch in zip(seen["hidden"], params["exits"], strict=True)]
    return seen["logits"], exits


def test_exits_of_exponent_1_add_soft_cross_entropies():
    made, setting, params, batch = start(exits="teacher")
    head, exits = head_and_exits(setting, params, batch)
    soft = [distillation.soft_cross_entropy(logits, batch.teacher["logits"]) for logits in (head, *exits)]
    expected = jnp.mean(training.cross_entropy(head, batch.y) + sum(soft))
    np.testing.assert_allclose(study.student_loss(made, setting)(params, batch, None), expected, rtol=1e-5)
    made.exponent = 1.5
    assert abs(float(study.student_loss(made, setting)(params, batch, None) - expected)) > 0.1


def test_exits_of_labels_add_cross_entropies():
    made, setting, params, batch = start(exits="labels")
    head, exits = head_and_exits(setting, params, batch)
    expected = sum(jnp.mean(training.cross_entropy(logits, batch.y)) for logits in (head, *exits))
    np.testing.assert_allclose(study.student_loss(made, setting)(params, batch, None), expected, rtol=1e-5)


def test_a_hint_is_the_squared_distance_of_a_linear_map_from_the_last_feature_map():
    made, setting, params, batch = start(hint_weight=10.0)
    params["hint"] = jax.tree.map(jnp.zeros_like, params["hint"])
    head = setting.student.apply(params["student"], batch.x)["logits"]
    expected = jnp.mean(training.cross_entropy(head, batch.y)) + 10 * jnp.mean(batch.teacher["hidden"][-1] ** 2)
    np.testing.assert_allclose(study.student_loss(made, setting)(params, batch, None), expected, rtol=1e-5)


def test_no_gradient_of_any_loss_reaches_the_teacher():
    made, _, params, batch = start(exits="teacher")
    network = study.teacher_network(made.shared)

    def loss(teacher):
        given = study.setting(made, {"teacher": teacher})
        return study.student_loss(made, given)(params, batch._replace(teacher=given.teach(batch.x)), None)

    gradients = jax.grad(loss)(network.init(KEY))
    assert all(float(jnp.abs(leaf).max()) == 0 for leaf in jax.tree.leaves(gradients))


def test_alignment_of_layers():
    x = jax.random.normal(KEY, (40, 3))
    turned = x[:, ::-1] * jnp.array([2.0, -2.0, 2.0])
    np.testing.assert_allclose(study.mean_alignment([x], [turned.reshape(40, 3, 1)]), 1, rtol=1e-4)
    other = jax.random.normal(jax.random.key(1), (40, 3))
    pair = study.mean_alignment([x], [turned, other])
    np.testing.assert_allclose(pair, (1 + study.mean_alignment([x], [other])) / 2, rtol=1e-4)


def test_exits_taught_by_nobody_known_are_refused():
    with pytest.raises(ValueError, match="exits must be one of none, labels, teacher, got 'all'"):
        start(exits="all")


def test_smoke(tmp_path):
    arms = smoke("multi_exit_distillation", tmp_path)
    assert 0 <= arms["CE"]["0"]["alignment_across"] <= 1
