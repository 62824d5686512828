"""Distillation with logits that are divided by their own deviation, and under mixup."""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks
from mlfuncs._arrays import as_float, safe_sqrt
from mlfuncs.distillation._divergences import cross_entropy_rows, kullback_leibler_rows
from mlfuncs.distillation._rows import check_classes, check_pair, over_rows, weighted


def _divided(logits: Array, minimum: ArrayLike = 1e-6) -> Array:
    x = as_float(logits)
    present = ~jnp.isneginf(x)
    count = jnp.sum(present, axis=-1, keepdims=True)
    held = jnp.where(present, x, 0.0)
    mean = jnp.sum(held, axis=-1, keepdims=True) / jnp.maximum(count, 1)
    centred = jnp.where(present, held - mean, 0.0)
    variance = jnp.sum(centred**2, axis=-1, keepdims=True) / jnp.maximum(count - 1, 1)
    deviation = safe_sqrt(variance)
    return x / jnp.where(deviation < minimum, minimum, deviation)


def divide_by_deviation(logits: ArrayLike, *, minimum: ArrayLike = 1e-6) -> Array:
    r"""Logits over their standard deviation, :math:`x / \max(\mathrm{std}(x), m)`: a temperature for each vector.

    The deviation is that over the classes, unbiased (C - 1). The mean stays: a softmax does not see it. Two classes end
    :math:`\sqrt 2` apart whatever they were: only the sign survives.

    Args:
      logits: [..., C], C >= 2. Classes masked by -inf stay masked and do not count.
      minimum: m > 0, a scalar, which also divides constant vectors. Default 1e-6.

    Returns:
      [..., C], in at least float32. Gradients pass through the deviation, except where it is 0.

    Raises:
      ValueError: C < 2, or m <= 0.

    References:
      Choi et al., Understanding the Role of Mixup in Knowledge Distillation, arXiv:2211.03946.
    """
    check_classes("logits", logits, 2)
    _checks.rank("minimum", minimum, 0)
    _checks.positive("minimum", minimum)
    return _divided(jnp.asarray(logits), minimum)


def scaled_by_deviation(student_logits: ArrayLike, teacher_logits: ArrayLike) -> Array:
    r"""`kullback_leibler` of logits that are each divided by their own deviation; no temperature and no factor T^2.

    Args:
      student_logits: [..., C], C >= 2.
      teacher_logits: like `student_logits`. Gradients pass to it too.

    Returns:
      [...] values >= 0, in at least float32, 0 where one is a positive multiple of the other up to shifts.

    Raises:
      ValueError: shapes differ, or C < 2.

    References:
      Choi et al., arXiv:2211.03946.
    """
    student, teacher = check_pair(student_logits, teacher_logits)
    check_classes("student_logits", student, 2)
    return over_rows(lambda s, t: kullback_leibler_rows(_divided(t), _divided(s)), student, teacher)


def mixup_objective(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    targets: ArrayLike,
    *,
    label_weight: ArrayLike = 0.1,
    soft_weight: ArrayLike = 0.9,
) -> Array:
    r"""Mixed labels and the teacher on mixed inputs, both through `divide_by_deviation` (MIX-KD).

    .. math:: \gamma\, CE(q, Y) + \alpha\, KL(p \| q)

    q and p are the softmax of the scaled logits of student and teacher.
    The cross-entropy too sees scaled logits. Scale them at evaluation as well: the best class is the same, loss and
    calibration are not.

    Args:
      student_logits: [..., C], C >= 2, on mixed inputs.
      teacher_logits: like `student_logits`, on the same inputs. Gradients pass to it too.
      targets: like `student_logits`, labels mixed as the inputs (`vision.mixup` of one-hot labels). They need not sum to 1.
      label_weight: gamma >= 0, a scalar. Default 0.1.
      soft_weight: alpha >= 0, a scalar. Default 0.9.

    Returns:
      [...], in at least float32. A part of weight 0 counts for nothing.

    Raises:
      ValueError: shapes differ, C < 2, or a negative weight.

    References:
      Choi et al., arXiv:2211.03946.
    """
    student, teacher = check_pair(student_logits, teacher_logits)
    check_classes("student_logits", student, 2)
    _checks.same_shape("student_logits", student, "targets", targets)
    for name, weight in (("label_weight", label_weight), ("soft_weight", soft_weight)):
        _checks.rank(name, weight, 0)
        _checks.non_negative(name, weight)

    def rows(s: Array, t: Array, y: Array) -> Array:
        z_q = _divided(s)
        hard = cross_entropy_rows(z_q, as_float(y))
        return weighted(label_weight, hard) + weighted(soft_weight, kullback_leibler_rows(_divided(t), z_q))

    return over_rows(rows, student, teacher, jnp.asarray(targets))
