"""Features: what a projection head makes of them, what they know, and how alike two sets of them are."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks
from mlfuncs._arrays import as_float, gather_batch, gram, safe_sqrt, squared_distances, sum_over, top_k, unit_vectors

BLOCK = 512  # rows of a distance matrix held at once


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def normalized_bottleneck(
    features: ArrayLike, first_kernel: ArrayLike, first_bias: ArrayLike, second_kernel: ArrayLike
) -> Array:
    r"""Last layers of a DINO head: linear, onto the unit sphere, and onto directions of unit length.

    .. math:: z = \frac{h W + b}{\max(\|h W + b\|_2, 10^{-12})}, \quad o_k = z \cdot \frac{v_k}{\|v_k\|_2}

    Logits lie in [-1, 1]: with many outputs their softmax is nearly flat.

    Args:
      features: h [..., D].
      first_kernel: W [D, M].
      first_bias: b [M].
      second_kernel: [M, K], its columns v_k. Their length does not matter and gets no gradient.

    Returns:
      [..., K] in [-1, 1], in at least float32; 0 where z or v_k is 0, with finite gradients.

    Raises:
      ValueError: shapes that do not fit.

    References:
      Caron et al., DINO, arXiv:2104.14294; Sarnthein et al., Random Teachers are Good Teachers, arXiv:2302.12091.
    """
    _checks.rank("first_kernel", first_kernel, 2)
    _checks.rank("second_kernel", second_kernel, 2)
    if np.ndim(features) < 1 or np.shape(features)[-1] != np.shape(first_kernel)[0]:
        raise ValueError(
            f"features must have {np.shape(first_kernel)[0]} values on their last axis, got shape {np.shape(features)}"
        )
    width = np.shape(first_kernel)[1]
    if np.shape(first_bias) != (width,):
        raise ValueError(f"first_bias must have shape ({width},), got {np.shape(first_bias)}")
    if np.shape(second_kernel)[0] != width:
        raise ValueError(f"second_kernel must have {width} rows, got shape {np.shape(second_kernel)}")
    hidden = _product(as_float(features), as_float(first_kernel)) + as_float(first_bias)
    return _product(unit_vectors(hidden), unit_vectors(as_float(second_kernel).T).T)


def _centre(x: Array, axis_name: str | None) -> tuple[Array, Array, Array]:
    """Mean [1, D], number of rows, and bool [D] where a column of the whole set holds one value alone."""
    count = sum_over(x.shape[0], axis_name)
    mean = sum_over(jnp.sum(x, axis=0, keepdims=True), axis_name) / count
    high, low = (jax.lax.stop_gradient(bound(x, axis=0)) for bound in (jnp.max, jnp.min))
    if axis_name is not None:
        high, low = jax.lax.pmax(high, axis_name), jax.lax.pmin(low, axis_name)
    return mean, count, high == low


def standardize_features(reference: ArrayLike, features: ArrayLike, *, axis_name: str | None = None) -> Array:
    r"""Features minus the mean of a reference set, over its unbiased standard deviation.

    Args:
      reference: [N, D], N >= 2: the training set.
      features: [M, D].
      axis_name: inside `shard_map` or `pmap`, the axis over which both are split; statistics are those of the whole
        reference.

    Returns:
      [M, D], in at least float32. A feature that is constant in the reference, such as a dead unit, is only centred.

    Raises:
      ValueError: not two axes, other widths, or fewer than 2 reference rows.

    References:
      probes as in Sarnthein et al., arXiv:2302.12091.
    """
    for name, value in (("reference", reference), ("features", features)):
        _checks.rank(name, value, 2)
    if np.shape(reference)[1] != np.shape(features)[1]:
        raise ValueError(f"features must have {np.shape(reference)[1]} columns, got shape {np.shape(features)}")
    devices = 1 if axis_name is None else jax.lax.axis_size(axis_name)
    known = as_float(reference)
    if known.shape[0] * devices < 2:
        raise ValueError(f"reference must hold at least 2 rows, got {known.shape[0] * devices}")
    mean, count, constant = _centre(known, axis_name)
    # The mean of equal values may differ from them by a rounding: no deviation to divide by.
    variance = sum_over(jnp.sum((known - mean) ** 2, axis=0), axis_name) / (count - 1)
    return (as_float(features) - mean) / jnp.where(constant, 1.0, safe_sqrt(jnp.where(constant, 1.0, variance)))


def nearest_neighbor_predictions(
    train_features: ArrayLike,
    train_labels: ArrayLike,
    test_features: ArrayLike,
    *,
    neighbors: int = 20,
    axis_name: str | None = None,
) -> Array:
    """Labels by majority among the nearest training examples, in Euclidean distance.

    Args:
      train_features: [N, D].
      train_labels: int [N].
      test_features: [M, D].
      neighbors: k in [1, N]. Default 20.
      axis_name: inside `shard_map` or `pmap`, the axis over which both sets are split.

    Returns:
      int32 [M]. Of equal votes the smaller label; of equal distances the earlier example is nearer. No gradient passes.
      Memory grows with N, not with N * M.

    Raises:
      ValueError: shapes that do not fit, labels not integers, or k outside [1, N].

    References:
      probes as in Sarnthein et al., arXiv:2302.12091.
    """
    for name, value in (("train_features", train_features), ("test_features", test_features)):
        _checks.rank(name, value, 2)
    if np.shape(train_features)[1] != np.shape(test_features)[1]:
        raise ValueError(
            f"test_features must have {np.shape(train_features)[1]} columns, got shape {np.shape(test_features)}"
        )
    _checks.per_example("train_labels", train_labels, np.shape(train_features)[0])
    _checks.integers("train_labels", train_labels)
    _checks.count("neighbors", neighbors)
    labels = gather_batch(jnp.asarray(train_labels, jnp.int32), axis_name)
    known = gather_batch(jax.lax.stop_gradient(as_float(train_features)), axis_name)
    if neighbors > known.shape[0]:
        raise ValueError(
            f"neighbors must be at most the number of training examples, {known.shape[0]}, got {neighbors}"
        )
    centre = jnp.mean(known, axis=0)  # a common shift costs digits and changes no distance

    def vote(row: Array) -> Array:
        _, nearest = top_k(-squared_distances((row - centre)[None], known - centre)[0], neighbors)
        chosen = labels[nearest]
        votes = jnp.sum(chosen[:, None] == chosen[None, :], axis=1)
        return jnp.min(jnp.where(votes == jnp.max(votes), chosen, jnp.iinfo(jnp.int32).max))

    return jax.lax.map(vote, jax.lax.stop_gradient(as_float(test_features)), batch_size=BLOCK)


def centered_kernel_alignment(first: ArrayLike, second: ArrayLike, *, axis_name: str | None = None) -> Array:
    r"""Linear centred kernel alignment of two sets of features of the same examples.

    .. math:: \frac{\|Y^\top X\|_F^2}{\|X^\top X\|_F\, \|Y^\top Y\|_F}

    X and Y have their columns centred. 1 for rotations and scalings of one another. With more features than examples the
    same value comes from the Gram matrices [N, N].

    Args:
      first: [N, ...], N >= 2; trailing axes are one.
      second: [N, ...], of any width.
      axis_name: inside `shard_map` or `pmap`, the axis over which the examples are split; the value is that of all.

    Returns:
      scalar in [0, 1], in at least float32; 0, with gradient 0, where either side is constant.

    Raises:
      ValueError: another number of examples, or fewer than 2.

    References:
      Kornblith et al., Similarity of Neural Network Representations Revisited, arXiv:1905.00414; in distillation
      arXiv:2310.19444.
    """
    for name, value in (("first", first), ("second", second)):
        _checks.batched(name, value)
    if np.shape(first)[0] != np.shape(second)[0]:
        raise ValueError(
            f"first and second must hold one number of examples, got {np.shape(first)[0]} and {np.shape(second)[0]}"
        )
    count = np.shape(first)[0] * (1 if axis_name is None else jax.lax.axis_size(axis_name))
    if count < 2:
        raise ValueError(f"first must hold at least 2 examples, got {count}")

    def centred(value: ArrayLike) -> Array:
        x = as_float(value)
        x = x.reshape(x.shape[0], int(np.prod(x.shape[1:])))
        mean, _, constant = _centre(x, axis_name)
        x = jnp.where(constant, 0.0, x - mean)
        # Of unit size: products of large or small features stay within range.
        size = safe_sqrt(sum_over(jnp.sum(x * x), axis_name))
        return x / jnp.where(size <= 0, 1.0, size)

    x, y = centred(first), centred(second)
    if x.shape[1] * y.shape[1] > count**2:
        x, y = gather_batch(x, axis_name), gather_batch(y, axis_name)
        gram_x, gram_y = gram(x.T), gram(y.T)
        cross = jnp.sum(gram_x * gram_y)
    else:
        gram_x, gram_y = (sum_over(gram(z), axis_name) for z in (x, y))
        cross = jnp.sum(sum_over(_product(y.T, x), axis_name) ** 2)
    norms = safe_sqrt(jnp.sum(gram_x**2)) * safe_sqrt(jnp.sum(gram_y**2))
    return cross / jnp.where(norms <= 0, 1.0, norms)
