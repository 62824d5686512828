"""Parameters between and around initialisations: exact ends, kept variance, dtypes, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlfuncs import distillation

KEY = jax.random.key(0)
FIRST, SECOND = jax.random.normal(KEY, (2, 200, 200))


def test_by_hand():
    anchor, other = {"w": jnp.array([3.0, -1.0])}, {"w": jnp.array([1.0, 2.0])}
    halfway = distillation.interpolate_parameters(anchor, other, fraction=0.5)
    np.testing.assert_allclose(halfway["w"], np.array([2.0, 0.5]) / np.sqrt(0.5), rtol=1e-6)
    linear = distillation.interpolate_parameters(anchor, other, fraction=0.25, preserve_variance=False)
    np.testing.assert_allclose(linear["w"], [2.5, -0.25])
    moved = distillation.perturb_parameters(anchor, other, radius=2.0)
    np.testing.assert_allclose(moved["w"], np.array([5.0, 3.0]) / np.sqrt(5), rtol=1e-6)
    moved = distillation.perturb_parameters(anchor, other, radius=2.0, preserve_variance=False)
    np.testing.assert_allclose(moved["w"], [5.0, 3.0])


def test_ends_are_copies_bit_for_bit():
    anchor = {"w": jnp.array([0.1, -0.0, jnp.inf]), "h": jnp.array([0.1], jnp.bfloat16), "step": jnp.array(3)}
    other = {"w": jnp.array([0.7, 0.0, 1.0]), "h": jnp.array([0.3], jnp.bfloat16), "step": jnp.array(9)}
    same = lambda a, b: (a.dtype, np.asarray(a).tobytes()) == (b.dtype, np.asarray(b).tobytes())  # noqa: E731
    for start in (
        distillation.interpolate_parameters(anchor, other, fraction=0.0),
        jax.jit(lambda r: distillation.perturb_parameters(anchor, other, radius=r))(0.0),
    ):
        assert all(jax.tree.leaves(jax.tree.map(same, start, anchor)))
    end = jax.jit(lambda a: distillation.interpolate_parameters(anchor, other, fraction=a))(1.0)
    assert all(same(end[name], other[name]) for name in ("w", "h"))
    assert end["step"] == 3  # a counter is the anchor's


@pytest.mark.parametrize("amount", [0.2, 0.5, 0.9])
def test_variance_of_independent_draws_is_kept(amount):
    # 40 000 weights: the variance is within 5 standard errors of 1, sqrt(2 / 40 000) each.
    for mixed in (
        distillation.interpolate_parameters(FIRST, SECOND, fraction=amount),
        distillation.perturb_parameters(FIRST, SECOND, radius=amount),
    ):
        assert abs(float(jnp.var(mixed)) - 1) < 5 * np.sqrt(2 / 40_000)


def test_a_student_at_its_teacher_has_no_gradient():
    x = jax.random.normal(KEY, (8, 5))
    teacher = jax.random.normal(jax.random.key(1), (5, 4))

    def loss(fraction, offset):
        student = distillation.interpolate_parameters(teacher, -teacher, fraction=fraction) + offset
        return distillation.soft_cross_entropy(x @ student, x @ teacher).mean()

    slope = jax.jit(jax.grad(loss, argnums=1))
    np.testing.assert_allclose(slope(0.0, jnp.zeros((5, 4))), np.zeros((5, 4)), atol=1e-6)
    assert jnp.linalg.norm(slope(0.2, jnp.zeros((5, 4)))) > 1e-2


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: distillation.interpolate_parameters({"a": FIRST}, {"b": FIRST}, fraction=0.5), "other"),
        (lambda: distillation.interpolate_parameters(FIRST, FIRST[0], fraction=0.5), "other"),
        (lambda: distillation.interpolate_parameters(FIRST, SECOND, fraction=1.1), "fraction"),
        (lambda: distillation.interpolate_parameters(FIRST, SECOND, fraction=-0.1), "fraction"),
        (lambda: distillation.perturb_parameters(FIRST, FIRST[0], radius=1.0), "direction"),
        (lambda: distillation.perturb_parameters(FIRST, SECOND, radius=-1.0), "radius"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
