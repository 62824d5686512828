"""Distillation losses on relations inside a layer: between the examples of a batch, channels or tokens."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks
from mlfuncs._arrays import as_float, gather_batch, gram, safe_sqrt, sum_over
from mlfuncs.distillation._rows import over_rows
from mlfuncs.distillation.logits import kullback_leibler

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


def _unit_rows(relation: Array, eps: ArrayLike) -> Array:
    """Rows over their norm, or over `eps` where that is larger."""
    norm = safe_sqrt(jnp.sum(relation**2, axis=-1, keepdims=True))
    return relation / jnp.maximum(norm, jnp.maximum(eps, TINY))


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
        if axis_name is None:
            relation = gram((here / scale).T)
        else:
            relation = jnp.matmul(here / scale, (everyone / scale).T, precision=jax.lax.Precision.HIGHEST)
        return _unit_rows(relation, eps / scale / scale)

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

    def correlations(features: Array) -> Array:
        x = as_float(features).reshape(features.shape[0], -1, features.shape[-1])
        scale = _scale(x, (1, 2))
        return _unit_rows(jax.vmap(gram)(x / scale), eps / scale / scale)

    def examples(student: Array, teacher: Array) -> Array:
        difference = correlations(student) - correlations(teacher)
        return jnp.sum(difference**2, axis=(1, 2)) / difference.shape[-1]

    # A few examples at a time: correlations [N, K, K] of both may be far larger than what they are made of.
    student, teacher = jnp.asarray(student_features), jax.lax.stop_gradient(jnp.asarray(teacher_features))
    return over_rows(examples, student, teacher, axes=1, held=2 * student.shape[0] * student.shape[-1] ** 2)


def self_attention_relation(
    student_projections: Sequence[ArrayLike],
    teacher_projections: Sequence[ArrayLike],
    *,
    relation_heads: int = 12,
    mask: ArrayLike | None = None,
    weights: Sequence[float] | ArrayLike = (1.0, 1.0, 1.0),
    divergence: str = "kl",
) -> Array:
    r"""How differently student and teacher relate tokens to tokens: by their queries, by their keys and by their values.

    .. math:: \sum_X \beta_X \frac{1}{A n} \sum_{a, t} KL(R^T_{X,a,t} \| R^S_{X,a,t}), \quad
              R_{X,a} = \mathrm{softmax}(X_a X_a^\top / \sqrt d)

    for X of Q, K and V, split into A relation heads of width d = floor(D / A); what remains of D is dropped. Widths of the
    two may differ, and heads need not be those of the student's attention. The paper takes the last layer alone.

    Args:
      student_projections: (q, k, v), each [B, L, D_s], L >= 1.
      teacher_projections: (q, k, v), each [B, L, D_t]. Constants: no gradient passes.
      relation_heads: A in [1, min(D_s, D_t)]. Default 12, the teacher's.
      mask: bool [B, L], False for padding, which counts neither as query nor as key; None: all are tokens.
      weights: beta [3] of Q, K and V. Default 1 each.
      divergence: "kl", or "mse": the mean squared difference of :math:`X_a X_a^\top / \sqrt d` over heads and
        pairs of tokens, of the released code.

    Returns:
      [B] values >= 0, in at least float32; 0 for "kl" of a single token, and where a traced mask has no token.

    Raises:
      ValueError: not three projections each, batches or lengths that differ, more heads than columns, another divergence, or
        a concrete mask with a row without tokens.

    References:
      Xu et al., AutoDistil, arXiv:2201.12507; Wang et al., MiniLMv2, arXiv:2012.15828.
    """
    _checks.one_of("divergence", divergence, ("kl", "mse"))
    _checks.count("relation_heads", relation_heads)
    student, teacher = (
        _check_projections(name, projections, relation_heads)
        for name, projections in (
            ("student_projections", student_projections),
            ("teacher_projections", teacher_projections),
        )
    )
    batch, length = student[0].shape[:2]
    if teacher[0].shape[:2] != (batch, length):
        raise ValueError(
            f"teacher_projections must hold {batch} x {length} tokens as student_projections, got {teacher[0].shape[:2]}"
        )
    if np.shape(weights) != (3,):
        raise ValueError(f"weights must be three, of queries, keys and values, got {weights!r}")
    valid = _check_tokens(mask, batch, length)
    share = jnp.asarray(weights)

    def examples(valid: Array, *projections: Array) -> Array:
        total = jnp.zeros(valid.shape[0])
        for weight, own, given in zip(share, projections[:3], projections[3:], strict=True):
            s = _relation_scores(own, relation_heads)
            t = _relation_scores(jax.lax.stop_gradient(given), relation_heads)
            total = total + weight * _relation_divergence(s, t, valid, divergence)
        return total

    # A few examples at a time: scores [B, A, L, L] of both are far larger than what they are made of.
    return over_rows(examples, valid, *student, *teacher, axes=1, held=2 * batch * relation_heads * length**2)


def _check_projections(name: str, projections: Sequence[ArrayLike], heads: int) -> list[Array]:
    if len(projections) != 3:
        raise ValueError(f"{name} must be three: queries, keys and values, got {len(projections)}")
    arrays = [as_float(projection) for projection in projections]
    for array in arrays:
        _checks.rank(f"an array of {name}", array, 3)
        if array.shape != arrays[0].shape or array.shape[1] == 0:
            raise ValueError(f"{name} must have one shape [B, L, D], L >= 1, got {[x.shape for x in arrays]}")
    if heads > arrays[0].shape[2]:
        raise ValueError(f"relation_heads must be at most the width of {name}, {arrays[0].shape[2]}, got {heads}")
    return arrays


def _check_tokens(mask: ArrayLike | None, batch: int, length: int) -> Array:
    if mask is None:
        return jnp.ones((batch, length), bool)
    valid = jnp.asarray(mask)
    if valid.shape != (batch, length) or valid.dtype != jnp.bool_:
        raise ValueError(f"mask must be bool of shape {(batch, length)}, got {valid.dtype} of shape {valid.shape}")
    if _checks.is_concrete(valid) and not np.asarray(valid).any(axis=1).all():
        raise ValueError("mask must keep at least one token of each example")
    return valid


def _relation_scores(projection: Array, heads: int) -> Array:
    """[B, A, L, L]: inner products of tokens in each relation head, over the root of its width."""
    batch, length, columns = projection.shape
    width = columns // heads
    split = projection[..., : heads * width].reshape(batch, length, heads, width)
    return jnp.einsum("blad,bmad->balm", split, split, precision=jax.lax.Precision.HIGHEST) / width**0.5


def _relation_divergence(student: Array, teacher: Array, valid: Array, divergence: str) -> Array:
    """[B] means over heads and tokens of the divergence of scores [B, A, L, L]."""
    count = jnp.maximum(jnp.sum(valid, axis=1), 1)
    queries, keys = valid[:, None, :, None], valid[:, None, None, :]
    if divergence == "mse":
        gaps = jnp.where(queries & keys, student - teacher, 0.0) ** 2
        return jnp.sum(jnp.mean(gaps, axis=1), axis=(1, 2)) / count**2
    # Padded queries see every key: their rows are left out below, and must be finite until then.
    seen = keys | ~queries
    s, t = (jnp.where(seen, scores, -jnp.inf) for scores in (student, teacher))
    rows = jnp.where(valid[:, None], kullback_leibler(s, t), 0.0)
    return jnp.sum(jnp.mean(rows, axis=1), axis=1) / count
