"""What a student promises for a teacher before it is trained."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks
from mlfuncs._arrays import as_float, safe_sqrt, sum_over
from mlfuncs.distillation.relations import check_relations, relation_distance


def classifier_weight_gradient(
    features: ArrayLike, logits: ArrayLike, labels: ArrayLike, *, axis_name: str | None = None
) -> Array:
    r"""Gradient of the mean cross-entropy with respect to a classifier's weight, without a backward pass.

    .. math:: A = \frac{1}{B} (\operatorname{softmax}(z) - \operatorname{onehot}(y))^\top f

    Args:
      features: [B, d] that the classifier gets, B >= 1.
      logits: [B, C] that it gives.
      labels: [B] integers from 0 to C - 1.
      axis_name: inside `shard_map` or `pmap`, the axis over which the batch is split: the gradient is that of the whole.

    Returns:
      [C, d], one row a class. One class: zeros.

    Raises:
      ValueError: features or logits without two axes, an empty batch, batch sizes that differ, labels that are not [B]
        integers, or concrete ones outside the classes.

    References:
      Dong et al., DisWOT: Student Architecture Search for Distillation WithOut Training, arXiv:2303.15678.
    """
    _checks.rank("features", features, 2)
    _checks.rank("logits", logits, 2)
    batch, classes = np.shape(logits)
    if np.shape(features)[0] != batch or batch == 0:
        raise ValueError(
            f"features and logits must hold one batch of at least one example, got {np.shape(features)[0]} and {batch}"
        )
    _checks.per_example("labels", labels, batch)
    _checks.integers("labels", labels)
    _checks.within("labels", labels, 0, classes - 1)
    z = as_float(logits)
    error = jax.nn.softmax(z) - jax.nn.one_hot(labels, classes, dtype=z.dtype)
    total = jnp.matmul(error.T, as_float(features), precision=jax.lax.Precision.HIGHEST)
    return sum_over(total, axis_name) / sum_over(batch, axis_name)


def semantic_similarity(teacher_gradient: ArrayLike, student_gradient: ArrayLike, *, eps: float = 1e-12) -> Array:
    r"""How alike two classifiers' gradients relate their features, class by class.

    .. math:: -\frac{1}{C d} \sum_c \|\hat K(t_c) - \hat K(s_c)\|_F^2

    :math:`\hat K(a)` is :math:`a a^\top` [d, d] with each row divided by the larger of its norm and `eps`. Its row i is
    :math:`r_i a / \|a\|` with r_i the sign of a_i (less where `eps` was larger), so nothing of size d^2 is made. Signs are
    constants to a gradient.

    Args:
      teacher_gradient: [C, d], such as `classifier_weight_gradient`.
      student_gradient: [C, d], of a student with features as wide as the teacher's.
      eps: > 0, a Python number. Default 1e-12, as in the paper's code.

    Returns:
      Scalar in [-4, 0]; 0 for equal gradients, also where both are 0, and whatever the scale of each class's, as long as
      products of their entries are well above `eps`.

    Raises:
      ValueError: not two axes, numbers of classes or widths that differ, no classes or no features, or `eps` not positive.

    References:
      Dong et al., arXiv:2303.15678.
    """
    _checks.rank("teacher_gradient", teacher_gradient, 2)
    _checks.same_shape("teacher_gradient", teacher_gradient, "student_gradient", student_gradient)
    if np.size(teacher_gradient) == 0:
        raise ValueError(f"teacher_gradient must hold at least one class and feature, got {np.shape(teacher_gradient)}")
    _checks.positive("eps", eps)

    def rows(gradient: Array) -> tuple[Array, Array]:
        """Row i of the normalised matrix is its length r_i, signed, times one direction: r [C, d], directions [C, d]."""
        # Norms of what is at most 1: random networks without normalisation have gradients whose squares overflow.
        largest = jax.lax.stop_gradient(jnp.max(jnp.abs(gradient), axis=1, keepdims=True))
        scaled = gradient / jnp.where(largest > 0, largest, 1.0)
        norm = safe_sqrt(jnp.sum(scaled**2, axis=1, keepdims=True))
        direction = scaled / jnp.where(norm > 0, norm, 1.0)
        length = jax.lax.stop_gradient(jnp.abs(gradient) * (largest * norm))
        return jnp.sign(gradient) * jnp.minimum(length / eps, 1.0), direction

    (t, t_direction), (s, s_direction) = rows(as_float(teacher_gradient)), rows(as_float(student_gradient))
    # t^2 + s^2 - 2 t s cos, with 1 - cos as half a squared distance: never negative, exactly 0 for equal gradients.
    apart = jnp.sum((t_direction - s_direction) ** 2, axis=1, keepdims=True)
    return -jnp.mean((t - s) ** 2 + t * s * apart)


def relation_similarity(
    teacher_features: ArrayLike, student_features: ArrayLike, *, eps: float = 1e-12, axis_name: str | None = None
) -> Array:
    r"""How alike two networks relate the examples of a batch to each other.

    .. math:: -\frac{1}{B^2} \sum_{ij} (\hat G^t_{ij} - \hat G^s_{ij})^2

    :math:`\hat G` is the Gram matrix :math:`F F^\top` of the flattened features with each row divided by the larger of
    its norm and `eps`.

    Args:
      teacher_features: [B, ...], B >= 1, before the classifier.
      student_features: [B, ...]; other sizes than the teacher's are fine.
      eps: > 0. Default 1e-12, as in the paper's code.
      axis_name: inside `shard_map` or `pmap`, the axis over which the batch is split: relations are those of all of it.

    Returns:
      Scalar in [-4 / B, 0] for a whole batch. Rotating or scaling the features of a network changes nothing, as long as
      their squares are well above `eps`. One example tells nothing: 0, unless one of the two is all zeros.

    Raises:
      ValueError: no batch axis, an empty batch, batch sizes that differ, no features, or `eps` not positive.

    References:
      Dong et al., arXiv:2303.15678; Tung and Mori, Similarity-Preserving Knowledge Distillation, arXiv:1907.09682.
    """
    check_relations(("teacher_features", teacher_features), ("student_features", student_features), eps)
    return -relation_distance(jnp.asarray(teacher_features), jnp.asarray(student_features), eps, axis_name)


def training_free_student_score(
    teacher_features: ArrayLike,
    student_features: ArrayLike,
    teacher_gradient: ArrayLike,
    student_gradient: ArrayLike,
    *,
    axis_name: str | None = None,
) -> Array:
    """DisWOT's score of a student for a teacher, both at random initialisation: no training, one batch.

    The paper draws every weight of both networks from N(0, 1), sets biases to 0 and normalises by batch statistics.

    Args:
      teacher_features: [B, ...], before the classifier.
      student_features: [B, ...].
      teacher_gradient: [C, d], `classifier_weight_gradient`, of the whole batch.
      student_gradient: [C, d].
      axis_name: inside `shard_map` or `pmap`, the axis over which the features are split.

    Returns:
      Scalar <= 0, `relation_similarity` + `semantic_similarity`: the higher, the better the student should distil.

    Raises:
      ValueError: batch sizes, numbers of classes or widths of gradients that differ, or empty arguments.

    References:
      Dong et al., arXiv:2303.15678.
    """
    relations = relation_similarity(teacher_features, student_features, axis_name=axis_name)
    return relations + semantic_similarity(teacher_gradient, student_gradient)
