"""Distillation of the teacher's ranking of the classes: the Plackett-Luce likelihood."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks
from mlfuncs._arrays import as_float, float_dtype
from mlfuncs.distillation._rows import (
    check_classes,
    check_integers,
    check_labels,
    check_pair,
    check_temperature,
    log_probabilities,
    over_rows,
)


def _ranking_rows(teacher: Array, labels: Array) -> Array:
    is_label = jnp.arange(teacher.shape[-1]) == labels[..., None]
    scores = as_float(teacher)
    others = jnp.maximum(-scores, jnp.finfo(scores.dtype).min)
    # Infinity and not the maximum plus one, which rounding or an equal maximum could undo.
    return jnp.argsort(jnp.where(is_label, -jnp.inf, others), axis=-1, stable=True).astype(jnp.int32)


def teacher_ranking(teacher_logits: ArrayLike, labels: ArrayLike) -> Array:
    """Classes from best to worst: the label, then the others by descending teacher logit.

    Args:
      teacher_logits: [..., C], C >= 1. Of equal logits the lower class comes first; NaN comes last.
      labels: int [...], in [0, C). Under `jit` they are not checked.

    Returns:
      int32 [..., C], a permutation of the classes in each row. No gradient passes.

    Raises:
      ValueError: no class, or labels not integers of the leading shape and in range.

    References:
      Bassam et al., PLD: A Choice-Theoretic List-Wise Knowledge Distillation, arXiv:2506.12542.
    """
    check_classes("teacher_logits", teacher_logits)
    teacher = jax.lax.stop_gradient(jnp.asarray(teacher_logits))
    return over_rows(_ranking_rows, teacher, check_labels(labels, teacher.shape[:-1], teacher.shape[-1]))


@jax.custom_jvp
def _ranked_likelihood(scores: Array, weights: Array) -> Array:
    """sum_k w_k (Z_k - s_k) of ranked scores, Z_k the logsumexp of the k-th and all later ones."""
    return jnp.sum(_scaled(weights, _regrets(scores)), axis=-1)


def _regrets(scores: Array) -> Array:
    """Z_k - s_k; 0 where no class is left to choose from."""
    tails = jax.lax.cumlogsumexp(scores, axis=scores.ndim - 1, reverse=True)
    empty = jnp.isneginf(tails)
    return jnp.where(empty, 0.0, tails) - jnp.where(empty, 0.0, scores)


def _scaled(weights: Array, values: Array) -> Array:
    held = weights != 0
    return jnp.where(held, weights * jnp.where(held, values, 0.0), 0.0)


def _ranked_gradient(scores: Array, weights: Array) -> Array:
    """sum_{k <= j} w_k exp(s_j - Z_k) - w_j, from one cumulative sum for each sign of the weights."""
    tails = jax.lax.cumlogsumexp(scores, axis=scores.ndim - 1, reverse=True)
    empty = jnp.isneginf(tails)

    def passed_on(part: Array) -> Array:
        usable = (part > 0) & ~empty
        logs = jnp.where(usable, jnp.log(jnp.where(usable, part, 1.0)) - jnp.where(empty, 0.0, tails), -jnp.inf)
        return jnp.exp(scores + jax.lax.cumlogsumexp(logs, axis=scores.ndim - 1))

    return passed_on(weights) - passed_on(-weights) - jnp.where(empty, 0.0, weights)


@_ranked_likelihood.defjvp
def _ranked_likelihood_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    scores, weights = primals
    change = _ranked_gradient(scores, weights) * tangents[0] + _regrets(scores) * tangents[1]
    return _ranked_likelihood(scores, weights), jnp.sum(change, axis=-1)


def _ranked_scores(logits: Array, ranking: Array) -> Array:
    scores = jnp.take_along_axis(as_float(logits), ranking, axis=-1)
    # A shift changes nothing, and large logits would cost digits.
    top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    return scores - jnp.where(jnp.isneginf(top), 0.0, top)


def weighted_list_likelihood(logits: ArrayLike, ranking: ArrayLike, weights: ArrayLike) -> Array:
    r"""Negative Plackett-Luce log-likelihood of a ranking, with a weight for each choice.

    .. math:: \sum_k w_k \Big[ \log \sum_{l \ge k} e^{s_{\pi_l}} - s_{\pi_k} \Big]

    Weights (1, 0, ..., 0) give the cross-entropy of the first class, equal weights of 1 ListMLE. Convex in the logits where
    no weight is negative, and unchanged by shifts of them.

    Args:
      logits: [..., C], C >= 1.
      ranking: int [..., C], classes from best to worst.
      weights: [..., C] by rank, not by class. Gradients pass to them and to the logits. A choice of weight 0 counts for
        nothing.

    Returns:
      [...], in at least float32. The last choice, and any between classes that are all masked by -inf, adds 0; the choice
      of a masked class while others are left is infinite.

    Raises:
      ValueError: shapes differ, no class, or a ranking that is not of integers in [0, C).

    References:
      Xia et al., Listwise Approach to Learning to Rank (ListMLE, 2008); Bassam et al., arXiv:2506.12542.
    """
    check_classes("logits", logits)
    _checks.same_shape("logits", logits, "ranking", ranking)
    _checks.same_shape("logits", logits, "weights", weights)
    ranks = check_integers("ranking", ranking, np.shape(logits)[-1])
    rows = lambda s, r, w: _ranked_likelihood(_ranked_scores(s, r), as_float(w))  # noqa: E731
    return over_rows(rows, jnp.asarray(logits), ranks, jnp.asarray(weights))


def _check_ranked(
    student_logits: ArrayLike, teacher_logits: ArrayLike, labels: ArrayLike, teacher_temperature: ArrayLike
) -> tuple[Array, Array, Array]:
    student, teacher = check_pair(student_logits, teacher_logits)
    check_temperature(teacher_temperature, "teacher_temperature")
    return (
        student,
        jax.lax.stop_gradient(teacher),
        check_labels(labels, student.shape[:-1], student.shape[-1]),
    )


def _ranked_inputs(student: Array, teacher: Array, labels: Array, temperature: ArrayLike) -> tuple[Array, Array, Array]:
    """Ranking of the classes, student scores and teacher weights by rank."""
    ranking = _ranking_rows(teacher, labels)
    weights = jax.lax.stop_gradient(jnp.exp(log_probabilities(teacher, temperature)))
    scores = _ranked_scores(student, ranking)
    return ranking, scores, jnp.take_along_axis(weights, ranking, axis=-1).astype(scores.dtype)


def plackett_luce(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    labels: ArrayLike,
    *,
    teacher_temperature: ArrayLike = 1.0,
) -> Array:
    r"""Plackett-Luce distillation (PLD), one convex loss that holds the cross-entropy and the teacher's whole ranking.

    `weighted_list_likelihood` of `teacher_ranking`, the choice of each class weighted by the teacher's probability
    softmax(t / T) of it. It is the whole training loss: no cross-entropy is added. The weight of the true label is the
    teacher's probability of it, small where the teacher is wrong. A saturated teacher at T = 1 leaves the cross-entropy and
    distils nothing: raise T.

    Args:
      student_logits: [..., C], C >= 1.
      teacher_logits: like `student_logits`. No gradient passes: ranking and weights are constants, as in the paper.
      labels: int [...], in [0, C). Under `jit` they are not checked.
      teacher_temperature: T > 0, a scalar (may be traced). Default 1.

    Returns:
      [...] values >= p_y times the cross-entropy, in at least float32; 0 for one class, or where the teacher masks all.

    Raises:
      ValueError: shapes differ, no class, labels not integers of the leading shape and in range, or T <= 0.

    References:
      Bassam et al., PLD: A Choice-Theoretic List-Wise Knowledge Distillation, arXiv:2506.12542.
    """
    checked = _check_ranked(student_logits, teacher_logits, labels, teacher_temperature)
    rows = lambda s, t, y: _ranked_likelihood(*_ranked_inputs(s, t, y, teacher_temperature)[1:])  # noqa: E731
    return over_rows(rows, *checked)


def plackett_luce_gradient(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    labels: ArrayLike,
    *,
    teacher_temperature: ArrayLike = 1.0,
) -> Array:
    r"""The gradient of `plackett_luce` with respect to the student's logits, in closed form.

    .. math:: \frac{\partial L}{\partial s_{\pi_j}} = \sum_{k \le j} w_k\, e^{s_{\pi_j} - Z_k} - w_j

    Args:
      student_logits: [..., C], C >= 1.
      teacher_logits: like `student_logits`.
      labels: int [...], in [0, C). Under `jit` they are not checked.
      teacher_temperature: T > 0, a scalar (may be traced).

    Returns:
      [..., C] in [-1, 1], each row with sum 0, in the dtype of `student_logits`.

    Raises:
      ValueError: as `plackett_luce`.

    References:
      Bassam et al., arXiv:2506.12542.
    """
    checked = _check_ranked(student_logits, teacher_logits, labels, teacher_temperature)

    def rows(student: Array, teacher: Array, labels: Array) -> Array:
        ranking, scores, weights = _ranked_inputs(student, teacher, labels, teacher_temperature)
        by_rank = _ranked_gradient(scores, weights)
        by_class = jnp.take_along_axis(by_rank, jnp.argsort(ranking, axis=-1), axis=-1)
        return by_class.astype(float_dtype(student))

    return over_rows(rows, *checked)
