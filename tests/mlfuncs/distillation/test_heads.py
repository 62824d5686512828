"""Losses on the level of logits, decoupled distillation, gradient alignment: definitions, limits, bad input."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
from jax.sharding import PartitionSpec as P

from mlfuncs import distillation

KEY = jax.random.key(0)
STUDENT, TEACHER = 3 * jax.random.normal(KEY, (2, 4, 6))
LABELS = jnp.array([0, 5, 2, 2])
BINARY = [distillation.binary_kullback_leibler, distillation.binary_kullback_leibler_difference]
name_of = lambda function: function.__name__  # noqa: E731


def bernoulli_divergence(p, q):
    return scipy.special.rel_entr(p, q) + scipy.special.rel_entr(1 - p, 1 - q)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_binary_definitions_and_gradients(temperature):
    s, t = np.asarray(STUDENT, np.float64), np.asarray(TEACHER, np.float64)
    p, q = scipy.special.expit(t / temperature), scipy.special.expit(s / temperature)
    expected = [
        (bernoulli_divergence(p, q), temperature * (q - p)),
        (
            bernoulli_divergence(0.5, scipy.special.expit((s - t) / temperature)),
            temperature / 2 * np.tanh((s - t) / (2 * temperature)),
        ),
    ]
    for loss, (value, gradient) in zip(BINARY, expected, strict=True):
        run = jax.jit(jax.value_and_grad(lambda s: loss(s, TEACHER, temperature=temperature).sum()))  # noqa: B023
        ours = run(STUDENT)
        np.testing.assert_allclose(ours[0], temperature**2 * value.sum(), rtol=1e-5)
        np.testing.assert_allclose(ours[1], gradient, rtol=1e-4, atol=1e-5)
        # Sums over classes, one value a row.
        np.testing.assert_allclose(
            loss(STUDENT, TEACHER, temperature=temperature), temperature**2 * value.sum(-1), rtol=1e-5
        )


@pytest.mark.parametrize("loss", BINARY, ids=name_of)
def test_binary_losses_see_the_level_and_vanish_at_equality_alone(loss):
    run = jax.jit(lambda s, t: (loss(s, t), jax.grad(lambda *x: loss(*x).sum(), (0, 1))(s, t)))
    value, gradients = run(TEACHER, TEACHER)
    np.testing.assert_array_equal(value, np.zeros(4))
    for side in gradients:
        np.testing.assert_allclose(side, np.zeros((4, 6)), atol=1e-6)
    assert np.all(run(TEACHER + 4, TEACHER)[0] > 0.1)  # a softmax would not see it
    for step in (1e-4, 1e-2):
        assert np.all(run(TEACHER + step, TEACHER)[0] >= 0)
    # Logits of any size, and masks: finite, where the official clamp gives 0 or NaN.
    far = run(jnp.full((4, 6), 1e4), jnp.full((4, 6), -1e4))
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(far))
    assert np.all(far[0] > 1e4)
    hidden = run(STUDENT.at[:, 1].set(-jnp.inf), TEACHER.at[:, 1].set(-jnp.inf))
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(hidden))
    others = jnp.array([0, 2, 3, 4, 5])
    np.testing.assert_allclose(hidden[0], loss(STUDENT[:, others], TEACHER[:, others]), rtol=1e-5)
    np.testing.assert_array_equal(np.isnan(run(STUDENT.at[0, 0].set(jnp.nan), TEACHER)[0]), [True, False, False, False])
    assert loss(STUDENT[0, :1], TEACHER[0, :1]).shape == ()
    assert jax.eval_shape(loss, STUDENT.astype(jnp.bfloat16), TEACHER.astype(jnp.bfloat16)).dtype == jnp.float32


def test_small_differences_are_quadratic():
    gap = jnp.array([1e-4, 1e-2, 0.1])[:, None]
    value = distillation.binary_kullback_leibler_difference(gap, jnp.zeros((3, 1)))
    np.testing.assert_allclose(value, gap[:, 0] ** 2 / 8, rtol=1e-3)


def test_decoupled_contains_the_plain_divergence():
    plain = distillation.kullback_leibler(STUDENT, TEACHER, temperature=2.0)
    share = jnp.take_along_axis(jax.nn.softmax(TEACHER / 2), LABELS[:, None], 1)[:, 0]
    run = jax.jit(partial(distillation.decoupled, temperature=2.0))
    target = run(STUDENT, TEACHER, LABELS, nontarget_weight=0.0)
    nontarget = run(STUDENT, TEACHER, LABELS, target_weight=0.0, nontarget_weight=1.0)
    np.testing.assert_allclose(target + (1 - share) * nontarget, plain, rtol=1e-4)
    # The target part is the divergence of two classes.
    p, q = (scipy.special.softmax(np.asarray(x, np.float64) / 2, -1)[np.arange(4), LABELS] for x in (TEACHER, STUDENT))
    np.testing.assert_allclose(target, 4 * bernoulli_divergence(p, q), rtol=1e-4)
    np.testing.assert_allclose(
        run(STUDENT, TEACHER, LABELS), target + 8 * nontarget, rtol=1e-5
    )  # defaults of the weights


def test_decoupled_edges():
    run = jax.jit(
        lambda s, t: (
            distillation.decoupled(s, t, LABELS),
            jax.grad(lambda *x: distillation.decoupled(*x, LABELS).sum(), (0, 1))(s, t),
        )
    )
    zero = run(TEACHER, TEACHER)
    np.testing.assert_array_equal(zero[0], np.zeros(4))
    for side in zero[1]:
        np.testing.assert_allclose(side, np.zeros((4, 6)), atol=1e-5)
    # Saturated on the label, beyond the logits that a mask of -1000 would survive.
    saturated = 5e3 * jax.nn.one_hot(LABELS, 6)
    for sides in ((saturated, TEACHER), (TEACHER, saturated + TEACHER), (saturated + STUDENT, saturated + TEACHER)):
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(run(*sides)))
    hidden = run(STUDENT.at[:, 1].set(-jnp.inf), TEACHER.at[:, 1].set(-jnp.inf))
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(hidden))
    others = jnp.array([0, 2, 3, 4, 5])
    np.testing.assert_allclose(
        hidden[0], distillation.decoupled(STUDENT[:, others], TEACHER[:, others], jnp.array([0, 4, 1, 1])), rtol=1e-4
    )
    two = distillation.decoupled(STUDENT[:, :2], TEACHER[:, :2], LABELS % 2, temperature=1.0, target_weight=1.0)
    np.testing.assert_allclose(two, distillation.kullback_leibler(STUDENT[:, :2], TEACHER[:, :2]), rtol=1e-4)


def test_dual_head_by_its_parts():
    cross_entropy = optax.losses.softmax_cross_entropy_with_integer_labels(STUDENT, LABELS)
    auxiliary = STUDENT[::-1]
    difference = distillation.binary_kullback_leibler_difference(auxiliary, TEACHER)
    loss = distillation.dual_head(STUDENT, auxiliary, TEACHER, LABELS, label_weight=0.5, auxiliary_weight=2.0)
    np.testing.assert_allclose(loss, 0.5 * cross_entropy + 2 * difference, rtol=1e-5)


def inner(a, b):
    return sum(float(jnp.vdot(x, y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_alignment_by_hand():
    reference = {"w": jnp.array([1.0, 0.0]), "b": jnp.array(1.0)}
    against = {"w": jnp.array([-3.0, 2.0]), "b": jnp.array(1.0)}
    aligned = distillation.align_gradients(against, reference)  # <g, g0> = -2, |g0|^2 = 2
    np.testing.assert_allclose(aligned["w"], [-2.0, 2.0])
    np.testing.assert_allclose(aligned["b"], 2.0)
    with_it = {"w": jnp.array([3.0, 2.0]), "b": jnp.array(1.0)}
    jax.tree.map(np.testing.assert_array_equal, distillation.align_gradients(with_it, reference), with_it)
    nothing = jax.tree.map(jnp.zeros_like, reference)
    jax.tree.map(np.testing.assert_array_equal, distillation.align_gradients(against, nothing), against)
    assert distillation.align_gradients({}, {}) == {}


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e15])
def test_alignment_leaves_no_conflict_at_any_scale(scale):
    reference = {"w": scale * jax.random.normal(KEY, (5, 3)), "empty": jnp.zeros((0, 2))}
    gradients = {
        "w": -reference["w"] / scale + jax.random.normal(jax.random.key(1), (5, 3)),
        "empty": jnp.zeros((0, 2)),
    }
    aligned = jax.jit(distillation.align_gradients)(gradients, reference)
    assert inner(gradients, reference) < 0
    assert inner(aligned, reference) / scale >= -1e-5
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), gradients)
    assert distillation.align_gradients(half, reference)["w"].dtype == jnp.bfloat16


def test_alignment_of_split_parameters():
    reference, gradients = jax.random.normal(KEY, (16, 3)), -jax.random.normal(KEY, (16, 3)) + 0.3
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.jit(
        jax.shard_map(
            partial(distillation.align_gradients, axis_name="data"), mesh=mesh, in_specs=P("data"), out_specs=P("data")
        )
    )
    np.testing.assert_allclose(
        split(gradients, reference), distillation.align_gradients(gradients, reference), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: BINARY[0](STUDENT, TEACHER[:1]), "teacher_logits"),
        (lambda: BINARY[0](STUDENT, TEACHER, temperature=0), "temperature"),
        (lambda: BINARY[1](STUDENT, TEACHER[:1]), "teacher_logits"),
        (lambda: BINARY[1](STUDENT, TEACHER, temperature=-2.0), "temperature"),
        (lambda: distillation.decoupled(STUDENT[:, :1], TEACHER[:, :1], 0 * LABELS), "at least 2 classes"),
        (lambda: distillation.decoupled(STUDENT, TEACHER, LABELS * 1.0), "labels"),
        (lambda: distillation.decoupled(STUDENT, TEACHER, LABELS, temperature=0), "temperature"),
        (lambda: distillation.dual_head(STUDENT, TEACHER[:1], TEACHER, LABELS), "auxiliary_logits"),
        (lambda: distillation.dual_head(STUDENT[:1], TEACHER, TEACHER, LABELS), "label_logits"),
        (lambda: distillation.dual_head(STUDENT, TEACHER, TEACHER, LABELS[:1]), "labels"),
        (lambda: distillation.align_gradients({"a": STUDENT}, {"b": STUDENT}), "reference"),
        (lambda: distillation.align_gradients({"a": STUDENT}, {"a": STUDENT[:1]}), "reference"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
