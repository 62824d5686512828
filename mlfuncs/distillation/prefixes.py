"""A series of ever smaller students, trained one after the other and used as many at a time as a device can pay for."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks
from mlfuncs._arrays import as_float, sum_over
from mlfuncs.distillation._rows import check_classes, log_probabilities
from mlfuncs.distillation.logits import knowledge_distillation


def hard_soft(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    labels: ArrayLike,
    *,
    alpha: ArrayLike = 0.5,
    temperature: ArrayLike = 1.0,
) -> Array:
    r"""Labels and a frozen teacher, :math:`\alpha\, CE(s, y) + (1 - \alpha)\, T^2\, KL(p \| q)`.

    `knowledge_distillation` with the weight on the other side, and no gradient to the teacher.

    Args:
      student_logits: [..., C], C >= 1.
      teacher_logits: like `student_logits`. A constant: no gradient passes.
      labels: int [...], in [0, C). Under `jit` they are not checked.
      alpha: weight of the labels in [0, 1], a scalar (may be traced). 1 is plain training. Default 0.5; the paper gives the
        mixture, not its value.
      temperature: T > 0, a scalar (may be traced). Default 1, likewise.

    Returns:
      [...] values >= 0, in at least float32.

    Raises:
      ValueError: shapes differ, labels not integers of the leading shape and in range, alpha outside [0, 1], or T <= 0.

    References:
      Medina et al., Mamba base PKD for efficient knowledge compression, arXiv:2503.01727.
    """
    _checks.rank("alpha", alpha, 0)
    _checks.within("alpha", alpha, 0, 1)
    teacher = jax.lax.stop_gradient(jnp.asarray(teacher_logits))
    return knowledge_distillation(student_logits, teacher, labels, soft_weight=1 - alpha, temperature=temperature)


def remaining_error_weights(
    ensemble_probabilities: ArrayLike, teacher_probabilities: ArrayLike, *, axis_name: str | None = None
) -> Array:
    r"""Weights of examples for the next student: how far the students so far are from the teacher, with mean one.

    .. math:: w_b = TV_b / \overline{TV}, \quad TV_b = \tfrac12 \sum_c |P_b(c) - p_b(c)|

    The paper says that each student learns from the errors its predecessors left, not how: this form is ours, boosting with
    one weight an example. Compute it once a student over the whole training set (`prefix_ensemble`), not a batch at a time.

    Args:
      ensemble_probabilities: P [B, C] of the students so far, B >= 1.
      teacher_probabilities: p [B, C].
      axis_name: inside `shard_map` or `pmap`, the axis over which examples are split: the mean is over all of them.

    Returns:
      [B] weights >= 0, constants to a gradient; all 1 where nothing is left to learn.

    Raises:
      ValueError: not two axes, shapes that differ, no example, or concrete negative probabilities.

    References:
      Medina et al., arXiv:2503.01727; Dennis et al., Progressive Ensemble Distillation, arXiv:2302.10093.
    """
    _checks.rank("ensemble_probabilities", ensemble_probabilities, 2)
    _checks.same_shape("ensemble_probabilities", ensemble_probabilities, "teacher_probabilities", teacher_probabilities)
    if np.shape(ensemble_probabilities)[0] == 0:
        raise ValueError("ensemble_probabilities must hold at least one example, got none")
    _checks.non_negative("ensemble_probabilities", ensemble_probabilities)
    _checks.non_negative("teacher_probabilities", teacher_probabilities)
    gap = jnp.abs(as_float(ensemble_probabilities) - as_float(teacher_probabilities))
    left = jax.lax.stop_gradient(jnp.sum(gap, axis=1) / 2)
    mean = sum_over(jnp.sum(left), axis_name) / sum_over(left.shape[0], axis_name)
    done = mean == 0
    return jnp.where(done, 1.0, left / jnp.where(done, 1.0, mean))


def prefix_ensemble(student_logits: ArrayLike, weights: ArrayLike | None = None) -> Array:
    r"""Predictions of the first k students together, for every k: :math:`\sum_{j \le k} a_j\, q_j / \sum_{j \le k} a_j`.

    Probabilities are averaged, not logits: one student whose logits are too large does not outvote the others.

    Args:
      student_logits: [K, ..., C] of K >= 1 students.
      weights: a [K] >= 0, the first > 0; None: all 1.

    Returns:
      [K, ..., C] probabilities, in at least float32.

    Raises:
      ValueError: fewer than two axes, no student or class, or weights not [K], negative or first 0 where concrete.

    References:
      Medina et al., arXiv:2503.01727.
    """
    check_classes("student_logits", student_logits)
    if np.ndim(student_logits) < 2 or np.shape(student_logits)[0] == 0:
        raise ValueError(f"student_logits must be [K, ..., C] of K >= 1 students, got {np.shape(student_logits)}")
    students = np.shape(student_logits)[0]
    shares = jnp.ones(students) if weights is None else as_float(weights)
    if shares.shape != (students,):
        raise ValueError(f"weights must have shape ({students},), one a student, got {shares.shape}")
    _checks.non_negative("weights", shares)
    _checks.positive("the first of weights", shares[0])
    probabilities = jnp.exp(log_probabilities(jnp.asarray(student_logits)))
    shares = shares.reshape(students, *(1,) * (probabilities.ndim - 1))
    return jnp.cumsum(shares * probabilities, axis=0) / jnp.cumsum(shares, axis=0)
