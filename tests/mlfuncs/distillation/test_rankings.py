"""Plackett-Luce distillation: the likelihood by hand, what it contains, closed gradients, ties, masks, bad input."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from mlfuncs import distillation
from mlfuncs.distillation import _rows

KEY = jax.random.key(0)
STUDENT, TEACHER = 2 * jax.random.normal(KEY, (2, 4, 6))
LABELS = jnp.array([0, 5, 2, 2])


def by_definition(student, teacher, labels, temperature=1.0):
    """Losses and gradients with respect to the student, by loops in float64."""
    student, teacher = np.asarray(student, np.float64), np.asarray(teacher, np.float64)
    losses, gradients = [], np.zeros_like(student)
    for row, (s, t, y) in enumerate(zip(student, teacher, np.asarray(labels), strict=True)):
        order = [y] + [c for c in np.argsort(-t, kind="stable") if c != y]
        weights = scipy.special.softmax(t / temperature)
        loss = 0.0
        for k, chosen in enumerate(order):
            left = order[k:]
            loss += weights[chosen] * (scipy.special.logsumexp(s[left]) - s[chosen])
            gradients[row, left] += weights[chosen] * scipy.special.softmax(s[left])
            gradients[row, chosen] -= weights[chosen]
        losses.append(loss)
    return np.array(losses), gradients


def cross_entropy(logits, labels):
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)[:, 0]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_definition_and_closed_gradient(temperature):
    losses, gradients = by_definition(STUDENT, TEACHER, LABELS, temperature)
    loss = lambda s: distillation.plackett_luce(s, TEACHER, LABELS, teacher_temperature=temperature)  # noqa: E731
    np.testing.assert_allclose(loss(STUDENT), losses, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(jax.grad(lambda s: loss(s).sum()))(STUDENT), gradients, rtol=1e-4, atol=1e-6)
    closed = distillation.plackett_luce_gradient(STUDENT, TEACHER, LABELS, teacher_temperature=temperature)
    np.testing.assert_allclose(closed, gradients, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(closed.sum(-1), np.zeros(4), atol=1e-5)
    assert np.all(np.abs(closed) <= 1)


def test_ranking_by_hand():
    teacher = jnp.array([[0.0, 3.0, 3.0, 1.0], [5.0, 5.0, 5.0, 5.0], [1e30, jnp.inf, -jnp.inf, 0.0]])
    ranking = distillation.teacher_ranking(teacher, jnp.array([3, 2, 2]))
    np.testing.assert_array_equal(ranking, [[3, 1, 2, 0], [2, 0, 1, 3], [2, 1, 0, 3]])
    assert ranking.dtype == jnp.int32
    np.testing.assert_array_equal(distillation.teacher_ranking(teacher[0], 3), ranking[0])


def test_probabilities_of_all_rankings_sum_to_one():
    rankings = jnp.array(list(itertools.permutations(range(4))))
    logits = jnp.broadcast_to(STUDENT[0, :4], rankings.shape)
    negative = distillation.weighted_list_likelihood(logits, rankings, jnp.ones(rankings.shape))
    np.testing.assert_allclose(jnp.exp(-negative).sum(), 1, rtol=1e-5)


def test_what_it_contains():
    ranking = distillation.teacher_ranking(TEACHER, LABELS)
    first = jnp.zeros((4, 6)).at[:, 0].set(1.0)
    likelihood = distillation.weighted_list_likelihood
    np.testing.assert_allclose(likelihood(STUDENT, ranking, first), cross_entropy(STUDENT, LABELS), rtol=1e-5)
    # A saturated teacher, right about the label, leaves the cross-entropy alone.
    saturated = 1e3 * jax.nn.one_hot(LABELS, 6)
    np.testing.assert_allclose(
        distillation.plackett_luce(STUDENT, saturated, LABELS), cross_entropy(STUDENT, LABELS), rtol=1e-5
    )
    share = jnp.take_along_axis(jax.nn.softmax(TEACHER), LABELS[:, None], 1)[:, 0]
    assert np.all(distillation.plackett_luce(STUDENT, TEACHER, LABELS) >= share * cross_entropy(STUDENT, LABELS))
    # Two classes: the label's share of it.
    labels = LABELS % 2
    two = jnp.take_along_axis(jax.nn.softmax(TEACHER[:, :2]), labels[:, None], 1)[:, 0]
    np.testing.assert_allclose(
        distillation.plackett_luce(STUDENT[:, :2], TEACHER[:, :2], labels),
        two * cross_entropy(STUDENT[:, :2], labels),
        rtol=1e-5,
    )
    np.testing.assert_array_equal(distillation.plackett_luce(STUDENT[:, :1], TEACHER[:, :1], 0 * LABELS), np.zeros(4))


def test_convex_and_unmoved_by_shifts():
    loss = jax.jit(lambda s: distillation.plackett_luce(s, TEACHER, LABELS))
    other = 3 * jax.random.normal(jax.random.key(1), STUDENT.shape)
    for share in (0.1, 0.5, 0.8):
        between = loss(share * STUDENT + (1 - share) * other)
        assert np.all(between <= share * loss(STUDENT) + (1 - share) * loss(other) + 1e-5)
    coarse = jnp.round(STUDENT * 64) / 64
    np.testing.assert_allclose(loss(coarse + 1024.0), loss(coarse), rtol=1e-5)


def test_weights_of_any_sign_and_their_gradients():
    ranking = distillation.teacher_ranking(TEACHER, LABELS)
    weights = jax.random.normal(KEY, (4, 6))

    @jax.jit
    def gradients(s, w):
        return jax.grad(lambda s, w: distillation.weighted_list_likelihood(s, ranking, w).sum(), (0, 1))(s, w)

    scores = np.take_along_axis(np.asarray(STUDENT, np.float64), np.asarray(ranking), 1)
    tails = np.log(np.cumsum(np.exp(scores)[:, ::-1], 1)[:, ::-1])
    of_scores, of_weights = gradients(STUDENT, weights)
    np.testing.assert_allclose(of_weights, tails - scores, rtol=1e-4, atol=1e-5)
    by_rank = np.exp(scores) * np.cumsum(np.asarray(weights) * np.exp(-tails), 1) - np.asarray(weights)
    np.testing.assert_allclose(np.take_along_axis(np.asarray(of_scores), np.asarray(ranking), 1), by_rank, atol=1e-4)


def test_the_teacher_is_a_constant():
    gradient = jax.jit(jax.grad(lambda t: distillation.plackett_luce(STUDENT, t, LABELS).sum()))(TEACHER)
    np.testing.assert_array_equal(gradient, np.zeros((4, 6)))


def test_masks_and_extremes():
    run = jax.jit(
        lambda s, t: (
            distillation.plackett_luce(s, t, LABELS),
            jax.grad(lambda s: distillation.plackett_luce(s, t, LABELS).sum())(s),
        )
    )
    masked = jnp.array([False, True, False, False, True, False])
    hide = lambda x: jnp.where(masked, -jnp.inf, x)  # noqa: E731
    losses, gradients = run(hide(STUDENT), hide(TEACHER))
    fewer = by_definition(STUDENT[:, ~masked], TEACHER[:, ~masked], jnp.array([0, 3, 1, 1]))
    np.testing.assert_allclose(losses, fewer[0], rtol=1e-5)
    np.testing.assert_allclose(gradients[:, ~masked], fewer[1], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(gradients[:, masked], np.zeros((4, 2)))
    for scale in (1e3, 1e4):
        assert all(np.all(np.isfinite(x)) for x in run(scale * STUDENT, scale * TEACHER))
    broken = run(STUDENT.at[0, 0].set(jnp.nan), TEACHER)[0]
    np.testing.assert_array_equal(np.isnan(broken), [True, False, False, False])
    nothing = run(STUDENT, jnp.full_like(TEACHER, -jnp.inf))
    np.testing.assert_array_equal(nothing[0], np.zeros(4))
    np.testing.assert_array_equal(nothing[1], np.zeros((4, 6)))


def test_blocks_leading_axes_and_precision(monkeypatch):
    shape = lambda x: x.reshape(2, 2, *x.shape[1:])  # noqa: E731
    expected = by_definition(STUDENT, TEACHER, LABELS)
    monkeypatch.setattr(_rows, "BLOCK", 12)
    run = lambda s, t, y: (  # noqa: E731
        distillation.plackett_luce(s, t, y),
        jax.grad(lambda s: distillation.plackett_luce(s, t, y).sum())(s),
        distillation.plackett_luce_gradient(s, t, y),
    )
    losses, gradient, closed = jax.jit(run)(shape(STUDENT), shape(TEACHER), shape(LABELS))
    np.testing.assert_allclose(losses, shape(expected[0]), rtol=1e-5)
    for ours in (gradient, closed):
        np.testing.assert_allclose(ours, shape(expected[1]), rtol=1e-4, atol=1e-6)
    half = jax.eval_shape(run, *(x.astype(jnp.bfloat16) for x in (STUDENT, TEACHER)), LABELS)
    assert [x.dtype for x in half] == [jnp.float32, jnp.bfloat16, jnp.bfloat16]


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: distillation.plackett_luce(STUDENT, TEACHER[:2], LABELS), "teacher_logits"),
        (lambda: distillation.plackett_luce(STUDENT, TEACHER, LABELS[:2]), "labels"),
        (lambda: distillation.plackett_luce(STUDENT, TEACHER, LABELS + 1), "labels"),
        (lambda: distillation.plackett_luce(STUDENT, TEACHER, LABELS * 1.0), "labels"),
        (lambda: distillation.plackett_luce(STUDENT, TEACHER, LABELS, teacher_temperature=0), "teacher_temperature"),
        (lambda: distillation.plackett_luce_gradient(STUDENT, TEACHER, LABELS - 1), "labels"),
        (lambda: distillation.teacher_ranking(jnp.float32(1), 0), "teacher_logits"),
        (lambda: distillation.teacher_ranking(TEACHER, LABELS[:, None]), "labels"),
        (lambda: distillation.weighted_list_likelihood(STUDENT, LABELS, TEACHER), "ranking"),
        (lambda: distillation.weighted_list_likelihood(STUDENT, TEACHER, TEACHER), "ranking"),
        (lambda: distillation.weighted_list_likelihood(STUDENT, jnp.zeros((4, 6), int), TEACHER[0]), "weights"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32])
def test_rankings_are_stable_orders(dtype):
    draw = np.random.default_rng(0)
    # Few values, so that nearly all are tied; both zeros and both infinities among them.
    values = draw.choice([-np.inf, -1e30, -1.5, -0.0, 0.0, 1e-40, 2.0, np.inf], (50, 33)).astype(np.float32)
    values = np.clip(np.nan_to_num(values), -9, 9) if dtype == jnp.int32 else values
    teacher = jnp.asarray(values, dtype)
    labels = jnp.asarray(draw.integers(0, 33, 50), jnp.int32)
    ranking = np.asarray(distillation.teacher_ranking(teacher, labels))
    for row, y, order in zip(np.asarray(teacher, np.float32), np.asarray(labels), ranking, strict=True):
        row = np.where(np.abs(row) < 1e-38, 0.0, row)  # numbers this small are 0 on many devices
        expected = [y] + [c for c in np.argsort(-row, kind="stable") if c != y]
        np.testing.assert_array_equal(order, expected)


def test_nan_comes_last_whatever_its_sign():
    teacher = jnp.array([[jnp.nan, 1.0, -jnp.nan, -jnp.inf, 2.0]])
    np.testing.assert_array_equal(distillation.teacher_ranking(teacher, jnp.array([3])), [[3, 4, 1, 0, 2]])
