"""Distillation of the teacher's ranking of the classes: the Plackett-Luce likelihood."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from mlfuncs import _checks
from mlfuncs._arrays import as_float, float_dtype
from mlfuncs.distillation._ranked_sums import discounted_sums, tail_log_sum_exp
from mlfuncs.distillation._rows import (
    check_classes,
    check_integers,
    check_labels,
    check_pair,
    check_temperature,
    log_probabilities,
    over_rows,
    weighted,
)


def _ranking_rows(teacher: Array, labels: Array) -> Array:
    is_label = jnp.arange(teacher.shape[-1]) == labels[..., None]
    scores = as_float(teacher)
    others = jnp.maximum(-scores, jnp.finfo(scores.dtype).min)
    # Infinity and not the maximum plus one, which rounding or an equal maximum could undo.
    keys = jnp.where(is_label, -jnp.inf, others)
    if keys.dtype != jnp.float32:
        return _stable_order(keys)
    return jnp.asarray(jax.lax.platform_dependent(keys, cpu=_packed_order, default=_stable_order))


def _stable_order(keys: Array) -> Array:
    return jnp.argsort(keys, axis=-1, stable=True).astype(jnp.int32)


def _packed_order(keys: Array) -> Array:
    """The same, by integers that hold key and position: on CPUs a sort of single numbers is four times as fast."""
    keys = jnp.where(jnp.isnan(keys), jnp.nan, keys + 0.0)  # one NaN, which comes last, and one zero
    bits = jax.lax.bitcast_convert_type(keys, jnp.int32)
    ordered = jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    position = jax.lax.broadcasted_iota(jnp.int32, keys.shape, keys.ndim - 1)
    with jax.enable_x64(True):
        wide = jax.lax.convert_element_type(ordered, jnp.int64)
        wide = jax.lax.shift_left(wide, jax.lax.full_like(wide, 32)) | jax.lax.convert_element_type(position, jnp.int64)
        wide = jax.lax.sort(wide, dimension=keys.ndim - 1, is_stable=False)
        return jax.lax.convert_element_type(wide, jnp.int32)


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
def _list_likelihood(logits: Array, weights: Array, ranking: Array) -> Array:
    """sum_k w_k (Z_k - s_k) of scores in order of rank, Z_k the logsumexp of the k-th and all later ones."""
    scores = jnp.take_along_axis(logits, ranking, axis=-1)
    return jnp.sum(weighted(weights, _regrets(scores, tail_log_sum_exp(scores))), axis=-1)


def _regrets(scores: Array, tails: Array) -> Array:
    """Z_k - s_k; 0 where no class is left to choose from."""
    empty = jnp.isneginf(tails)
    return jnp.where(empty, 0.0, tails) - jnp.where(empty, 0.0, scores)


def _gradient_by_rank(scores: Array, tails: Array, weights: Array) -> Array:
    """sum_{k <= j} w_k exp(s_j - Z_k) - w_j."""
    empty = jnp.isneginf(tails)
    share = jnp.exp(scores - jnp.where(empty, 0.0, tails))
    return jnp.where(empty, 0.0, share * discounted_sums(weights, tails) - weights)


def _by_class(values: Array, ranking: Array) -> Array:
    """Values in order of rank, back in order of class."""
    rank = jnp.broadcast_to(jnp.arange(ranking.shape[-1], dtype=ranking.dtype), ranking.shape)
    place = jnp.put_along_axis(jnp.zeros_like(ranking), ranking, rank, axis=-1, inplace=False)
    return jnp.take_along_axis(values, place, axis=-1)


def _list_likelihood_jvp(
    arguments: tuple[Array, Array, Array], changes: tuple[Array, Array, Array]
) -> tuple[Array, Array]:
    logits, weights, ranking = arguments
    scores = jnp.take_along_axis(logits, ranking, axis=-1)
    tails = tail_log_sum_exp(scores)
    regrets = _regrets(scores, tails)
    value = jnp.sum(weighted(weights, regrets), axis=-1)
    change = jnp.zeros_like(value)
    if not isinstance(changes[0], SymbolicZero):
        gradient = _by_class(_gradient_by_rank(scores, tails, weights), ranking)
        change += jnp.sum(gradient * changes[0], axis=-1)
    if not isinstance(changes[1], SymbolicZero):
        change += jnp.sum(regrets * changes[1], axis=-1)
    return value, change


_list_likelihood.defjvp(_list_likelihood_jvp, symbolic_zeros=True)


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
    rows = lambda s, r, w: _list_likelihood(as_float(s), as_float(w), r)  # noqa: E731
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


def _weighted_ranking(teacher: Array, labels: Array, temperature: ArrayLike) -> tuple[Array, Array]:
    """The teacher's probabilities by rank, and the ranking of the classes."""
    ranking = _ranking_rows(teacher, labels)
    weights = jax.lax.stop_gradient(jnp.exp(log_probabilities(teacher, temperature)))
    return jnp.take_along_axis(weights, ranking, axis=-1), ranking


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
    rows = lambda s, t, y: _list_likelihood(as_float(s), *_weighted_ranking(t, y, teacher_temperature))  # noqa: E731
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
        weights, ranking = _weighted_ranking(teacher, labels, teacher_temperature)
        scores = jnp.take_along_axis(as_float(student), ranking, axis=-1)
        by_rank = _gradient_by_rank(scores, tail_log_sum_exp(scores), weights)
        return _by_class(by_rank, ranking).astype(float_dtype(student))

    return over_rows(rows, *checked)
