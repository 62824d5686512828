"""One student for many specialists: targets by hand, foreign garbage, paced logits, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

from mlfuncs import distillation

KEY = jax.random.key(0)
VERTICALS = jnp.array([0, 1, 0, 2, 1, 0])
STUDENT, TEACHER = 2 * jax.random.normal(KEY, (2, 4, 6))
INDEX = jnp.array([0, 1, 2, 0])


def test_targets_by_hand():
    teacher = jnp.array([[1.0, 9.0, 1.0, 9.0, 9.0, 0.5], [9.0, -1.0, 9.0, 9.0, 2.0, 9.0]])
    sigmoid = scipy.special.expit
    targets = distillation.vertical_soft_targets(teacher, jnp.array([0, 1]), VERTICALS, top_k=2)
    # Of the equal logits of classes 0 and 2 both fit; of one place the lower class has it.
    expected = [[sigmoid(1), 0, sigmoid(1), 0, 0, 0], [0, sigmoid(-1), 0, 0, sigmoid(2), 0]]
    np.testing.assert_allclose(targets, expected, rtol=1e-6)
    one = distillation.vertical_soft_targets(teacher, jnp.array([0, 1]), VERTICALS, top_k=1)
    np.testing.assert_allclose(one, [[sigmoid(1), 0, 0, 0, 0, 0], [0, 0, 0, 0, sigmoid(2), 0]], rtol=1e-6)
    everything = distillation.vertical_soft_targets(teacher, jnp.array([0, 1]), VERTICALS)
    np.testing.assert_allclose(everything[0], [sigmoid(1), 0, sigmoid(1), 0, 0, sigmoid(0.5)], rtol=1e-6)


def test_loss_is_the_sigmoid_cross_entropy_over_all_classes():
    targets = distillation.vertical_soft_targets(TEACHER, INDEX, VERTICALS, top_k=2)
    run = jax.jit(lambda s, t: distillation.multi_teacher(s, t, INDEX, VERTICALS, top_k=2))
    np.testing.assert_allclose(
        run(STUDENT, TEACHER), optax.losses.sigmoid_binary_cross_entropy(STUDENT, targets).sum(-1), rtol=1e-5
    )
    gradients = jax.jit(jax.grad(lambda s, t: run(s, t).sum(), argnums=(0, 1)))(STUDENT, TEACHER)
    np.testing.assert_allclose(gradients[0], jax.nn.sigmoid(STUDENT) - targets, atol=1e-5)  # zeros push down
    np.testing.assert_array_equal(gradients[1], np.zeros((4, 6)))  # teachers are frozen
    # A sum over classes, not a mean: C log 2 at zero.
    np.testing.assert_allclose(run(0 * STUDENT, TEACHER), np.full(4, 6 * np.log(2)), rtol=1e-6)
    assert np.all(np.isfinite(run(1e4 * STUDENT, 1e4 * TEACHER)))
    assert jax.eval_shape(run, *(2 * [STUDENT.astype(jnp.bfloat16)])).dtype == jnp.float32


def test_foreign_logits_do_not_matter():
    garbage = jnp.where(INDEX[:, None] == VERTICALS, TEACHER, jnp.array([jnp.nan, jnp.inf, -jnp.inf, 1e9, 0.0, 7.0]))
    run = jax.jit(jax.value_and_grad(lambda s, t: distillation.multi_teacher(s, t, INDEX, VERTICALS).sum(), (0, 1)))
    jax.tree.map(np.testing.assert_array_equal, run(STUDENT, garbage), run(STUDENT, TEACHER))
    own = distillation.multi_teacher(STUDENT, TEACHER.at[1, 4].set(jnp.nan), INDEX, VERTICALS)
    np.testing.assert_array_equal(np.isnan(own), [False, True, False, False])
    masked = distillation.multi_teacher(STUDENT.at[:, 3].set(-jnp.inf), TEACHER, jnp.zeros(4, int), VERTICALS)
    others = jnp.array([0, 1, 2, 4, 5])
    fewer = distillation.multi_teacher(STUDENT[:, others], TEACHER[:, others], jnp.zeros(4, int), VERTICALS[others])
    np.testing.assert_allclose(masked, fewer, rtol=1e-5)
    empty = distillation.multi_teacher(STUDENT[:0], TEACHER[:0], INDEX[:0], VERTICALS)
    assert empty.shape == (0,)


def test_paced_logits():
    pace = jnp.array([2.0, -3.0, 0.5])
    run = jax.jit(distillation.self_paced_logits)
    paced = run(STUDENT, pace, VERTICALS)
    for vertical in range(3):
        members = vertical == VERTICALS
        part = np.asarray(STUDENT)[:, members]
        expected = pace[vertical] * part / np.linalg.norm(part, axis=1, keepdims=True)
        np.testing.assert_allclose(paced[:, members], expected, rtol=1e-5)
    np.testing.assert_allclose(paced[:, 3], 0.5 * np.sign(STUDENT[:, 3]), rtol=1e-5)  # a vertical of one class
    by_class = distillation.self_paced_logits(STUDENT, pace[VERTICALS], VERTICALS, level="class")
    np.testing.assert_allclose(by_class, paced, rtol=1e-6)
    # Numbers of verticals may have gaps, and be larger than that of classes.
    far = distillation.self_paced_logits(STUDENT, pace[VERTICALS], 1000 * VERTICALS, level="class")
    np.testing.assert_allclose(far, paced, rtol=1e-6)
    np.testing.assert_allclose(run(100 * STUDENT, pace, VERTICALS), paced, rtol=1e-5)


def test_paced_logits_at_zero_and_under_masks():
    pace = jnp.array([2.0, -3.0, 0.5])
    run = jax.jit(jax.value_and_grad(lambda x, p: distillation.self_paced_logits(x, p, VERTICALS)[0, :3].sum(), (0, 1)))
    value, gradients = run(jnp.zeros((1, 6)), pace)
    assert value == 0
    assert all(np.all(np.isfinite(x)) for x in gradients)
    masked = distillation.self_paced_logits(STUDENT.at[:, 0].set(-jnp.inf), pace, VERTICALS)
    others = jnp.arange(1, 6)
    np.testing.assert_allclose(
        masked[:, 1:], distillation.self_paced_logits(STUDENT[:, others], pace, VERTICALS[others]), rtol=1e-5
    )
    assert np.all(np.isneginf(masked[:, 0]))


ARGUMENTS = (STUDENT, TEACHER, INDEX, VERTICALS)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: distillation.multi_teacher(STUDENT, TEACHER[:2], INDEX, VERTICALS), "teacher_logits"),
        (lambda: distillation.multi_teacher(STUDENT, TEACHER, INDEX[:2], VERTICALS), "teacher_index"),
        (lambda: distillation.multi_teacher(STUDENT, TEACHER, INDEX * 1.0, VERTICALS), "teacher_index"),
        (lambda: distillation.multi_teacher(STUDENT, TEACHER, INDEX, VERTICALS[:2]), "class_vertical"),
        (lambda: distillation.multi_teacher(*ARGUMENTS, top_k=0), "top_k"),
        (lambda: distillation.vertical_soft_targets(TEACHER, INDEX, VERTICALS * 1.0), "class_vertical"),
        (lambda: distillation.self_paced_logits(STUDENT, jnp.ones(2), VERTICALS), "scale"),
        (lambda: distillation.self_paced_logits(STUDENT, jnp.ones(3), VERTICALS, level="class"), "scale"),
        (lambda: distillation.self_paced_logits(STUDENT, jnp.ones(3), VERTICALS, level="group"), "level"),
        (lambda: distillation.self_paced_logits(STUDENT, jnp.ones(3), VERTICALS, epsilon=0), "epsilon"),
        (lambda: distillation.self_paced_logits(STUDENT, jnp.ones(3), VERTICALS - 1), "class_vertical"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
