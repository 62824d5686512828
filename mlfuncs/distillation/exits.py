"""Distillation across architectures: losses on exits from inside the student, in the space of logits."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks
from mlfuncs._arrays import as_float
from mlfuncs.distillation._divergences import cross_entropy_rows
from mlfuncs.distillation._rows import (
    check_labels,
    check_pair,
    check_temperature,
    log_probabilities,
    over_rows,
    scaled,
)


def _enhanced_targets(
    log_p: Array, labels: Array, exponent: ArrayLike, enhance_other: bool, keep_label_term: bool
) -> Array:
    is_label = jnp.arange(log_p.shape[-1]) == labels[..., None]
    p = jnp.exp(log_p)
    # (1 + p)^e - 1, without the digits that a small p would lose.
    of_label = jnp.expm1(exponent * jnp.log1p(p)) + (1.0 if keep_label_term else 0.0)
    of_others = jnp.exp(exponent * log_p) if enhance_other else p
    return jnp.where(is_label, of_label, of_others)


def enhanced_target_cross_entropy(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    labels: ArrayLike,
    *,
    exponent: ArrayLike = 1.0,
    temperature: ArrayLike = 1.0,
    enhance_other: bool = True,
    keep_label_term: bool = False,
) -> Array:
    r"""Soft cross-entropy with more weight on the true class (the loss of OFA-KD).

    .. math:: -\sum_c \big[ (p_c + m_c)^\epsilon - m_c \big] \log q_c, \quad m = \mathrm{onehot}(y)

    epsilon = 1 is `soft_cross_entropy`. Above 1 the true class gains and the others lose. The weights then do not sum to 1:
    it is no divergence, its minimum is at q = w / sum w. This is the official code, which adds the label's cross-entropy
    apart; `enhance_other=False, keep_label_term=True` is the paper's equation, which contains it.

    Args:
      student_logits: [..., C], C >= 1, of the student or of an exit.
      teacher_logits: like `student_logits`. No gradient passes: the weights are constants.
      labels: int [...], in [0, C), under mixed labels their largest class. Under `jit` they are not checked.
      exponent: epsilon > 0, a scalar (may be traced). Default 1; 1.5 for a ResNet-18 from DeiT on ImageNet.
      temperature: T > 0 of both sides, a scalar (may be traced). Default 1. No factor T^2.
      enhance_other: whether the other classes are raised to epsilon too.
      keep_label_term: whether the true class keeps the 1 that its label adds.

    Returns:
      [...] values >= 0, in at least float32; 0 for one class. A class of weight 0 counts for nothing.

    Raises:
      ValueError: shapes differ, no class, labels not integers of the leading shape and in range, epsilon or T <= 0.

    References:
      Hao et al., One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation,
      arXiv:2310.19444.
    """
    student, teacher = check_pair(student_logits, teacher_logits)
    label = check_labels(labels, student.shape[:-1], student.shape[-1])
    _checks.rank("exponent", exponent, 0)
    _checks.positive("exponent", exponent)
    check_temperature(temperature)

    def rows(s: Array, t: Array, y: Array) -> Array:
        log_p = log_probabilities(jax.lax.stop_gradient(t), temperature)
        targets = _enhanced_targets(log_p, y, exponent, enhance_other, keep_label_term)
        return cross_entropy_rows(scaled(s, temperature), targets)

    return over_rows(rows, student, teacher, label)


def multi_exit(
    exit_logits: ArrayLike,
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    labels: ArrayLike,
    *,
    exponents: ArrayLike | Sequence[float] = 1.0,
    exit_weight: ArrayLike = 1.0,
    student_weight: ArrayLike = 1.0,
    temperature: ArrayLike = 1.0,
) -> Array:
    r"""`enhanced_target_cross_entropy` of every exit and of the student's own head, summed.

    Features of other architectures are compared as logits, where nothing architectural is left. Exits do send gradients
    into the student; they are dropped after training. The label's cross-entropy is the caller's.

    Args:
      exit_logits: [S, B, C], S >= 0, of branches on inner features.
      student_logits: [B, C].
      teacher_logits: [B, C]. No gradient passes.
      labels: int [B], in [0, C). Under `jit` they are not checked.
      exponents: epsilon > 0, one number or S + 1, the student's own head last. Default 1.
      exit_weight: weight of the sum over exits, a scalar. Default 1.
      student_weight: weight of the student's own head, a scalar. Default 1.
      temperature: T > 0, a scalar (may be traced). Default 1.

    Returns:
      [B], in at least float32.

    Raises:
      ValueError: shapes that do not fit, labels not integers [B] in range, epsilon or T <= 0, or another number of
        exponents.

    References:
      Hao et al., arXiv:2310.19444.
    """
    _checks.rank("exit_logits", exit_logits, 3)
    _checks.rank("student_logits", student_logits, 2)
    if np.shape(exit_logits)[1:] != np.shape(student_logits):
        raise ValueError(
            f"exit_logits must have shape [S, *{np.shape(student_logits)}] as student_logits, got {np.shape(exit_logits)}"
        )
    exits = jnp.asarray(exit_logits)
    heads = exits.shape[0] + 1
    _checks.positive("exponents", exponents)
    powers = jnp.asarray(exponents)
    if powers.shape not in ((), (heads,)):
        raise ValueError(
            f"exponents must be one number or {heads}, one for each exit and the student, got {exponents!r}"
        )
    powers = jnp.broadcast_to(as_float(powers), (heads,))

    def loss(logits: ArrayLike, power: Array) -> Array:
        return enhanced_target_cross_entropy(logits, teacher_logits, labels, exponent=power, temperature=temperature)

    of_exits = sum((loss(exits[k], powers[k]) for k in range(heads - 1)), jnp.zeros(exits.shape[1], jnp.float32))
    return jnp.asarray(exit_weight * of_exits + student_weight * loss(student_logits, powers[-1]))
