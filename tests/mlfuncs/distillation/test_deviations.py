"""Logits over their own deviation: by hand, invariances, constant vectors, masks, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from mlfuncs import distillation

KEY = jax.random.key(0)
STUDENT, TEACHER = 3 * jax.random.normal(KEY, (2, 4, 6))
ONES = jnp.ones((2, 3))


def divided(logits):
    logits = np.asarray(logits, np.float64)
    return logits / logits.std(-1, ddof=1, keepdims=True)


def test_by_hand():
    # Deviation of (1, 3), unbiased: sqrt 2.
    np.testing.assert_allclose(
        distillation.divide_by_deviation(jnp.array([1.0, 3.0])), np.array([1, 3]) / np.sqrt(2), rtol=1e-6
    )
    np.testing.assert_allclose(distillation.divide_by_deviation(STUDENT), divided(STUDENT), rtol=1e-5)
    # Two classes: only the sign survives.
    two = distillation.divide_by_deviation(jnp.array([[0.0, 1e-3], [50.0, -50.0]]))
    np.testing.assert_allclose(two[:, 1] - two[:, 0], [np.sqrt(2), -np.sqrt(2)], rtol=1e-5)


def test_scaled_divergence_in_float64_without_squared_temperature():
    log_p, log_q = (scipy.special.log_softmax(divided(x), -1) for x in (TEACHER, STUDENT))
    expected = (np.exp(log_p) * (log_p - log_q)).sum(-1)
    np.testing.assert_allclose(distillation.scaled_by_deviation(STUDENT, TEACHER), expected, rtol=1e-4)
    targets = jax.nn.softmax(STUDENT[::-1])
    hard = -(np.asarray(targets) * log_q).sum(-1)
    ours = distillation.mixup_objective(STUDENT, TEACHER, targets)
    np.testing.assert_allclose(ours, 0.1 * hard + 0.9 * expected, rtol=1e-4)
    # Linear in the targets, which need not sum to one.
    only = lambda y: distillation.mixup_objective(STUDENT, TEACHER, y, soft_weight=0.0, label_weight=1.0)  # noqa: E731
    np.testing.assert_allclose(only(3 * targets), 3 * hard, rtol=1e-4)


def test_size_and_shift_of_logits_do_not_matter():
    run = jax.jit(distillation.scaled_by_deviation)
    expected = run(STUDENT, TEACHER)
    np.testing.assert_allclose(run(100 * STUDENT, 0.01 * TEACHER), expected, rtol=1e-3)
    np.testing.assert_allclose(run(STUDENT + 5, TEACHER - 5), expected, rtol=1e-3)
    np.testing.assert_allclose(run(2 * TEACHER, TEACHER), np.zeros(4), atol=1e-6)


def test_gradient_passes_through_the_deviation():
    gradient = jax.jit(jax.grad(lambda s: distillation.scaled_by_deviation(s, TEACHER).sum()))(STUDENT)
    # Growth of all logits changes nothing, so the gradient has no part along them.
    np.testing.assert_allclose((gradient * STUDENT).sum(-1), np.zeros(4), atol=1e-5)
    teacher = jax.jit(jax.grad(lambda t: distillation.scaled_by_deviation(STUDENT, t).sum()))(TEACHER)
    assert jnp.linalg.norm(teacher) > 1e-3  # not stopped


def test_constant_vectors_and_masks():
    targets = jax.nn.one_hot(jnp.array([0, 2]), 3)
    run = jax.jit(jax.value_and_grad(lambda s, t: distillation.mixup_objective(s, t, targets).sum(), argnums=(0, 1)))
    for sides in ((ONES, ONES), (ONES, STUDENT[:2, :3]), (STUDENT[:2, :3], ONES), (1e4 * STUDENT[:2, :3], ONES)):
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(run(*sides)))
    np.testing.assert_allclose(distillation.divide_by_deviation(ONES), 1e6 * ONES, rtol=1e-5)
    np.testing.assert_allclose(distillation.divide_by_deviation(ONES, minimum=0.5), 2 * ONES)
    masked = jnp.array([False, True, False, False, False, False])
    hide = lambda x: jnp.where(masked, -jnp.inf, x)  # noqa: E731
    np.testing.assert_allclose(
        distillation.scaled_by_deviation(hide(STUDENT), hide(TEACHER)),
        distillation.scaled_by_deviation(STUDENT[:, ~masked], TEACHER[:, ~masked]),
        rtol=1e-4,
    )
    nothing = jnp.full(3, -jnp.inf)
    assert distillation.scaled_by_deviation(nothing, nothing) == 0
    assert np.isnan(distillation.scaled_by_deviation(STUDENT.at[0, 0].set(jnp.nan), TEACHER))[0]
    assert jax.eval_shape(distillation.scaled_by_deviation, *(2 * [ONES.astype(jnp.bfloat16)])).dtype == jnp.float32


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: distillation.divide_by_deviation(ONES[:, :1]), "at least 2 classes"),
        (lambda: distillation.divide_by_deviation(ONES, minimum=0), "minimum"),
        (lambda: distillation.scaled_by_deviation(ONES, ONES[:1]), "teacher_logits"),
        (lambda: distillation.scaled_by_deviation(ONES[:, :1], ONES[:, :1]), "at least 2 classes"),
        (lambda: distillation.mixup_objective(ONES, ONES, ONES[0]), "targets"),
        (lambda: distillation.mixup_objective(ONES, ONES, ONES, label_weight=-0.1), "label_weight"),
        (lambda: distillation.mixup_objective(ONES, ONES, ONES, soft_weight=-0.1), "soft_weight"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
