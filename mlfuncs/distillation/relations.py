"""Distillation losses on relations inside a layer: between the examples of a batch, and between channels."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks
from mlfuncs._arrays import as_float, gather_batch, safe_sqrt, sum_over

TINY = 1e-30  # below any norm that counts, for a division by it


def check_relations(first: tuple[str, ArrayLike], second: tuple[str, ArrayLike], eps: float) -> None:
    for name, value in (first, second):
        _checks.batched(name, value)
        if np.size(value) == 0:
            raise ValueError(f"{name} must hold at least one example and feature, got shape {np.shape(value)}")
    (name, a), (other, b) = first, second
    if np.shape(a)[0] != np.shape(b)[0]:
        raise ValueError(f"{name} and {other} must hold one batch, got {np.shape(a)[0]} and {np.shape(b)[0]} examples")
    _checks.positive("eps", eps)


def _unit_rows(gram: Array, eps: ArrayLike) -> Array:
    """Rows over their norm, or over `eps` where that is larger."""
    norm = safe_sqrt(jnp.sum(gram**2, axis=-1, keepdims=True))
    return gram / jnp.maximum(norm, jnp.maximum(eps, TINY))


def _scale(features: Array, axes: tuple[int, ...] | None) -> Array:
    """What features are divided by, and `eps` by its square: fourth powers of large ones would overflow."""
    return jax.lax.stop_gradient(jnp.maximum(jnp.max(jnp.abs(features), axis=axes, keepdims=True), 1.0))


def relation_distance(first: Array, second: Array, eps: float, axis_name: str | None) -> Array:
    """Mean squared distance of the row-normalised Gram matrices of two checked batches; gradients pass to both."""

    def relations(features: Array) -> Array:
        """This device's rows [B, N] of the normalised Gram matrix of the global batch."""
        here = features.reshape(features.shape[0], -1)
        everyone = gather_batch(here, axis_name)
        scale = _scale(everyone, None)
        gram = jnp.matmul(here / scale, (everyone / scale).T, precision=jax.lax.Precision.HIGHEST)
        return _unit_rows(gram, eps / scale / scale)

    difference = relations(as_float(first)) - relations(as_float(second))
    return sum_over(jnp.sum(difference**2), axis_name) / difference.shape[1] ** 2


def similarity_preserving(
    student_features: ArrayLike, teacher_features: ArrayLike, *, eps: float = 1e-12, axis_name: str | None = None
) -> Array:
    r"""Distance between how student and teacher relate the examples of a batch to each other.

    .. math:: \frac{1}{B^2} \sum_{ij} (\hat G^t_{ij} - \hat G^s_{ij})^2

    :math:`\hat G` is the Gram matrix :math:`F F^\top` of the flattened features with each row divided by the larger of
    its norm and `eps`. `architecture_search.relation_similarity` is minus this, with gradients to both sides.

    Args:
      student_features: [B, ...], B >= 1, floats.
      teacher_features: [B, ...]; other sizes than the student's are fine. A constant: no gradient passes.
      eps: > 0. Default 1e-12, as in the authors' code.
      axis_name: inside `shard_map` or `pmap`, the axis over which the batch is split: relations are those of all of it.

    Returns:
      scalar in [0, 4 / B], in at least float32; 0 for features that differ by a rotation or a scale. One example tells
      nothing: 0, unless one of the two is all zeros.

    Raises:
      ValueError: no batch axis, an empty batch, batch sizes that differ, no features, or `eps` not positive.

    References:
      Tung and Mori, Similarity-Preserving Knowledge Distillation, arXiv:1907.09682; Dong et al., arXiv:2303.15678.
    """
    check_relations(("student_features", student_features), ("teacher_features", teacher_features), eps)
    teacher = jax.lax.stop_gradient(jnp.asarray(teacher_features))
    return relation_distance(teacher, jnp.asarray(student_features), eps, axis_name)


def channel_correlation(student_features: ArrayLike, teacher_features: ArrayLike, *, eps: float = 1e-12) -> Array:
    r"""Distance, for each example, between the channel correlations of student and teacher (ICKD).

    .. math:: \frac{1}{K} \| \hat K_S - \hat K_T \|_F^2, \quad K = F F^\top

    F [K, positions] holds the channels of an example; each row of K is divided by the larger of its norm and `eps`.

    Args:
      student_features: [N, ..., K] floats, channels last: maps [N, H, W, K] or vectors [N, K].
      teacher_features: [N, ..., K]; other spatial sizes are fine. A constant: no gradient passes.
      eps: > 0. Default 1e-12, as in the authors' code.

    Returns:
      [N] values in [0, 4], in at least float32; 0 where the maps of an example differ by a scale or an order of positions.

    Raises:
      ValueError: fewer than two axes, examples or channels that differ in number, empty features, or `eps` not positive.

    References:
      Liu et al., Exploring Inter-Channel Correlation for Diversity-preserved Knowledge Distillation, arXiv:2202.03680; Dong
      et al., arXiv:2303.15678.
    """
    pair = (("student_features", student_features), ("teacher_features", teacher_features))
    check_relations(*pair, eps)
    for name, value in pair:
        if np.ndim(value) < 2:
            raise ValueError(f"{name} must be [N, ..., K], got shape {np.shape(value)}")
    if np.shape(student_features)[-1] != np.shape(teacher_features)[-1]:
        raise ValueError(
            "student_features and teacher_features must have as many channels, got "
            f"{np.shape(student_features)[-1]} and {np.shape(teacher_features)[-1]}"
        )

    def correlations(features: ArrayLike) -> Array:
        x = as_float(features).reshape(np.shape(features)[0], -1, np.shape(features)[-1])
        scale = _scale(x, (1, 2))
        x = x / scale
        gram = jnp.einsum("npk,npl->nkl", x, x, precision=jax.lax.Precision.HIGHEST)
        return _unit_rows(gram, eps / scale / scale)

    difference = correlations(student_features) - jax.lax.stop_gradient(correlations(teacher_features))
    return jnp.sum(difference**2, axis=(1, 2)) / difference.shape[-1]
