"""Mutual learning and gated teachers: by hand, who gets a gradient, a batch over devices, bad input."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from mlfuncs import distillation

KEYS = jax.random.split(jax.random.key(0), 3)
STUDENT, TEACHERS = jax.random.normal(KEYS[0], (4, 5)), 2 * jax.random.normal(KEYS[1], (3, 4, 5))
GATE = jax.nn.softmax(2 * jax.random.normal(KEYS[2], (4, 3)))
EACH = jnp.stack([distillation.kullback_leibler(STUDENT, teacher, temperature=4.0) for teacher in TEACHERS], axis=1)


def test_mutual_is_the_sum_over_ordered_pairs():
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    expected = sum(distillation.kullback_leibler(TEACHERS[i], TEACHERS[j], temperature=4.0) for i, j in pairs)
    np.testing.assert_allclose(distillation.mutual(TEACHERS), expected, rtol=1e-5)
    np.testing.assert_array_equal(distillation.mutual(TEACHERS[:1]), jnp.zeros(4))
    np.testing.assert_array_equal(distillation.mutual(jnp.stack([STUDENT] * 4)), jnp.zeros(4))
    gradient = jax.grad(lambda z: distillation.mutual(z).sum())(TEACHERS)
    assert np.all(np.abs(np.asarray(gradient)).max(axis=(1, 2)) > 0)  # every model moves


def test_each_example_has_its_own_teachers():
    order = np.argsort(-np.asarray(GATE), axis=1)
    for k in (1, 2, 3):
        best = np.take_along_axis(np.asarray(EACH), order[:, :k], axis=1)
        np.testing.assert_allclose(distillation.routed_teachers(STUDENT, TEACHERS, GATE, k=k), best.mean(1), rtol=1e-5)
        shares = np.take_along_axis(np.asarray(GATE), order[:, :k], axis=1)
        weighted = distillation.routed_teachers(STUDENT, TEACHERS, GATE, k=k, weighted=True)
        np.testing.assert_allclose(weighted, (best * shares).sum(1) / shares.sum(1), rtol=1e-5)
    # Of equal probabilities the first teachers; those not picked do not count, whatever they hold.
    even = jnp.full((4, 3), 1 / 3)
    unpicked = TEACHERS.at[2].set(jnp.nan)
    for weighted in (False, True):
        value = distillation.routed_teachers(STUDENT, unpicked, even, k=2, weighted=weighted)
        np.testing.assert_allclose(value, EACH[:, :2].mean(1), rtol=1e-5)
    nothing = distillation.routed_teachers(STUDENT, TEACHERS, 0 * GATE, k=2, weighted=True)
    np.testing.assert_allclose(nothing, EACH[:, :2].mean(1), rtol=1e-5)
    assert np.isnan(distillation.routed_teachers(STUDENT, TEACHERS, GATE.at[0, 1].set(jnp.nan))[0])


def slopes(loss):
    """Largest gradient of student, teachers and gate."""
    gradients = jax.grad(lambda *x: loss(*x).sum(), argnums=(0, 1, 2))(STUDENT, TEACHERS, GATE)
    assert all(np.all(np.isfinite(gradient)) for gradient in gradients)
    return [float(jnp.abs(gradient).max()) for gradient in gradients]


def test_the_gate_learns_from_weighted_and_blended_teachers_alone():
    routed = distillation.routed_teachers
    for loss, gate_learns in (
        (partial(routed, k=2), False),
        (partial(routed, k=1, weighted=True), False),
        (partial(routed, k=2, weighted=True), True),
        (distillation.blended_teachers, True),
    ):
        student, teachers, gate = slopes(loss)
        assert student > 1e-3
        assert teachers == 0
        assert (gate > 1e-4) == gate_learns


def test_blended_teachers_mix_logits():
    expected = distillation.kullback_leibler(STUDENT, jnp.einsum("bm,mbc->bc", GATE, TEACHERS), temperature=2.0)
    np.testing.assert_allclose(
        distillation.blended_teachers(STUDENT, TEACHERS, GATE, temperature=2.0), expected, rtol=1e-5
    )
    alone = distillation.blended_teachers(STUDENT, TEACHERS, jnp.zeros((4, 3)).at[:, 1].set(1.0))
    np.testing.assert_allclose(alone, EACH[:, 1], rtol=1e-5)
    # A masked class stays masked, and a teacher without weight masks nothing.
    masked = TEACHERS.at[0, :, 2].set(-jnp.inf)
    value, gradient = jax.value_and_grad(lambda g: distillation.blended_teachers(STUDENT, masked, g).sum())(GATE)
    assert np.isfinite(float(value))
    assert np.all(np.isfinite(np.asarray(gradient)))
    off = distillation.blended_teachers(STUDENT, masked, jnp.zeros((4, 3)).at[:, 1].set(1.0))
    np.testing.assert_allclose(off, EACH[:, 1], rtol=1e-5)


def test_balance_by_hand():
    gate = jnp.array([[1.0, 0.0], [0.5, 0.5]])  # mean 3/4, 1/4
    expected = (np.log(0.5 / 0.75) + np.log(0.5 / 0.25)) / 4
    np.testing.assert_allclose(distillation.load_balance(gate), expected, rtol=1e-5)
    np.testing.assert_allclose(distillation.load_balance(gate, mode="cv"), np.std([1.5, 0.5], ddof=1), rtol=1e-5)
    sharp = jnp.eye(3)  # each example one teacher, all used alike
    for mode in ("kl", "cv"):
        np.testing.assert_allclose(distillation.load_balance(sharp, mode=mode), 0, atol=1e-6)
        value, gradient = jax.value_and_grad(partial(distillation.load_balance, mode=mode))(0 * sharp.at[:, 0].set(1))
        assert np.isfinite(float(value))
        assert np.all(np.isfinite(np.asarray(gradient)))
    assert distillation.load_balance(jnp.zeros((2, 3)), mode="cv") == 0
    assert distillation.load_balance(jnp.ones((2, 1))) == 0


@pytest.mark.parametrize("mode", ["kl", "cv"])
def test_balance_of_a_batch_over_devices_is_that_of_the_whole(mode):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    gate = jax.nn.softmax(jax.random.normal(KEYS[0], (8, 3)))
    balance = partial(distillation.load_balance, mode=mode, axis_name="data")
    split = jax.jit(jax.shard_map(balance, mesh=mesh, in_specs=P("data"), out_specs=P()))
    np.testing.assert_allclose(split(gate), distillation.load_balance(gate, mode=mode), rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: distillation.mutual(STUDENT), "logits"),
        (lambda: distillation.mutual(TEACHERS[:0]), "at least one model"),
        (lambda: distillation.mutual(TEACHERS, temperature=0.0), "temperature"),
        (lambda: distillation.routed_teachers(STUDENT, TEACHERS, GATE, k=0), "k must"),
        (lambda: distillation.routed_teachers(STUDENT, TEACHERS, GATE, k=4), "teachers, 3, got 4"),
        (lambda: distillation.routed_teachers(STUDENT, TEACHERS, GATE.T), r"\(4, 3\)"),
        (lambda: distillation.routed_teachers(STUDENT, TEACHERS, -GATE), "gate_probabilities"),
        (lambda: distillation.routed_teachers(STUDENT, TEACHERS, GATE, temperature=-1.0), "temperature"),
        (lambda: distillation.blended_teachers(STUDENT, TEACHERS[..., :4], GATE), r"teacher_logits.*\(3, 4, 4\)"),
        (lambda: distillation.blended_teachers(STUDENT[0], TEACHERS, GATE), "student_logits"),
        (lambda: distillation.load_balance(GATE, mode="entropy"), "mode must be one of cv, kl"),
        (lambda: distillation.load_balance(GATE[:, :1], mode="cv"), "at least 2 teachers"),
        (lambda: distillation.load_balance(GATE[:0]), "an example and a teacher"),
        (lambda: distillation.load_balance(-GATE), "gate_probabilities"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
