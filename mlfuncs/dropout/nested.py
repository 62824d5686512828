"""Nested dropout: masks that keep a random prefix of the features, and what every prefix predicts."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks
from mlfuncs._arrays import as_float, sum_over, vary_with

CHUNK = 32  # features that are added at once in a scan over prefixes


def truncation_distribution(num_features: int, *, scale: ArrayLike, mean: ArrayLike = 0.0) -> Array:
    r"""Probabilities of keeping k = 1..N features, :math:`p(k) \propto \exp(-((k - \mu) / \sigma)^2)`.

    Without a half in the exponent, as the official code has it.

    Args:
      num_features: N >= 1.
      scale: sigma > 0. The paper uses 10 for CIFAR-10 and 100 for CIFAR-100 with 512 features.
      mean: mu. Default 0: short prefixes are the likeliest.

    Returns:
      [N] probabilities that sum to 1; far ones may be 0.

    Raises:
      ValueError: `num_features` below 1, or `scale` not > 0.

    References:
      Chen et al., Compressing Features for Learning with Noisy Labels, arXiv:2206.13140.
    """
    _checks.count("num_features", num_features)
    _checks.positive("scale", scale)
    away = jnp.abs(jnp.arange(1, num_features + 1, dtype=jnp.float32) - as_float(mean))
    # The largest exponent is taken off before the division by a scale that may be tiny.
    nearest, scale = jnp.min(away), as_float(scale)
    return jax.nn.softmax(-((away - nearest) / scale) * ((away + nearest) / scale))


def _check_probabilities(probabilities: ArrayLike) -> None:
    _checks.rank("probabilities", probabilities, 1)
    _checks.non_negative("probabilities", probabilities)
    if _checks.is_concrete(probabilities):
        total = float(np.sum(np.asarray(probabilities, np.float64)))
        if not abs(total - 1) <= 1e-3:
            raise ValueError(f"probabilities must sum to 1, got a sum of {total:g}")


def truncation_keep_probability(probabilities: ArrayLike) -> Array:
    r"""Probability that each unit is kept, :math:`P(K \ge j) = \sum_{k \ge j} p(k)`.

    Args:
      probabilities: [N] of keeping k = 1..N features.

    Returns:
      [N], decreasing from 1.

    Raises:
      ValueError: not one axis, negative, or not summing to 1 within 1e-3.

    References:
      Chen et al., arXiv:2206.13140.
    """
    _check_probabilities(probabilities)
    return jnp.minimum(jnp.cumsum(as_float(probabilities)[::-1])[::-1], 1)  # sums round


def truncation_mask(kept: ArrayLike, num_features: int) -> Array:
    """Masks that keep the first features.

    Args:
      kept: int [...], how many; values outside [0, N] keep none or all.
      num_features: N >= 1.

    Returns:
      bool [..., N].

    Raises:
      ValueError: `num_features` below 1.

    References:
      Chen et al., arXiv:2206.13140.
    """
    _checks.count("num_features", num_features)
    return jnp.arange(num_features) < jnp.asarray(kept)[..., None]


def nested_mask(key: Array, probabilities: ArrayLike, *, shape: tuple[int, ...] = ()) -> Array:
    """Masks that keep a random prefix of the features. No rescaling belongs to them.

    Args:
      key: a PRNG key.
      probabilities: [N] of keeping k = 1..N features, such as `truncation_distribution`.
      shape: of the draws. Default (): one prefix for the whole batch, as in the paper; (B,) one for each example.

    Returns:
      bool [*shape, N]; the first unit is always kept.

    Raises:
      ValueError: as `truncation_keep_probability`.

    References:
      Chen et al., arXiv:2206.13140; Rippel, Gelbart and Adams, Learning Ordered Representations, arXiv:1402.0915.
    """
    _check_probabilities(probabilities)
    p = as_float(probabilities)
    logits = jnp.where(p > 0, jnp.log(jnp.where(p > 0, p, 1.0)), -jnp.inf)
    return truncation_mask(jax.random.categorical(key, logits, shape=tuple(shape)) + 1, p.shape[0])


def _check_classifier(features: ArrayLike, kernel: ArrayLike, bias: ArrayLike | None) -> None:
    _checks.rank("features", features, 2)
    _checks.rank("kernel", kernel, 2)
    if np.shape(features)[1] != np.shape(kernel)[0]:
        raise ValueError(f"kernel must have {np.shape(features)[1]} rows, one a feature, got shape {np.shape(kernel)}")
    if np.shape(features)[1] < 1:
        raise ValueError("features must have at least one column")
    if bias is not None and np.shape(bias) != np.shape(kernel)[1:]:
        raise ValueError(f"bias must have shape {np.shape(kernel)[1:]}, got {np.shape(bias)}")


def prefix_logits(features: ArrayLike, kernel: ArrayLike, *, bias: ArrayLike | None = None) -> Array:
    r"""Logits of a linear classifier for every truncation, :math:`z^{(k)} = h_{1:k} W_{1:k} + b`.

    Args:
      features: [B, N], h.
      kernel: [N, C], W.
      bias: [C] or None.

    Returns:
      [N, B, C]; position k - 1 holds the truncation to k features. For many classes `prefix_accuracy` needs less memory.

    Raises:
      ValueError: shapes that do not fit.

    References:
      Chen et al., arXiv:2206.13140.
    """
    _check_classifier(features, kernel, bias)
    h, w = as_float(features), as_float(kernel)
    logits = jnp.cumsum(h.T[:, :, None] * w[:, None, :], axis=0)
    return logits if bias is None else logits + as_float(bias)


def prefix_accuracy(
    features: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    axis_name: str | None = None,
) -> Array:
    """Accuracy of a linear classifier for every truncation, without ever holding [N, B, C].

    Args:
      features: [B, N].
      kernel: [N, C].
      labels: int [B].
      bias: [C] or None.
      weights: [B] of the examples, such as 0 for padding, or None for equal ones.
      axis_name: inside `shard_map` or `pmap`, the axis over which the batch is split: accuracies are those of all of it.

    Returns:
      [N] accuracies in [0, 1]; position k - 1 holds the truncation to k features. 0 where all weights are.

    Raises:
      ValueError: shapes that do not fit.

    References:
      Chen et al., arXiv:2206.13140.
    """
    _check_classifier(features, kernel, bias)
    batch, count = np.shape(features)
    _checks.per_example("labels", labels, batch)
    if weights is not None:
        _checks.per_example("weights", weights, batch)
        _checks.non_negative("weights", weights)
    h, w, labels = as_float(features), as_float(kernel), jnp.asarray(labels)
    share = jnp.ones(batch, h.dtype) if weights is None else as_float(weights)
    whole = sum_over(jnp.sum(share), axis_name)
    start = vary_with(
        jnp.zeros((batch, w.shape[1]), jnp.result_type(h, w)) + (0.0 if bias is None else as_float(bias)), h
    )

    def extend(logits: Array, unit: tuple[Array, Array]) -> tuple[Array, Array]:
        column, row = unit
        logits = logits + column[:, None] * row[None, :]
        return logits, jnp.sum(share * (jnp.argmax(logits, axis=1) == labels))

    _, right = jax.lax.scan(extend, start, (h.T, w), unroll=min(CHUNK, count))
    return sum_over(right, axis_name) / jnp.where(whole > 0, whole, 1.0)


def select_truncation(accuracy: ArrayLike, *, penalty: ArrayLike = 1e-5) -> Array:
    r"""How many features to keep, :math:`k^* = \arg\max_k \, a(k) - \lambda (k - 1)`.

    Args:
      accuracy: [N] for truncations to k = 1..N features, on clean validation data.
      penalty: lambda >= 0 on the length; ties go to the shorter prefix.

    Returns:
      int32 scalar, the count of kept features (the official code prints this less one).

    Raises:
      ValueError: not one axis, empty, or a negative `penalty`.

    References:
      Chen et al., arXiv:2206.13140.
    """
    _checks.rank("accuracy", accuracy, 1)
    _checks.non_negative("penalty", penalty)
    if np.size(accuracy) == 0:
        raise ValueError("accuracy must hold at least one truncation")
    a = as_float(accuracy)
    return (jnp.argmax(a - as_float(penalty) * jnp.arange(a.shape[0])) + 1).astype(jnp.int32)
