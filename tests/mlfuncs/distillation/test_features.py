"""Distillation of features: by hand, what normalisation promises, gradients, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlfuncs import distillation

KEYS = jax.random.split(jax.random.key(0), 4)
STUDENT, TEACHER = (
    {"down": jax.random.normal(a, (3, 4, 4, 2)), "up": jax.random.normal(b, (3, 5))} for a, b in (KEYS[:2], KEYS[2:])
)


def test_terms_by_hand():
    # Mean squares of the difference 4 and 1, of the teacher 4 and 16.
    student, teacher = [jnp.array([[4.0, 0.0]]), jnp.array([[5.0]])], [jnp.array([[2.0, 2.0]]), jnp.array([[4.0]])]
    for exponent, expected in ((0, 4 + 1), (1, 4 / 2 + 1 / 4), (2, 4 / 4 + 1 / 16)):
        value = distillation.normalized_feature(student, teacher, exponent=exponent)
        np.testing.assert_allclose(value, [expected], rtol=1e-6)


def test_all_stages_count_equally_whatever_their_scale():
    scaled = [{**features, "down": 1e4 * features["down"]} for features in (STUDENT, TEACHER)]
    base = distillation.normalized_feature(STUDENT, TEACHER)
    np.testing.assert_allclose(distillation.normalized_feature(*scaled), base, rtol=1e-5)
    assert np.all(distillation.normalized_feature(*scaled, exponent=0) > 1e6 * base)
    np.testing.assert_array_equal(distillation.normalized_feature(TEACHER, TEACHER), 0)


def test_half_precision_is_summed_in_float32():
    student, teacher = jnp.full((1, 64), 3000, jnp.float16), jnp.full((1, 64), 1000, jnp.float16)
    value = distillation.normalized_feature([student], [teacher])
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, [4.0])


def test_gradients_pass_to_the_student_alone_and_are_finite():
    loss = lambda s, t: distillation.normalized_feature(s, t).sum()  # noqa: E731
    student, teacher = jax.grad(loss, argnums=(0, 1))(STUDENT, TEACHER)
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(student))
    for leaf in jax.tree.leaves(teacher):
        np.testing.assert_array_equal(leaf, 0)
    dead = jax.tree.map(jnp.zeros_like, TEACHER)  # legal, and enormous
    for leaf in jax.tree.leaves(jax.grad(loss)(STUDENT, dead)):
        assert np.all(np.isfinite(leaf))


def test_the_three_terms_add_up():
    output, target = jax.random.normal(KEYS[0], (2, 3, 4))
    task = jnp.arange(3.0)
    total = distillation.feature_and_output(
        output, target, STUDENT, TEACHER, task, output_weight=0.5, feature_weight=jnp.float32(2), exponent=1
    )
    features = distillation.normalized_feature(STUDENT, TEACHER, exponent=1)
    np.testing.assert_allclose(total, task + 0.5 * jnp.mean((output - target) ** 2, 1) + 2 * features, rtol=1e-5)
    frozen = jax.grad(lambda t: distillation.feature_and_output(output, t, STUDENT, TEACHER, task).sum())(target)
    np.testing.assert_array_equal(frozen, 0)


PATCHES = jax.random.normal(KEYS[0], (4, 2, 6, 3))  # both predictions, the early and the late layer


def test_cosine_distance_by_hand():
    rows = jnp.array([[3.0, 0.0], [0.0, 2.0], [-1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    expected = [0.0, 1.0, 2.0, 1.0, 1 - np.sqrt(0.5)]
    np.testing.assert_allclose(
        distillation.cosine_distance(rows, jnp.tile(jnp.array([5.0, 0.0]), (5, 1))), expected, 1e-6
    )
    # Below eps a norm counts as eps.
    np.testing.assert_allclose(distillation.cosine_distance(jnp.array([0.5, 0]), jnp.array([1.0, 0]), eps=1.0), 0.5)


def test_transfer_of_layers_is_both_ways_and_a_mean_over_patches():
    forward, backward, early, late = PATCHES
    value = distillation.layer_transfer(forward, backward, early, late)
    both = distillation.cosine_distance(forward, late) + distillation.cosine_distance(backward, early)
    np.testing.assert_allclose(value, both.mean(1), rtol=1e-6)
    np.testing.assert_allclose(distillation.layer_transfer(2 * late, 3 * early, early, late), 0, atol=1e-6)
    gradients = jax.grad(lambda *x: distillation.layer_transfer(*x).sum(), argnums=(0, 1, 2, 3))(*PATCHES)
    assert all(float(jnp.abs(gradient).max()) > 0 for gradient in gradients[:2])
    np.testing.assert_array_equal(jnp.stack(gradients[2:]), 0)
    for edge in (jnp.zeros_like(late), late):
        assert np.all(np.isfinite(jax.grad(lambda f: distillation.layer_transfer(f, f, early, late).sum())(edge)))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: distillation.cosine_distance(jnp.ones((2, 3)), jnp.ones(3)), r"\(2, 3\) and \(3,\)"),
        (lambda: distillation.cosine_distance(jnp.ones((2, 0)), jnp.ones((2, 0))), "last axis"),
        (lambda: distillation.cosine_distance(jnp.ones(2), jnp.ones(2), eps=0.0), "eps"),
        (lambda: distillation.layer_transfer(*PATCHES[:3], PATCHES[3, :1]), "late"),
        (lambda: distillation.layer_transfer(*PATCHES[:, 0]), "forward_prediction"),
        (lambda: distillation.layer_transfer(*PATCHES[:, :, :0]), "at least one patch"),
        (lambda: distillation.normalized_feature([], []), "at least one stage"),
        (lambda: distillation.normalized_feature(STUDENT, [*TEACHER.values()]), "teacher_features must be a tree like"),
        (lambda: distillation.normalized_feature([jnp.ones((2, 3))], [jnp.ones((2, 4))]), r"\(2, 3\) and \(2, 4\)"),
        (lambda: distillation.normalized_feature(*[[jnp.ones((2, 3)), jnp.ones((3, 3))]] * 2), "of 2 and 3 examples"),
        (lambda: distillation.normalized_feature(*[[jnp.ones((2, 0))]] * 2), "hold values"),
        (lambda: distillation.normalized_feature(*[[jnp.float32(1)]] * 2), "batch axis"),
        (lambda: distillation.normalized_feature(STUDENT, TEACHER, exponent=-1), "exponent"),
        (lambda: distillation.normalized_feature(STUDENT, TEACHER, eps=0), "eps"),
        (lambda: distillation.feature_and_output(*[jnp.ones((3, 2))] * 2, STUDENT, TEACHER, jnp.ones(2)), "task_loss"),
        (
            lambda: distillation.feature_and_output(*[jnp.ones((2, 2))] * 2, STUDENT, TEACHER, jnp.ones(2)),
            "student_features must hold 2 examples",
        ),
        (
            lambda: distillation.feature_and_output(
                *[jnp.ones((3, 2))] * 2, STUDENT, TEACHER, jnp.ones(3), feature_weight=-1
            ),
            "feature_weight",
        ),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
