"""Target-enhanced cross-entropy: both published forms in float64, the gradient, exits, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from mlfuncs import distillation

KEY = jax.random.key(0)
STUDENT, TEACHER = 2 * jax.random.normal(KEY, (2, 4, 6))
LABELS = jnp.array([0, 5, 2, 2])
EXITS = jax.random.normal(jax.random.key(1), (2, 4, 6))
loss = distillation.enhanced_target_cross_entropy


def weights(exponent, form, temperature=1.0):
    p = scipy.special.softmax(np.asarray(TEACHER, np.float64) / temperature, -1)
    m = np.eye(6)[np.asarray(LABELS)]
    if form == "code":
        return (p + m) ** exponent - m
    return np.where(m > 0, (1 + p) ** exponent, p)


@pytest.mark.parametrize("form", ["code", "paper"])
@pytest.mark.parametrize("exponent", [0.7, 1.5])
def test_both_forms_and_their_gradient(exponent, form):
    options = {} if form == "code" else {"enhance_other": False, "keep_label_term": True}
    log_q = scipy.special.log_softmax(np.asarray(STUDENT, np.float64) / 2, -1)
    w = weights(exponent, form, 2.0)
    run = lambda s: loss(s, TEACHER, LABELS, exponent=exponent, temperature=2.0, **options)  # noqa: E731
    np.testing.assert_allclose(run(STUDENT), -(w * log_q).sum(-1), rtol=1e-5)
    gradient = jax.jit(jax.grad(lambda s: run(s).sum()))(STUDENT)
    np.testing.assert_allclose(gradient, (w.sum(-1, keepdims=True) * np.exp(log_q) - w) / 2, rtol=1e-4, atol=1e-5)


def test_an_exponent_of_one_is_the_soft_cross_entropy():
    np.testing.assert_allclose(
        loss(STUDENT, TEACHER, LABELS), distillation.soft_cross_entropy(STUDENT, TEACHER), rtol=1e-5
    )
    # The paper's form holds the label's cross-entropy besides.
    both = loss(STUDENT, TEACHER, LABELS, enhance_other=False, keep_label_term=True)
    hard = distillation.knowledge_distillation(STUDENT, TEACHER, LABELS, soft_weight=0.0)
    np.testing.assert_allclose(both, distillation.soft_cross_entropy(STUDENT, TEACHER) + hard, rtol=1e-5)


def test_edges():
    run = jax.jit(
        lambda s, t, e: jax.value_and_grad(lambda s, t: loss(s, t, LABELS, exponent=e).sum(), argnums=(0, 1))(s, t)
    )
    # Where log(softmax) would be -inf, and a weight 0: finite; the teacher is a constant.
    hidden = TEACHER.at[:, 1].set(-jnp.inf)
    for student, teacher in (
        (1e4 * STUDENT, TEACHER),
        (STUDENT, 1e4 * TEACHER),
        (STUDENT.at[:, 1].set(-jnp.inf), hidden),
    ):
        for exponent in (0.5, 1.0, 1.5):
            value, gradients = run(student, teacher, exponent)
            assert np.isfinite(value)
            assert np.all(np.isfinite(gradients[0]))
            np.testing.assert_array_equal(gradients[1], np.zeros((4, 6)))
    np.testing.assert_array_equal(loss(STUDENT[:, :1], TEACHER[:, :1], 0 * LABELS, exponent=1.5), np.zeros(4))
    # Small probabilities of the label keep their digits: (1 + p)^e - 1 is e p.
    rare = loss(jnp.array([0.0, 0.0]), jnp.array([0.0, -20.0]), 1, exponent=2.0)
    np.testing.assert_allclose(rare / np.log(2) - 1, 2 * np.exp(-20) - 2 * np.exp(-20), atol=1e-6)


def test_exits_are_a_sum_with_their_own_exponents():
    ours = distillation.multi_exit(
        EXITS, STUDENT, TEACHER, LABELS, exponents=(1.0, 1.5, 2.0), exit_weight=0.5, student_weight=3.0
    )
    parts = [loss(x, TEACHER, LABELS, exponent=e) for x, e in ((EXITS[0], 1.0), (EXITS[1], 1.5), (STUDENT, 2.0))]
    np.testing.assert_allclose(ours, 0.5 * (parts[0] + parts[1]) + 3 * parts[2], rtol=1e-5)
    alone = distillation.multi_exit(EXITS[:0], STUDENT, TEACHER, LABELS, exponents=2.0)
    np.testing.assert_allclose(alone, parts[2], rtol=1e-5)
    gradient = jax.jit(jax.grad(lambda e: distillation.multi_exit(e, STUDENT, TEACHER, LABELS).sum()))(EXITS)
    assert np.all(np.abs(gradient).max((1, 2)) > 0)  # exits do learn


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: loss(STUDENT, TEACHER[:1], LABELS), "teacher_logits"),
        (lambda: loss(STUDENT, TEACHER, LABELS + 1), "labels"),
        (lambda: loss(STUDENT, TEACHER, LABELS * 1.0), "labels"),
        (lambda: loss(STUDENT, TEACHER, LABELS, exponent=0.0), "exponent"),
        (lambda: loss(STUDENT, TEACHER, LABELS, temperature=0.0), "temperature"),
        (lambda: distillation.multi_exit(EXITS[0], STUDENT, TEACHER, LABELS), "exit_logits"),
        (lambda: distillation.multi_exit(EXITS[:, :2], STUDENT, TEACHER, LABELS), "exit_logits"),
        (lambda: distillation.multi_exit(EXITS, STUDENT, TEACHER, LABELS, exponents=(1.0, 1.0)), "exponents"),
        (lambda: distillation.multi_exit(EXITS, STUDENT, TEACHER, LABELS, exponents=(1.0, 0.0, 1.0)), "exponents"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
