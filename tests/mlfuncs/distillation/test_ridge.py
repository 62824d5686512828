"""Ridge regression on pruned data: the closed form in float64, what the teacher saves, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlfuncs import distillation

X, Y = np.random.default_rng(0).standard_normal((30, 4)), np.random.default_rng(1).standard_normal(30)
KEPT = jnp.array([2, 3, 5, 7, 11, 13])


def solve(x, y, regularization):
    return np.linalg.solve(x.T @ x + regularization * np.eye(x.shape[1]), x.T @ y)


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_closed_form(weight):
    seen = X[np.asarray(KEPT)]
    mixed = (1 - weight) * Y[np.asarray(KEPT)] + weight * seen @ solve(X, Y, 0.1)
    run = jax.jit(lambda a, r: distillation.self_distilled_ridge(X, Y, KEPT, soft_weight=a, regularization=r))
    np.testing.assert_allclose(run(weight, 0.1), solve(seen, mixed, 0.1), rtol=1e-3, atol=1e-5)


def test_all_rows_and_the_teacher_alone():
    everything = distillation.self_distilled_ridge(X, Y, jnp.arange(30), soft_weight=0.0, regularization=0.1)
    np.testing.assert_allclose(everything, solve(X, Y, 0.1), rtol=1e-4)
    # Without regularisation the student of a linear teacher is the teacher.
    student = distillation.self_distilled_ridge(X, Y, KEPT, soft_weight=1.0, regularization=0.0)
    np.testing.assert_allclose(student, solve(X, Y, 0.0), rtol=1e-3)


def test_the_teacher_lowers_the_squared_error_on_few_rows():
    generator = np.random.default_rng(2)
    truth, x = generator.standard_normal(20), generator.standard_normal((200, 20))
    targets = x @ truth + generator.standard_normal((20, 200))  # 20 draws of the noise
    run = jax.jit(
        jax.vmap(
            lambda y, a: distillation.self_distilled_ridge(x, y, jnp.arange(30), soft_weight=a, regularization=0.1),
            in_axes=(0, None),
        )
    )
    errors = [np.mean(np.sum((np.asarray(run(targets, a)) - truth) ** 2, 1)) for a in (0.0, 0.5, 1.0)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"inputs": X[0]}, "inputs"),
        ({"targets": Y[:3]}, "targets"),
        ({"kept": KEPT[:0]}, "kept"),
        ({"kept": KEPT + 20}, "kept"),
        ({"kept": KEPT * 1.0}, "kept"),
        ({"soft_weight": 1.5}, "soft_weight"),
        ({"regularization": -0.1}, "regularization"),
    ],
)
def test_bad_input(change, match):
    arguments = {"inputs": X, "targets": Y, "kept": KEPT, "soft_weight": 0.5, "regularization": 0.1}
    with pytest.raises(ValueError, match=match):
        distillation.self_distilled_ridge(**{**arguments, **change})
