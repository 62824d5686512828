"""Two heads in active learning: mixtures of predictions, the objective by its parts, split batches, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from mlfuncs import distillation

KEY = jax.random.key(0)
HEAD, OTHER, TEACHER = jax.random.normal(KEY, (3, 8, 5))
LABELS = jnp.array([0, 4, 2, 2, 1, 1, 3, 0])
POOL, POOL_TEACHER = jax.random.normal(jax.random.key(1), (2, 16, 5))
BATCH = (HEAD, OTHER, TEACHER, LABELS, POOL, POOL_TEACHER)


def test_probabilities():
    softmax = jax.nn.softmax
    ours = distillation.dual_head_probabilities(HEAD, OTHER, mix=0.3, temperature=2.0)
    np.testing.assert_allclose(ours, 0.7 * softmax(HEAD) + 0.3 * softmax(OTHER / 2), rtol=1e-5)
    np.testing.assert_allclose(distillation.dual_head_probabilities(HEAD, OTHER).sum(-1), np.ones(8), rtol=1e-5)
    np.testing.assert_allclose(distillation.dual_head_probabilities(HEAD, OTHER, mix=0), softmax(HEAD), rtol=1e-5)


def test_objective_adds_two_means():
    soft = [distillation.kullback_leibler(*x, temperature=2.0).mean() for x in ((OTHER, TEACHER), (POOL, POOL_TEACHER))]
    hard = distillation.knowledge_distillation(HEAD, TEACHER, LABELS, soft_weight=0.0).mean()
    np.testing.assert_allclose(
        distillation.dual_head_objective(*BATCH), 0.5 * hard + 0.5 * (soft[0] + soft[1]), rtol=1e-5
    )
    # An empty pool adds nothing, and no NaN.
    empty = distillation.dual_head_objective(*BATCH[:4], POOL[:0], POOL[:0], label_weight=1.0, soft_weight=0.5)
    np.testing.assert_allclose(empty, hard + 0.5 * soft[0], rtol=1e-5)


def test_split_batches_give_the_objective_of_the_whole():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    whole = lambda x: distillation.dual_head_objective(x, *BATCH[1:])  # noqa: E731
    split = jax.shard_map(
        lambda *x: distillation.dual_head_objective(*x, axis_name="data"), mesh=mesh, in_specs=P("data"), out_specs=P()
    )
    expected = jax.jit(jax.value_and_grad(whole))(HEAD)
    ours = jax.jit(jax.value_and_grad(lambda x: split(x, *BATCH[1:])))(HEAD)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), ours, expected)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: distillation.dual_head_probabilities(HEAD, OTHER[:2]), "distilled_logits"),
        (lambda: distillation.dual_head_probabilities(HEAD, OTHER, mix=1.5), "mix"),
        (lambda: distillation.dual_head_probabilities(HEAD, OTHER, temperature=0), "temperature"),
        (lambda: distillation.dual_head_objective(HEAD[0], *BATCH[1:]), "label_logits"),
        (lambda: distillation.dual_head_objective(HEAD, OTHER[:2], *BATCH[2:]), "distilled_logits"),
        (lambda: distillation.dual_head_objective(HEAD, OTHER, TEACHER[:2], *BATCH[3:]), "teacher_logits"),
        (lambda: distillation.dual_head_objective(*BATCH[:3], LABELS[:2], *BATCH[4:]), "labels"),
        (lambda: distillation.dual_head_objective(*BATCH[:5], POOL[:2]), "unlabelled_teacher_logits"),
        (lambda: distillation.dual_head_objective(*BATCH[:4], POOL[:, :2], POOL[:, :2]), "unlabelled_distilled_logits"),
        (lambda: distillation.dual_head_objective(*BATCH, temperature=0.0), "temperature"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
