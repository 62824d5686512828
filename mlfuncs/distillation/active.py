"""Distillation for active learning: a student with a head for labels and one for the teacher."""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks
from mlfuncs._arrays import sum_over
from mlfuncs.distillation._rows import check_labels, check_pair, check_temperature, log_probabilities, weighted
from mlfuncs.distillation.logits import kullback_leibler, label_cross_entropy


def dual_head_probabilities(
    label_logits: ArrayLike,
    distilled_logits: ArrayLike,
    *,
    mix: ArrayLike = 0.5,
    temperature: ArrayLike = 1.0,
) -> Array:
    r"""Predictions of a student with a head for labels and one for the teacher,
    :math:`(1 - \alpha)\, \mathrm{softmax}(a) + \alpha\, \mathrm{softmax}(d / \beta)`.

    Args:
      label_logits: a [..., C], C >= 1.
      distilled_logits: d, like `label_logits`.
      mix: alpha in [0, 1], the weight of the distilled head; a scalar (may be traced). Default 0.5: active learning has no
        validation set to choose it on.
      temperature: beta > 0, of the distilled head alone; a scalar (may be traced). Default 1.

    Returns:
      [..., C] probabilities, in at least float32.

    Raises:
      ValueError: shapes differ, no class, alpha outside [0, 1], or beta <= 0.

    References:
      Kang et al., PCoreSet, arXiv:2506.00910.
    """
    names = ("label_logits", "distilled_logits")
    labelled, distilled = check_pair(label_logits, distilled_logits, names)
    _checks.rank("mix", mix, 0)
    _checks.within("mix", mix, 0, 1)
    check_temperature(temperature)
    of_teacher = jnp.exp(log_probabilities(distilled, temperature))
    return jnp.asarray((1 - mix) * jnp.exp(log_probabilities(labelled)) + mix * of_teacher)


def dual_head_objective(
    label_logits: ArrayLike,
    distilled_logits: ArrayLike,
    teacher_logits: ArrayLike,
    labels: ArrayLike,
    unlabelled_distilled_logits: ArrayLike,
    unlabelled_teacher_logits: ArrayLike,
    *,
    temperature: ArrayLike = 2.0,
    label_weight: ArrayLike = 0.5,
    soft_weight: ArrayLike = 0.5,
    axis_name: str | None = None,
) -> Array:
    r"""Training objective of a round of active distillation, over a labelled and an unlabelled batch.

    .. math:: w_y\, \overline{CE(a, y)} + w_s \big( \overline{KD(d, t)} + \overline{KD(d^u, t^u)} \big)

    KD is `kullback_leibler` with its factor T^2. Its two means are added, not averaged.

    Args:
      label_logits: a [L, C] of the head for labels, C >= 1.
      distilled_logits: d, like `label_logits`, of the other head.
      teacher_logits: t, like `label_logits`. Gradients pass to it too.
      labels: int [L], in [0, C). Under `jit` they are not checked.
      unlabelled_distilled_logits: [U, C].
      unlabelled_teacher_logits: like `unlabelled_distilled_logits`.
      temperature: T > 0, a scalar (may be traced). Default 2.
      label_weight: w_y, a scalar. Default 1/2.
      soft_weight: w_s, a scalar. Default 1/2.
      axis_name: inside `shard_map` or `pmap`, the axis over which both batches are split: means are those of the
        global ones.

    Returns:
      scalar, in at least float32: the two batches differ in size. The mean of an empty one is 0.

    Raises:
      ValueError: not two axes, shapes differ, labels not integers [L] in range, or T <= 0.

    References:
      Kang et al., arXiv:2506.00910.
    """
    for name, value in (("label_logits", label_logits), ("unlabelled_distilled_logits", unlabelled_distilled_logits)):
        _checks.rank(name, value, 2)
    logits, distilled = check_pair(label_logits, distilled_logits, ("label_logits", "distilled_logits"))
    check_pair(distilled, teacher_logits, ("distilled_logits", "teacher_logits"))
    unlabelled, of_teacher = check_pair(
        unlabelled_distilled_logits,
        unlabelled_teacher_logits,
        ("unlabelled_distilled_logits", "unlabelled_teacher_logits"),
    )
    if unlabelled.shape[1] != logits.shape[1]:
        raise ValueError(
            f"unlabelled_distilled_logits must have {logits.shape[1]} classes as label_logits, got {unlabelled.shape[1]}"
        )
    label = check_labels(labels, logits.shape[:1], logits.shape[1])

    def mean(values: Array) -> Array:
        return sum_over(jnp.sum(values), axis_name) / jnp.maximum(sum_over(values.shape[0], axis_name), 1)

    soft = mean(kullback_leibler(distilled, teacher_logits, temperature=temperature))
    soft += mean(kullback_leibler(unlabelled, of_teacher, temperature=temperature))
    return weighted(label_weight, mean(label_cross_entropy(logits, label))) + weighted(soft_weight, soft)
