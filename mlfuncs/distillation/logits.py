"""Divergences between the softened predictions of a student and a teacher, the base of all distillation losses.

All take logits [..., C] and give one value a row, the SUM over classes. A class masked by -inf has probability 0; a row with
every class masked has no mass at all. Nothing stops gradients on the teacher's side: differentiate with respect to the
student's parameters only, or wrap the teacher in `jax.lax.stop_gradient`.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks
from mlfuncs._arrays import as_float
from mlfuncs.distillation._divergences import (
    cross_entropy_rows,
    jensen_shannon_rows,
    kullback_leibler_rows,
    label_cross_entropy_rows,
    total_variation_rows,
)
from mlfuncs.distillation._rows import (
    check_labels,
    check_pair,
    check_temperature,
    over_rows,
    scaled,
    softmax,
    weighted,
)


def _with_square(divergence: Array, temperature: ArrayLike, squared: bool) -> Array:
    return jnp.multiply(temperature, temperature * divergence) if squared else divergence


def kullback_leibler(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    temperature: ArrayLike = 1.0,
    scale_by_squared_temperature: bool = True,
) -> Array:
    r"""Forward Kullback-Leibler divergence, :math:`T^2 \sum_c p_c (\log p_c - \log q_c)`, the classical distillation loss.

    p = softmax(teacher / T), q = softmax(student / T). The gradient with respect to the student is T (q - p) with the factor
    T^2, (q - p) / T without.

    Args:
      student_logits: [..., C], C >= 1.
      teacher_logits: like `student_logits`. Gradients pass to it too.
      temperature: T > 0, a scalar (may be traced).
      scale_by_squared_temperature: whether to multiply by T^2, which keeps the gradient of one size over T.

    Returns:
      [...] values >= 0, in at least float32, exactly 0 where the two agree. A class that the teacher masks with -inf adds
      nothing; one that only the student masks gives infinity. 0 where the teacher masks every class.

    Raises:
      ValueError: shapes differ, no class, or T <= 0.

    References:
      Hinton et al., Distilling the Knowledge in a Neural Network, arXiv:1503.02531.
    """
    student, teacher = check_pair(student_logits, teacher_logits)
    check_temperature(temperature)
    divergence = over_rows(
        lambda s, t: kullback_leibler_rows(scaled(t, temperature), scaled(s, temperature)), student, teacher
    )
    return _with_square(divergence, temperature, scale_by_squared_temperature)


def reverse_kullback_leibler(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    temperature: ArrayLike = 1.0,
    scale_by_squared_temperature: bool = True,
) -> Array:
    r"""Reverse Kullback-Leibler divergence, :math:`T^2 \sum_c q_c (\log q_c - \log p_c)`: `kullback_leibler` with the two
    sides exchanged. It seeks modes of the teacher rather than covering them.

    Args:
      student_logits: [..., C], C >= 1.
      teacher_logits: like `student_logits`. Gradients pass to it too.
      temperature: T > 0, a scalar (may be traced).
      scale_by_squared_temperature: whether to multiply by T^2.

    Returns:
      [...] values >= 0, in at least float32, exactly 0 where the two agree. A class that only the teacher masks with -inf
      gives infinity. 0 where the student masks every class.

    Raises:
      ValueError: shapes differ, no class, or T <= 0.

    References:
      Gu et al., MiniLLM, arXiv:2306.08543; as a baseline Cui et al., arXiv:2402.17110.
    """
    student, teacher = check_pair(student_logits, teacher_logits)
    return kullback_leibler(
        teacher, student, temperature=temperature, scale_by_squared_temperature=scale_by_squared_temperature
    )


def check_mixture(mixture: ArrayLike) -> None:
    _checks.rank("mixture", mixture, 0)
    if _checks.is_concrete(mixture):
        value = float(np.asarray(mixture, np.float64))
        if value <= 0 or value >= 1:
            raise ValueError(
                f"mixture must be in (0, 1), got {mixture!r}: at the ends the value is 0, not a divergence; "
                "kullback_leibler and reverse_kullback_leibler are the one-sided ones"
            )


def jensen_shannon(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    mixture: ArrayLike = 0.5,
    temperature: ArrayLike = 1.0,
    scale_by_squared_temperature: bool = True,
) -> Array:
    r"""Generalised Jensen-Shannon divergence, :math:`T^2 [b\, KL(p \| m) + (1 - b)\, KL(q \| m)]`, m = b p + (1 - b) q.

    Probabilities are mixed, not their logarithms. Towards b = 0 the value vanishes like b KL(p || q), towards 1 like
    (1 - b) KL(q || p).

    Args:
      student_logits: [..., C], C >= 1.
      teacher_logits: like `student_logits`. Gradients pass to it too.
      mixture: b in (0, 1), the weight of the teacher; a scalar (may be traced). Default 0.5, the symmetric divergence.
      temperature: T > 0, a scalar (may be traced).
      scale_by_squared_temperature: whether to multiply by T^2.

    Returns:
      [...] values in [0, T^2 H(b)], H(b) the entropy of the mixture, log 2 at b = 0.5; in at least float32, finite for any
      masks and exactly 0 where the two agree.

    Raises:
      ValueError: shapes differ, no class, T <= 0, or b outside (0, 1).

    References:
      Lin, Divergence measures based on the Shannon entropy (1991); Agarwal et al., arXiv:2306.13649.
    """
    student, teacher = check_pair(student_logits, teacher_logits)
    check_temperature(temperature)
    check_mixture(mixture)
    divergence = over_rows(
        lambda s, t: jensen_shannon_rows(scaled(s, temperature), scaled(t, temperature), jnp.asarray(mixture)),
        student,
        teacher,
    )
    return _with_square(divergence, temperature, scale_by_squared_temperature)


def total_variation(student_logits: ArrayLike, teacher_logits: ArrayLike, *, temperature: ArrayLike = 1.0) -> Array:
    r"""Total variation distance, :math:`\tfrac12 \sum_c |p_c - q_c|`.

    Args:
      student_logits: [..., C], C >= 1.
      teacher_logits: like `student_logits`. Gradients pass to it too.
      temperature: T > 0, a scalar (may be traced). No factor T^2.

    Returns:
      [...] values in [0, 1], in at least float32; the gradient at equal probabilities is 0.

    Raises:
      ValueError: shapes differ, no class, or T <= 0.

    References:
      as a baseline Cui et al., arXiv:2402.17110; Wen et al., f-Divergence Minimization for Sequence-Level Knowledge
      Distillation, arXiv:2307.15190.
    """
    student, teacher = check_pair(student_logits, teacher_logits)
    check_temperature(temperature)

    return over_rows(
        lambda s, t: total_variation_rows(scaled(s, temperature), scaled(t, temperature)), student, teacher
    )


def soft_cross_entropy(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    temperature: ArrayLike = 1.0,
    scale_by_squared_temperature: bool = False,
) -> Array:
    r"""Cross-entropy with soft targets, :math:`-\sum_c p_c \log q_c`: `kullback_leibler` plus the teacher's entropy.

    The gradient with respect to the student is that of the divergence, (q - p) / T.

    Args:
      student_logits: [..., C], C >= 1.
      teacher_logits: like `student_logits`. Gradients pass to it too.
      temperature: T > 0, a scalar (may be traced).
      scale_by_squared_temperature: whether to multiply by T^2; unlike for the divergences not by default.

    Returns:
      [...] values >= 0, in at least float32. A class that the teacher masks with -inf adds nothing; one that only the
      student masks gives infinity. 0 where the teacher masks every class.

    Raises:
      ValueError: shapes differ, no class, or T <= 0.

    References:
      Hinton et al., arXiv:1503.02531; Sarnthein et al., Random Teachers are Good Teachers, arXiv:2302.12091.
    """
    student, teacher = check_pair(student_logits, teacher_logits)
    check_temperature(temperature)

    def entropy(s: Array, t: Array) -> Array:
        return cross_entropy_rows(scaled(s, temperature), softmax(t, temperature)[0])

    return _with_square(over_rows(entropy, student, teacher), temperature, scale_by_squared_temperature)


def label_cross_entropy(logits: Array, labels: Array) -> Array:
    """-log softmax(logits) at the label, of checked arguments; infinite where the label's class is masked."""
    return over_rows(lambda s, y: label_cross_entropy_rows(as_float(s), y), logits, labels)


def knowledge_distillation(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    labels: ArrayLike,
    *,
    soft_weight: ArrayLike = 0.9,
    temperature: ArrayLike = 4.0,
) -> Array:
    r"""The objective of knowledge distillation, :math:`(1 - a)\, CE(s, y) + a\, T^2\, KL(p \| q)`.

    The cross-entropy is at temperature 1 whatever T is.

    Args:
      student_logits: [..., C], C >= 1.
      teacher_logits: like `student_logits`. Gradients pass to it too.
      labels: int [...], in [0, C). Under `jit` they are not checked.
      soft_weight: a in [0, 1], a scalar (may be traced). Default 0.9, and T = 4: the usual values on CIFAR.
      temperature: T > 0, a scalar (may be traced).

    Returns:
      [...] values >= 0, in at least float32. A part of weight 0 counts for nothing even where it is infinite.

    Raises:
      ValueError: shapes differ, labels not integers of the leading shape and in range, T <= 0, or a outside [0, 1].

    References:
      Hinton et al., arXiv:1503.02531; on pruned data Ben-Baruch et al., arXiv:2403.07854.
    """
    student, teacher = check_pair(student_logits, teacher_logits)
    label = check_labels(labels, student.shape[:-1], student.shape[-1])
    _checks.rank("soft_weight", soft_weight, 0)
    _checks.within("soft_weight", soft_weight, 0, 1)
    check_temperature(temperature)

    # Both parts in one pass, so that their gradients are added block by block.
    def rows(s: Array, t: Array, y: Array) -> Array:
        hard = label_cross_entropy_rows(as_float(s), y)
        soft = kullback_leibler_rows(scaled(t, temperature), scaled(s, temperature))
        return weighted(1 - soft_weight, hard) + weighted(soft_weight, _with_square(soft, temperature, True))

    return over_rows(rows, student, teacher, label)
