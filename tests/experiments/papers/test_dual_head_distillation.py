"""Which head each loss reads, gradients that are aligned, and the cosines that are measured."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from configs.papers import digits_noise as configs
from experiments.papers import digits_noise
from experiments.papers import dual_head_distillation as study
from mlfuncs import distillation
from tests.experiments.papers.smoke import smoke

OBJECTIVE = "cross_entropy + binary_kullback_leibler_difference"


def start(heads):
    made = ml_collections.ConfigDict(configs.settings())
    made.update(configs.smoke())
    teacher = digits_noise.teacher_network(made.shared).init(jax.random.key(7))
    given = digits_noise.setting(made, jax.random.key(0), {"teacher": teacher})
    params = given.student.init(jax.random.key(1))
    if heads == 2:
        params["auxiliary"] = {"kernel": jax.random.normal(jax.random.key(2), (8, 10)), "bias": jnp.ones(10)}
    batch = digits_noise.batch(made, given, jnp.arange(24), jax.random.key(3))
    return given, params, batch


def test_with_two_heads_the_sum_is_the_librarys_objective():
    given, params, batch = start(heads=2)
    loss = study.both(*study.losses(given, OBJECTIVE))
    seen = given.student.apply(study.split(params)[0], batch.x)
    auxiliary = seen["features"] @ params["auxiliary"]["kernel"] + 1
    expected = jnp.mean(distillation.dual_head(seen["logits"], auxiliary, batch.teacher["logits"], batch.y))
    np.testing.assert_allclose(loss(params, batch, None), expected, rtol=1e-5)


def test_aligned_gradients_are_the_reference_and_what_does_not_oppose_it():
    given, params, batch = start(heads=1)
    label_loss, teacher_loss = study.losses(given, OBJECTIVE)
    opposing = lambda *args: -3 * label_loss(*args) + 0.1 * teacher_loss(*args)  # noqa: E731
    value, found = jax.value_and_grad(study.aligned(label_loss, opposing))(params, batch, None)
    np.testing.assert_allclose(value, study.both(label_loss, opposing)(params, batch, None), rtol=1e-5)
    reference, gradients = (jax.grad(loss)(params, batch, None) for loss in (label_loss, opposing))
    kept = distillation.align_gradients(gradients, reference)
    jax.tree.map(lambda f, r, k: np.testing.assert_allclose(f, r + k, rtol=1e-4, atol=1e-6), found, reference, kept)
    cosines = study.conflict(label_loss, opposing, params, batch)
    assert float(cosines["all"]) < -0.5
    assert abs(float(cosines["aligned"])) < 1e-5


def test_heads_of_their_own_are_not_in_conflict():
    given, params, batch = start(heads=2)
    cosines = study.conflict(*study.losses(given, OBJECTIVE), params, batch)
    assert float(cosines["head"]) == 0
    assert abs(float(cosines["below"])) > 0


def test_smoke(tmp_path):
    arms = smoke("dual_head_distillation", tmp_path)
    assert all(records["0"]["lowest_aligned_cosine"] >= -1e-6 for records in arms.values())
