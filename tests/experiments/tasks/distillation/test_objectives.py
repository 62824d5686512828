"""Objectives are read as they are written, and their value is the weighted sum of what the library gives."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.engine.errors import UserError
from experiments.tasks.distillation import objectives
from experiments.tasks.distillation.objectives import Term
from mlfuncs import distillation

KEYS = jax.random.split(jax.random.key(0), 3)
STUDENT, TEACHER = (2 * jax.random.normal(key, (6, 4)) for key in KEYS[:2])
LABELS = jax.random.randint(KEYS[2], (6,), 0, 4)


def value(text, labels=LABELS):
    terms = objectives.parse(text)
    return jax.jit(lambda *given: objectives.value(terms, *given))(STUDENT, TEACHER, labels)


def test_a_sum_is_read_term_by_term():
    assert objectives.parse(" 0.1 * cross_entropy + kullback_leibler(temperature=4) + 2 * sinkhorn() ") == (
        Term(0.1, "cross_entropy", {}),
        Term(1.0, "kullback_leibler", {"temperature": 4}),
        Term(2, "sinkhorn", {}),
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "3",
        "cross_entropy - sinkhorn",
        "cross_entropy * 2",
        "sinkhorn(4)",
        "sinkhorn(temperature=x)",
        "2 * 3 * sinkhorn",
        "0.5 *",
        "sinkhorn(**{'temperature': 2})",
        "__import__('os').getcwd()",
    ],
)
def test_what_is_no_sum_of_losses_is_refused(text):
    with pytest.raises(UserError, match=re.escape("config.objective must be a sum such as '0.1 * cross_entropy")):
        objectives.parse(text)


def test_unknown_losses_and_options_are_named():
    with pytest.raises(UserError, match=r"unknown loss in config\.objective 'hinton'; known: .*kullback_leibler"):
        objectives.parse("0.9 * hinton")
    with pytest.raises(UserError, match=r"plackett_luce has no option 'temperature'; it has teacher_temperature"):
        objectives.parse("plackett_luce(temperature=4)")
    with pytest.raises(UserError, match="cross_entropy has no option 'axis_name'; it has none"):
        objectives.parse("cross_entropy(axis_name=4)")
    with pytest.raises(ValueError, match="temperature"):
        value("kullback_leibler(temperature=0)")


def test_the_value_is_the_weighted_sum_of_means():
    @jax.jit
    def by_hand(student, teacher, labels):
        return (
            0.1 * jnp.mean(objectives.cross_entropy(student, labels))
            + 0.9 * jnp.mean(distillation.kullback_leibler(student, teacher, temperature=4))
            + 0.8 * jnp.mean(distillation.sinkhorn(student, teacher))
            + 2 * distillation.correlation(student, teacher)
            + jnp.mean(distillation.plackett_luce(student, teacher, labels, teacher_temperature=4))
        )

    text = "0.1 * cross_entropy + 0.9 * kullback_leibler(temperature=4) + 0.8 * sinkhorn + 2 * correlation"
    expected = by_hand(STUDENT, TEACHER, LABELS)
    np.testing.assert_allclose(value(f"{text} + plackett_luce(teacher_temperature=4)"), expected, rtol=1e-6)


@pytest.mark.parametrize("name", sorted(objectives.LOSSES))
def test_every_loss_is_finite_and_moves_the_student(name):
    terms = objectives.parse(name)
    run = jax.jit(jax.value_and_grad(lambda s: objectives.value(terms, s, TEACHER, LABELS)))
    loss, gradient = map(np.asarray, run(STUDENT))
    assert np.isfinite(loss)
    assert np.all(np.isfinite(gradient))
    assert np.abs(gradient).max() > 1e-3


def test_knowledge_distillation_is_its_two_parts():
    np.testing.assert_allclose(
        value("knowledge_distillation"),
        value("0.1 * cross_entropy + 0.9 * kullback_leibler(temperature=4)"),
        rtol=1e-6,
    )


def test_labels_may_be_shares_where_a_loss_can_take_them():
    shares = jax.nn.one_hot(LABELS, 4)
    for name in ("cross_entropy", "mixup_objective"):
        np.testing.assert_allclose(value(name, shares), value(name), rtol=1e-6)
    even = jnp.full((6, 4), 0.25)
    expected = -jnp.mean(jax.nn.log_softmax(STUDENT))
    np.testing.assert_allclose(value("cross_entropy", even), expected, rtol=1e-6)
    with pytest.raises(ValueError, match="labels"):
        value("plackett_luce", shares)


def test_losses_that_mix_examples_are_those_of_the_whole_batch_under_pmap():
    assert {"correlation", "sinkhorn"} == objectives.WHOLE_BATCH
    terms = objectives.parse("sinkhorn + correlation + 0.5 * cross_entropy")

    def gradient(student, teacher, labels, axis_name=None):
        return jax.grad(lambda s: objectives.value(terms, s, teacher, labels, axis_name))(student)

    split = [x.reshape(2, 3, *x.shape[1:]) for x in (STUDENT, TEACHER, LABELS)]
    values = jax.pmap(lambda *x: objectives.value(terms, *x, "examples"), "examples")(*split)
    of_one_device = jax.jit(lambda *x: objectives.value(terms, *x))
    whole = of_one_device(STUDENT, TEACHER, LABELS)
    np.testing.assert_allclose(np.mean(values), whole, rtol=1e-5)
    # The mean over parts, as the gradient of shared parameters is averaged.
    parts = jax.pmap(lambda *x: gradient(*x, axis_name="examples"), "examples")(*split) / 2
    np.testing.assert_allclose(parts.reshape(6, 4), jax.jit(gradient)(STUDENT, TEACHER, LABELS), rtol=1e-4, atol=1e-6)
    apart = of_one_device(STUDENT[:3], TEACHER[:3], LABELS[:3])
    assert abs(float(apart - whole)) > 1e-3
