"""Series of students: by hand, what is left to learn, prefixes, a set over devices, bad input."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from mlfuncs import distillation

KEYS = jax.random.split(jax.random.key(0), 2)
STUDENT, TEACHER = jax.random.normal(KEYS[0], (4, 3)), jax.random.normal(KEYS[1], (4, 3))
LABELS = jnp.array([0, 2, 1, 1])


def test_labels_and_teacher_by_hand():
    student, teacher = jnp.zeros((1, 2)), jnp.log(jnp.array([[0.75, 0.25]]))
    divergence = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    for alpha in (0.0, 0.3, 1.0):
        value = distillation.hard_soft(student, teacher, jnp.array([1]), alpha=alpha)
        np.testing.assert_allclose(value, [alpha * np.log(2) + (1 - alpha) * divergence], rtol=1e-5)
    tempered = distillation.knowledge_distillation(STUDENT, TEACHER, LABELS, soft_weight=0.5, temperature=3.0)
    np.testing.assert_allclose(distillation.hard_soft(STUDENT, TEACHER, LABELS, temperature=3.0), tempered, rtol=1e-6)
    gradient = jax.grad(lambda t: distillation.hard_soft(STUDENT, t, LABELS).sum())(TEACHER)
    np.testing.assert_array_equal(gradient, 0)


def test_weights_are_what_is_left_with_mean_one():
    ensemble = jnp.array([[1.0, 0.0], [0.5, 0.5], [0.2, 0.8]])
    teacher = jnp.array([[0.0, 1.0], [0.5, 0.5], [0.4, 0.6]])
    weights = distillation.remaining_error_weights(ensemble, teacher)
    np.testing.assert_allclose(weights, np.array([1, 0, 0.2]) / 0.4, rtol=1e-5)
    np.testing.assert_array_equal(distillation.remaining_error_weights(teacher, teacher), jnp.ones(3))
    gradient = jax.grad(lambda p: jnp.sum(distillation.remaining_error_weights(p, teacher) ** 2))(ensemble)
    np.testing.assert_array_equal(gradient, 0)


def test_weights_of_examples_over_devices_are_those_of_all():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    ensemble, teacher = (jax.nn.softmax(3 * jax.random.normal(key, (8, 3))) for key in KEYS)
    weights = partial(distillation.remaining_error_weights, axis_name="data")
    split = jax.jit(jax.shard_map(weights, mesh=mesh, in_specs=(P("data"), P("data")), out_specs=P("data")))
    whole = distillation.remaining_error_weights(ensemble, teacher)
    np.testing.assert_allclose(split(ensemble, teacher), whole, rtol=1e-5)
    np.testing.assert_allclose(whole.mean(), 1, rtol=1e-5)


def test_every_prefix_is_the_mean_of_its_students():
    students = jax.random.normal(KEYS[0], (3, 2, 4, 5)).at[1, ..., 0].set(-jnp.inf)
    probabilities = np.asarray(jax.nn.softmax(students))
    plain = distillation.prefix_ensemble(students)
    for k in (1, 2, 3):
        np.testing.assert_allclose(plain[k - 1], probabilities[:k].mean(0), rtol=1e-5)
    weighted = distillation.prefix_ensemble(students, jnp.array([1.0, 0.0, 3.0]))
    np.testing.assert_allclose(weighted[1], probabilities[0], rtol=1e-5)
    np.testing.assert_allclose(weighted[2], (probabilities[0] + 3 * probabilities[2]) / 4, rtol=1e-5)
    np.testing.assert_allclose(weighted.sum(-1), 1, rtol=1e-5)
    # A wild student has one vote, not all.
    loud = jnp.array([[[0.0, 2.0]], [[0.0, 2.0]], [[1e4, 0.0]]])
    assert int(jnp.argmax(distillation.prefix_ensemble(loud)[-1])) == 1


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: distillation.hard_soft(STUDENT, TEACHER, LABELS, alpha=-0.1), "alpha"),
        (lambda: distillation.hard_soft(STUDENT, TEACHER, LABELS, temperature=0.0), "temperature"),
        (lambda: distillation.hard_soft(STUDENT, TEACHER, LABELS.astype(float)), "labels must hold integers"),
        (lambda: distillation.hard_soft(STUDENT, TEACHER[:3], LABELS), "teacher_logits"),
        (lambda: distillation.remaining_error_weights(jnp.ones((2, 3)), jnp.ones((2, 4))), r"\(2, 3\) and \(2, 4\)"),
        (lambda: distillation.remaining_error_weights(-jnp.ones((2, 3)), jnp.ones((2, 3))), "ensemble_probabilities"),
        (lambda: distillation.remaining_error_weights(jnp.ones((0, 3)), jnp.ones((0, 3))), "at least one example"),
        (lambda: distillation.prefix_ensemble(STUDENT[0]), "student_logits"),
        (lambda: distillation.prefix_ensemble(STUDENT[:0]), "student_logits"),
        (lambda: distillation.prefix_ensemble(STUDENT, jnp.ones(3)), r"weights must have shape \(4,\)"),
        (lambda: distillation.prefix_ensemble(STUDENT, jnp.array([0.0, 1, 1, 1])), "the first of weights"),
        (lambda: distillation.prefix_ensemble(STUDENT, jnp.array([1.0, -1, 1, 1])), "weights"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
