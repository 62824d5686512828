"""Mutual learning and gated teachers: by hand, who gets a gradient, a batch over devices, bad input."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from mlfuncs import distillation
from mlfuncs.distillation import _rows

KEYS = jax.random.split(jax.random.key(0), 3)
STUDENT, TEACHERS = jax.random.normal(KEYS[0], (4, 5)), 2 * jax.random.normal(KEYS[1], (3, 4, 5))
GATE = jax.nn.softmax(2 * jax.random.normal(KEYS[2], (4, 3)))
MANY, MANY_GATES = jax.random.normal(KEYS[2], (11, 4, 5)), jax.nn.softmax(jax.random.normal(KEYS[0], (4, 11)))
EACH = jnp.stack([distillation.kullback_leibler(STUDENT, teacher, temperature=4.0) for teacher in TEACHERS], axis=1)


def test_mutual_is_the_sum_over_ordered_pairs():
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    expected = sum(distillation.kullback_leibler(TEACHERS[i], TEACHERS[j], temperature=4.0) for i, j in pairs)
    np.testing.assert_allclose(distillation.mutual(TEACHERS), expected, rtol=1e-5)
    np.testing.assert_array_equal(distillation.mutual(TEACHERS[:1]), jnp.zeros(4))
    np.testing.assert_array_equal(distillation.mutual(jnp.stack([STUDENT] * 4)), jnp.zeros(4))
    gradient = jax.grad(lambda z: distillation.mutual(z).sum())(TEACHERS)
    assert np.all(np.abs(np.asarray(gradient)).max(axis=(1, 2)) > 0)  # every model moves


def mutual_of_pairs(z, temperature):
    log_p = jax.nn.log_softmax(z / temperature)
    gaps = jnp.where(jnp.isneginf(log_p)[:, None], 0.0, log_p[:, None] - log_p[None])
    return temperature**2 * jnp.sum(jnp.exp(log_p)[:, None] * gaps, axis=(0, 1, 3))


def blend_by_definition(student, gate, teachers, temperature):
    blend = jnp.einsum("bm,mbc->bc", gate, teachers)
    log_p, log_q = jax.nn.log_softmax(blend / temperature), jax.nn.log_softmax(student / temperature)
    return temperature**2 * jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def blended(student, gate, teachers, temperature):
    return distillation.blended_teachers(student, teachers, gate, temperature=temperature)


@pytest.mark.parametrize("block", [2**20, 8])  # whole, and a row or two at a time
@pytest.mark.parametrize(
    ("ours", "plain", "moving", "fixed"),
    [
        (lambda z, t: distillation.mutual(z, temperature=t), mutual_of_pairs, (TEACHERS,), (3.0,)),
        (blended, blend_by_definition, (STUDENT, GATE), (TEACHERS, 3.0)),
        (blended, blend_by_definition, (STUDENT, MANY_GATES), (MANY, 3.0)),
    ],
)
def test_derivatives_are_those_of_the_definition(monkeypatch, block, ours, plain, moving, fixed):
    monkeypatch.setattr(_rows, "BLOCK", block)
    weights = jnp.arange(1.0, 5.0)
    along = tuple(jnp.cos(3.0 * x) for x in moving)
    temperature = jnp.asarray(fixed[-1])

    def derivatives(loss):
        total = lambda *x: (weights * loss(*x, *fixed)).sum()  # noqa: E731
        slopes = jax.grad(total, argnums=tuple(range(len(moving))))
        forward = jax.jvp(total, moving, along)[1]
        in_temperature = jax.grad(lambda t: (weights * loss(*moving, *fixed[:-1], t)).sum())(temperature)
        return slopes(*moving), forward, jax.jvp(slopes, moving, along)[1], in_temperature

    chex.assert_trees_all_close(
        jax.jit(lambda: derivatives(ours))(), jax.jit(lambda: derivatives(plain))(), rtol=1e-3, atol=1e-4
    )


def test_mutual_of_masked_classes_and_low_precision():
    masked = TEACHERS.at[:, :, 2].set(-jnp.inf)
    value, gradient = jax.value_and_grad(lambda z: distillation.mutual(z).sum())(masked)
    rest = np.array([0, 1, 3, 4])
    without, its_gradient = jax.value_and_grad(lambda z: distillation.mutual(z).sum())(TEACHERS[:, :, rest])
    np.testing.assert_allclose(value, without, rtol=1e-5)
    np.testing.assert_allclose(gradient[:, :, rest], its_gradient, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(gradient[:, :, 2], 0)
    # Masked by one model alone: infinite, as its divergence is; NaN stays in its example.
    value = distillation.mutual(TEACHERS.at[1, 0, 2].set(-jnp.inf).at[2, 3, 1].set(jnp.nan))
    assert np.isposinf(value[0])
    assert np.isnan(value[3])
    np.testing.assert_allclose(value[1:3], distillation.mutual(TEACHERS)[1:3], rtol=1e-6)
    np.testing.assert_array_equal(distillation.mutual(jnp.full((3, 2, 4), -jnp.inf)), jnp.zeros(2))
    # Near one another, to second order: M times the variance of the logits under p.
    near = distillation.mutual(STUDENT + 1e-2 * TEACHERS, temperature=1.0)
    p = jax.nn.softmax(STUDENT)
    apart = 1e-2 * (TEACHERS - TEACHERS.mean(0))
    expected = 3 * jnp.sum((p * apart**2).sum(-1) - (p * apart).sum(-1) ** 2, axis=0)
    np.testing.assert_allclose(near, expected, rtol=0.05)
    half = TEACHERS.astype(jnp.bfloat16)
    value, gradient = jax.value_and_grad(lambda z: distillation.mutual(z).sum())(half)
    assert (value.dtype, gradient.dtype) == (jnp.float32, jnp.bfloat16)
    np.testing.assert_allclose(value, distillation.mutual(half.astype(jnp.float32)).sum(), rtol=1e-6)


def test_blended_teachers_in_low_precision_pass_nan_of_the_gate():
    half = TEACHERS.astype(jnp.bfloat16)
    value = blended(STUDENT, GATE, half, 2.0)
    np.testing.assert_allclose(value, blended(STUDENT, GATE, half.astype(jnp.float32), 2.0), rtol=1e-6)
    masked = TEACHERS.at[0, 1, 2].set(-jnp.inf)
    assert np.isnan(blended(STUDENT, GATE.at[1, 0].set(jnp.nan), masked, 2.0)[1])


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
        (lambda: distillation.blended_teachers(STUDENT, TEACHERS, GATE, temperature=-1.0), "temperature"),
        (lambda: distillation.load_balance(GATE, mode="entropy"), "mode must be one of cv, kl"),
        (lambda: distillation.load_balance(GATE[:, :1], mode="cv"), "at least 2 teachers"),
        (lambda: distillation.load_balance(GATE[:0]), "an example and a teacher"),
        (lambda: distillation.load_balance(-GATE), "gate_probabilities"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
