"""Training-free scores: against full matrices, invariances, a split batch, bad input."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from mlfuncs import architecture_search

KEY = jax.random.key(0)
MESH = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
RANDOM = np.random.default_rng(0)
TEACHER, STUDENT = (RANDOM.normal(size=shape).astype(np.float32) for shape in ((16, 2, 2, 3), (16, 5)))
SLOPES = RANDOM.normal(size=(2, 3, 4)).astype(np.float32)  # teacher's and student's, three classes, four features


def sharded(function, *arrays):
    specs = tuple(P("data") for _ in arrays)
    return jax.jit(jax.shard_map(function, mesh=MESH, in_specs=specs, out_specs=P()))(*arrays)


def over_rows(matrix, eps=1e-12):
    return matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), eps)


def full_semantic_similarity(teacher, student, eps=1e-12):
    """With a [d, d] matrix a class, in float64."""
    total = 0.0
    for t, s in zip(np.asarray(teacher, np.float64), np.asarray(student, np.float64), strict=True):
        total -= np.sum((over_rows(np.outer(t, t), eps) - over_rows(np.outer(s, s), eps)) ** 2)
    return total / np.size(teacher)


def test_classifier_gradient_is_that_of_the_mean_cross_entropy():
    features, weight, labels = STUDENT, SLOPES.reshape(-1)[:15].reshape(3, 5), jnp.arange(16) % 3

    def loss(weight):
        logits = features @ weight.T
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(16), labels])

    gradient = architecture_search.classifier_weight_gradient(features, features @ weight.T, labels)
    np.testing.assert_allclose(gradient, jax.grad(loss)(weight), rtol=1e-4, atol=1e-6)
    halves = partial(architecture_search.classifier_weight_gradient, axis_name="data")
    np.testing.assert_allclose(sharded(halves, features, features @ weight.T, labels), gradient, rtol=1e-5, atol=1e-7)


def test_classifier_gradient_by_hand():
    # softmax - onehot = (-1/2, 1/2) and (1/2, -1/2); mean of both times the features.
    gradient = architecture_search.classifier_weight_gradient([[2.0], [6.0]], jnp.zeros((2, 2)), jnp.array([0, 1]))
    np.testing.assert_allclose(gradient, [[1.0], [-1.0]])
    one = architecture_search.classifier_weight_gradient([[2.0], [6.0]], jnp.ones((2, 1)), jnp.array([0, 0]))
    np.testing.assert_array_equal(one, [[0.0]])


def test_semantic_similarity_by_hand():
    # Rows of (1, 1) are both (1, 1) / sqrt 2; of (1, -1) (1, -1) / sqrt 2 and its negative: 1 and 3 entries off by sqrt 2.
    value = architecture_search.semantic_similarity([[1.0, 1.0]], [[1.0, -1.0]])
    np.testing.assert_allclose(value, -(2 + 2) / 2, rtol=1e-6)
    # A zero row against a unit row: 1; against a zero row: 0.
    np.testing.assert_allclose(
        architecture_search.semantic_similarity([[0.0, 1.0]], [[1.0, 1.0]]), -(1 + 0.5857864) / 2
    )
    assert architecture_search.semantic_similarity([[0.0, 0.0]], [[0.0, 0.0]]) == 0
    assert architecture_search.semantic_similarity([[0.0, 0.0]], [[3.0, 4.0]]) == -1


@pytest.mark.parametrize("case", ["random", "zeros", "small", "clamped"])
def test_the_rank_one_shortcut_is_the_full_computation(case):
    teacher, student = SLOPES.copy()
    eps = 1e-12
    if case == "zeros":
        teacher[1], student[:, 2] = 0, 0
    if case == "small":
        teacher, student = teacher * 1e-4, student * 1e-3
    if case == "clamped":
        eps = 2.0  # above some norms of rows and below others
    value = architecture_search.semantic_similarity(teacher, student, eps=eps)
    np.testing.assert_allclose(value, full_semantic_similarity(teacher, student, eps), rtol=1e-5)


def test_semantic_similarity_ignores_scales_and_signs_of_classes():
    teacher, student = SLOPES
    value = architecture_search.semantic_similarity(teacher, student)
    scales = np.array([[1e-3], [-1.0], [1e25]], np.float32)  # squares of the last overflow
    np.testing.assert_allclose(architecture_search.semantic_similarity(teacher * scales, student), value, rtol=1e-5)
    np.testing.assert_allclose(architecture_search.semantic_similarity(student, teacher), value, rtol=1e-5)
    order = [2, 0, 1]
    both = architecture_search.semantic_similarity(teacher[order][:, [3, 1, 0, 2]], student[order][:, [3, 1, 0, 2]])
    np.testing.assert_allclose(both, value, rtol=1e-5)
    assert architecture_search.semantic_similarity(teacher, teacher) == 0
    assert -4 <= value < 0


def full_relation_similarity(teacher, student):
    first, second = (np.asarray(x, np.float64).reshape(len(x), -1) for x in (teacher, student))
    return -np.mean((over_rows(first @ first.T) - over_rows(second @ second.T)) ** 2)


def test_relation_similarity_and_its_invariances():
    value = architecture_search.relation_similarity(TEACHER, STUDENT)
    np.testing.assert_allclose(value, full_relation_similarity(TEACHER, STUDENT), rtol=1e-5)
    rotation = np.linalg.qr(RANDOM.normal(size=(5, 5)))[0].astype(np.float32)
    order = RANDOM.permutation(16)
    for teacher, student in (
        (TEACHER, 7 * STUDENT @ rotation),
        (1e15 * TEACHER, -1e-3 * STUDENT),  # fourth powers that overflow
        (TEACHER[order], STUDENT[order]),
        (STUDENT, TEACHER),
        (TEACHER.reshape(16, -1), STUDENT),
    ):
        np.testing.assert_allclose(architecture_search.relation_similarity(teacher, student), value, rtol=1e-4)
    assert architecture_search.relation_similarity(TEACHER, TEACHER) == 0
    # Rows are normalised, not columns: one example scaled alone matters.
    assert not np.allclose(
        architecture_search.relation_similarity(TEACHER, STUDENT.copy() * ([[9]] + [[1]] * 15)), value
    )


def test_edges_of_relations():
    one = architecture_search.relation_similarity(TEACHER[:1], STUDENT[:1])
    np.testing.assert_allclose(one, 0, atol=1e-12)
    assert architecture_search.relation_similarity(np.zeros((2, 3)), np.zeros((2, 4))) == 0
    assert np.isnan(architecture_search.relation_similarity(np.full((2, 3), np.nan), np.ones((2, 3))))
    assert architecture_search.relation_similarity(jnp.ones((2, 3), jnp.bfloat16), np.ones((2, 3))).dtype == jnp.float32


def test_gradients_of_scores_are_finite():
    score = architecture_search.training_free_student_score
    slopes = jax.jit(jax.grad(score, argnums=(0, 1, 2, 3)))
    zeros = (jnp.zeros_like(TEACHER), jnp.zeros_like(STUDENT), *jnp.zeros_like(SLOPES))
    for arguments in ((TEACHER, STUDENT, *SLOPES), zeros, (TEACHER, zeros[1], SLOPES[0], zeros[3])):
        for slope in slopes(*arguments):
            assert np.all(np.isfinite(slope))


def test_the_score_of_a_split_batch_is_that_of_the_whole():
    score = lambda t, s, **more: architecture_search.training_free_student_score(t, s, *SLOPES, **more)  # noqa: E731
    np.testing.assert_allclose(
        score(TEACHER, STUDENT),
        architecture_search.relation_similarity(TEACHER, STUDENT) + architecture_search.semantic_similarity(*SLOPES),
        rtol=1e-6,
    )
    across = lambda t, s: sharded(partial(score, axis_name="data"), t, s)  # noqa: E731
    np.testing.assert_allclose(across(TEACHER, STUDENT), score(TEACHER, STUDENT), rtol=1e-5)
    ours, theirs = (jax.grad(f, argnums=1)(TEACHER, STUDENT) for f in (across, score))
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-6)


GRADIENT = architecture_search.classifier_weight_gradient


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: GRADIENT(STUDENT, jnp.ones((15, 3)), jnp.zeros(15, int)), "16 and 15"),
        (lambda: GRADIENT(STUDENT[:0], jnp.ones((0, 3)), jnp.zeros(0, int)), "at least one example"),
        (lambda: GRADIENT(STUDENT, jnp.ones((16, 3)), jnp.zeros(15, int)), "labels"),
        (lambda: GRADIENT(STUDENT, jnp.ones((16, 3)), jnp.zeros(16)), "labels must hold integers"),
        (lambda: GRADIENT(STUDENT, jnp.ones((16, 3)), jnp.full(16, 3)), "labels"),
        (lambda: GRADIENT(TEACHER, jnp.ones((16, 3)), jnp.zeros(16, int)), "features"),
        (lambda: architecture_search.semantic_similarity(SLOPES[0], SLOPES[1][:2]), r"\(3, 4\) and \(2, 4\)"),
        (lambda: architecture_search.semantic_similarity(SLOPES[0], SLOPES[1][:, :3]), r"\(3, 4\) and \(3, 3\)"),
        (lambda: architecture_search.semantic_similarity(SLOPES, SLOPES), "teacher_gradient"),
        (lambda: architecture_search.semantic_similarity(*SLOPES, eps=0.0), "eps"),
        (lambda: architecture_search.semantic_similarity(np.ones((3, 0)), np.ones((3, 0))), "at least one"),
        (lambda: architecture_search.relation_similarity(TEACHER, STUDENT[:3]), "16 and 3"),
        (lambda: architecture_search.relation_similarity(1.0, STUDENT), "teacher_features"),
        (lambda: architecture_search.relation_similarity(TEACHER, STUDENT[:, :0]), "student_features"),
        (lambda: architecture_search.relation_similarity(TEACHER, STUDENT, eps=-1.0), "eps"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
