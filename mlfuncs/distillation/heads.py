"""Distillation through a second head, losses on the level of logits, and the decoupled baseline."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks
from mlfuncs._arrays import as_float, sum_over
from mlfuncs.distillation._divergences import excess, kullback_leibler_rows
from mlfuncs.distillation._rows import (
    at_label,
    check_classes,
    check_labels,
    check_pair,
    check_temperature,
    log_sum_exp,
    over_rows,
    scaled,
    weighted,
    with_gradients,
)
from mlfuncs.distillation.logits import label_cross_entropy


def binary_kullback_leibler(
    student_logits: ArrayLike, teacher_logits: ArrayLike, *, temperature: ArrayLike = 2.0
) -> Array:
    r"""Kullback-Leibler divergence of each class as a yes-or-no question, summed (BinaryKL).

    .. math:: T^2 \sum_k KL\big(\mathrm{Bernoulli}(\sigma(t_k / T)) \,\|\, \mathrm{Bernoulli}(\sigma(s_k / T))\big)

    Unlike a softmax it sees the level of the logits. The official code clamps probabilities; here logits of any size need
    no clamp. The gradient with respect to the student is T (sigmoid(s / T) - sigmoid(t / T)).

    Args:
      student_logits: [..., C], C >= 1.
      teacher_logits: like `student_logits`. Gradients pass to it too.
      temperature: T > 0, a scalar (may be traced). Default 2 (the code).

    Returns:
      [...] values >= 0, in at least float32, 0 where the two agree. A class that both mask with -inf adds nothing.

    Raises:
      ValueError: shapes differ, no class, or T <= 0.

    References:
      Yang et al., Dual-Head Knowledge Distillation, arXiv:2411.08937.
    """
    student, teacher = check_pair(student_logits, teacher_logits)
    check_temperature(temperature)

    def rows(s: Array, t: Array) -> Array:
        return _bernoulli_rows(scaled(t, temperature), scaled(s, temperature))

    return jnp.multiply(temperature, temperature * over_rows(rows, student, teacher))


def _bernoulli(x: Array) -> tuple[Array, Array, Array]:
    """sigmoid(x), sigmoid(-x) and log(1 + e^-|x|), from one exponential."""
    small = jnp.exp(-jnp.abs(x))
    larger = 1 / (1 + small)
    smaller = small * larger
    return jnp.where(x >= 0, larger, smaller), jnp.where(x >= 0, smaller, larger), jnp.log1p(small)


def _binary(z_p: Array, z_q: Array) -> Array:
    (p, not_p, tail_p), (q, not_q, tail_q) = _bernoulli(z_p), _bernoulli(z_q)
    # -log sigmoid(x) = max(-x, 0) + log(1 + e^-|x|)
    yes = (jnp.maximum(-z_q, 0) - jnp.maximum(-z_p, 0)) + (tail_q - tail_p)
    no = (jnp.maximum(z_q, 0) - jnp.maximum(z_p, 0)) + (tail_q - tail_p)
    return jnp.sum(excess(yes, p, q) + excess(no, not_p, not_q), axis=-1)


def _binary_in_p(z_p: Array, z_q: Array) -> Array:
    p, not_p, _ = _bernoulli(z_p)
    slope = p * not_p
    return jnp.where(slope <= 0, 0.0, slope * (z_p - z_q))


_bernoulli_rows = with_gradients(_binary, _binary_in_p, lambda z_p, z_q: _bernoulli(z_q)[0] - _bernoulli(z_p)[0])


@jax.custom_jvp
def _log_cosh(x: Array) -> Array:
    """log cosh x, with all its digits near 0 and without overflow far from it."""
    size = jnp.abs(x)
    far = size > 20  # from there on e^-2x is below the last digit of x
    # cosh x - 1 = u^2 / (2 (1 + u)), u = e^x - 1
    u = jnp.expm1(jnp.where(far, 0.0, size))
    return jnp.where(far, size - np.log(2), jnp.log1p(u * u / (2 * (1 + u))))


_log_cosh.defjvps(lambda change, value, x: jnp.tanh(x) * change)


def binary_kullback_leibler_difference(
    student_logits: ArrayLike, teacher_logits: ArrayLike, *, temperature: ArrayLike = 2.0
) -> Array:
    r"""Divergence of a fair coin from the sigmoid of the difference of logits, summed over classes (BinaryKL-Norm).

    .. math:: T^2 \sum_k KL\big(\mathrm{Bernoulli}(\tfrac12) \,\|\, \mathrm{Bernoulli}(\sigma((s_k - t_k)/T))\big)
              = T^2 \sum_k \log \cosh \frac{s_k - t_k}{2T}

    Quadratic, (s - t)^2 / 8, for small differences and linear for large ones: the gradient T/2 tanh((s - t) / 2T) is
    bounded.

    Args:
      student_logits: [..., C], C >= 1.
      teacher_logits: like `student_logits`. Gradients pass to it too.
      temperature: T > 0, a scalar (may be traced). Default 2 (the code).

    Returns:
      [...] values >= 0, in at least float32, 0 only where the two agree. A class that both mask with -inf adds nothing, one
      that one side masks gives infinity.

    Raises:
      ValueError: shapes differ, no class, or T <= 0.

    References:
      Yang et al., arXiv:2411.08937.
    """
    student, teacher = check_pair(student_logits, teacher_logits)
    check_temperature(temperature)

    def rows(s: Array, t: Array) -> Array:
        masked = jnp.isneginf(s) & jnp.isneginf(t)
        gap = jnp.where(masked, 0.0, as_float(s)) - jnp.where(masked, 0.0, as_float(t))
        return jnp.sum(_log_cosh(gap / (2 * temperature)), axis=-1)

    return jnp.multiply(temperature, temperature * over_rows(rows, student, teacher))


def _split_at_label(z: Array, labels: Array) -> tuple[Array, Array]:
    """Logits of the other classes, and the pair of those of the label and of all others together, [..., 2]."""
    others = jnp.where(jnp.arange(z.shape[-1]) == labels[..., None], -jnp.inf, z)
    return others, jnp.stack([at_label(z, labels), log_sum_exp(others)], axis=-1)


def decoupled(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    labels: ArrayLike,
    *,
    temperature: ArrayLike = 4.0,
    target_weight: ArrayLike = 1.0,
    nontarget_weight: ArrayLike = 8.0,
) -> Array:
    r"""Decoupled knowledge distillation (DKD): the label against the rest, and the rest among themselves.

    .. math:: T^2 \big[ \alpha\, KL(b^t \| b^s) + \beta\, KL(\hat p^t \| \hat p^s) \big], \quad b = (p_y, 1 - p_y)

    With alpha = 1 and beta = 1 - p_y of the teacher it is `kullback_leibler`. The label's cross-entropy, and the warm-up of
    the loss over the first epochs, are the caller's.

    Args:
      student_logits: [..., C], C >= 2.
      teacher_logits: like `student_logits`. Gradients pass to it too.
      labels: int [...], in [0, C). Under `jit` they are not checked.
      temperature: T > 0, a scalar (may be traced). Defaults of CIFAR: T = 4, alpha = 1, beta = 8; ImageNet: 1, 1, 0.5.
      target_weight: alpha, a scalar (may be traced).
      nontarget_weight: beta, likewise.

    Returns:
      [...] values >= 0 for weights >= 0, in at least float32, 0 where the two agree. A part of weight 0 counts for nothing.

    Raises:
      ValueError: shapes differ, C < 2, labels not integers of the leading shape and in range, or T <= 0.

    References:
      Zhao et al., Decoupled Knowledge Distillation, arXiv:2203.08679; as a baseline arXiv:2411.08937.
    """
    student, teacher = check_pair(student_logits, teacher_logits)
    check_classes("student_logits", student, 2)
    label = check_labels(labels, student.shape[:-1], student.shape[-1])
    check_temperature(temperature)

    def rows(s: Array, t: Array, y: Array) -> Array:
        others_q, pair_q = _split_at_label(scaled(s, temperature), y)
        others_p, pair_p = _split_at_label(scaled(t, temperature), y)
        target, nontarget = kullback_leibler_rows(pair_p, pair_q), kullback_leibler_rows(others_p, others_q)
        return weighted(target_weight, target) + weighted(nontarget_weight, nontarget)

    return jnp.multiply(temperature, temperature * over_rows(rows, student, teacher, label))


def dual_head(
    label_logits: ArrayLike,
    auxiliary_logits: ArrayLike,
    teacher_logits: ArrayLike,
    labels: ArrayLike,
    *,
    label_weight: ArrayLike = 1.0,
    auxiliary_weight: ArrayLike = 1.0,
    temperature: ArrayLike = 2.0,
) -> Array:
    r"""Dual-head knowledge distillation (DHKD): cross-entropy on one head, the teacher's logits on another.

    .. math:: \gamma\, CE(z, y) + \alpha \,\cdot\,\text{BinaryKL-Norm}(u, t)

    Both heads stand on the same features; the auxiliary one is thrown away after training. See `align_gradients`.

    Args:
      label_logits: z [..., C] of the head that is kept, C >= 1.
      auxiliary_logits: u, like `label_logits`.
      teacher_logits: t, like `label_logits`. Gradients pass to it too.
      labels: int [...], in [0, C). Under `jit` they are not checked.
      label_weight: gamma, a scalar. Default 1.
      auxiliary_weight: alpha, a scalar. Default 1 (CIFAR-100; ImageNet 0.1).
      temperature: T > 0 of the second part, a scalar. Default 2.

    Returns:
      [...], in at least float32. A part of weight 0 counts for nothing.

    Raises:
      ValueError: shapes differ, no class, labels not integers of the leading shape and in range, or T <= 0.

    References:
      Yang et al., arXiv:2411.08937.
    """
    auxiliary, _ = check_pair(auxiliary_logits, teacher_logits, ("auxiliary_logits", "teacher_logits"))
    logits, _ = check_pair(label_logits, auxiliary, ("label_logits", "auxiliary_logits"))
    label = check_labels(labels, logits.shape[:-1], logits.shape[-1])
    difference = binary_kullback_leibler_difference(auxiliary, teacher_logits, temperature=temperature)
    return weighted(label_weight, label_cross_entropy(logits, label)) + weighted(auxiliary_weight, difference)


def align_gradients(gradients: Any, reference: Any, *, axis_name: str | None = None) -> Any:
    r"""Takes from `gradients` what would undo `reference`: :math:`g - \min(\langle g, g_0 \rangle, 0)\, g_0 / \|g_0\|^2`.

    One-sided: the reference, the gradient of the cross-entropy, is never projected. The caller adds it: g_0 + result. The
    inner product runs over everything that is passed in, the official code passes all parameters. Average both gradients
    over a split batch before.

    Args:
      gradients: g, a pytree of arrays.
      reference: g_0, a tree like `gradients`.
      axis_name: inside `shard_map` or `pmap`, an axis over which the parameters are split.

    Returns:
      a tree like `gradients`, in its dtypes, whose inner product with the reference is >= 0 up to rounding. Unchanged where
      the two do not conflict, also where the reference is 0.

    Raises:
      ValueError: trees of another structure or shapes of leaves.

    References:
      Yang et al., arXiv:2411.08937.
    """
    _checks.same_trees("gradients", gradients, "reference", reference)
    ours = [as_float(leaf) for leaf in jax.tree.leaves(gradients)]
    theirs = [as_float(leaf) for leaf in jax.tree.leaves(reference)]
    if not ours:
        return gradients
    # Relative to its largest entry: the squares of small gradients do not vanish.
    size = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf), initial=0.0) for leaf in theirs]))
    if axis_name is not None:
        size = jax.lax.pmax(size, axis_name)
    usable = ~(size <= 0)
    theirs = [leaf / jnp.where(usable, size, 1.0) for leaf in theirs]
    product = sum_over(sum(jnp.sum(g * r) for g, r in zip(ours, theirs, strict=True)), axis_name)
    square = sum_over(sum(jnp.sum(r * r) for r in theirs), axis_name)
    factor = jnp.where(usable & ~(product >= 0), product / jnp.where(usable, square, 1.0), 0.0)
    projected = [
        (g - factor * r).astype(jnp.asarray(leaf).dtype)
        for g, r, leaf in zip(ours, theirs, jax.tree.leaves(gradients), strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(gradients), projected)
