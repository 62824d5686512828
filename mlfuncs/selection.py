"""Choosing examples: which to keep of a data set, and which to annotate next."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks
from mlfuncs._arrays import (
    as_float,
    example_keys,
    gather_batch,
    gather_over,
    safe_sqrt,
    sum_over,
    unit_vectors,
    vary_with,
)
from mlfuncs.distillation import dual_head_probabilities
from mlfuncs.distillation._rows import check_classes, check_labels, log_probabilities, over_rows


def error_norm(logits: ArrayLike, labels: ArrayLike, *, order: float = 2) -> Array:
    r"""How wrong a prediction is, :math:`\|\mathrm{softmax}(z) - \mathrm{onehot}(y)\|` (EL2N at order 2).

    Scores of hard or mislabelled examples are high. Average them over several briefly trained networks.

    Args:
      logits: z [..., C], C >= 1.
      labels: int [...], in [0, C). Under `jit` they are not checked.
      order: 1, 2 or infinity. Default 2.

    Returns:
      [...], in at least float32; the gradient is 0 where the prediction is exact.

    Raises:
      ValueError: no class, labels not integers of the leading shape and in range, or another order.

    References:
      Paul et al., Deep Learning on a Data Diet, arXiv:2107.07075; with distillation arXiv:2403.07854.
    """
    check_classes("logits", logits)
    z = jnp.asarray(logits)
    label = check_labels(labels, z.shape[:-1], z.shape[-1])
    if order not in (1, 2, math.inf):
        raise ValueError(f"order must be 1, 2 or infinity, got {order!r}")

    def rows(z: Array, y: Array) -> Array:
        gap = jnp.exp(log_probabilities(z)) - (jnp.arange(z.shape[-1]) == y[..., None])
        if order == 2:
            return safe_sqrt(jnp.sum(gap**2, axis=-1))
        return jnp.sum(jnp.abs(gap), axis=-1) if order == 1 else jnp.max(jnp.abs(gap), axis=-1)

    return over_rows(rows, z, label)


def forgetting_count(correct: ArrayLike) -> Array:
    """How often each example went from right to wrong over training.

    Args:
      correct: bool [E, N], whether each of N examples was classified right in each of E >= 1 epochs.

    Returns:
      float32 [N]. An example that was never right gets E, more than any other can have.

    Raises:
      ValueError: not bool, not two axes, or no epoch.

    References:
      Toneva et al., An Empirical Study of Example Forgetting, arXiv:1812.05159; with distillation arXiv:2403.07854.
    """
    _checks.rank("correct", correct, 2)
    right = jnp.asarray(correct)
    if right.dtype != jnp.bool_:
        raise ValueError(f"correct must be bool, got {right.dtype}")
    if right.shape[0] == 0:
        raise ValueError("correct must hold at least one epoch")
    forgotten = jnp.sum(right[:-1] & ~right[1:], axis=0)
    return jnp.where(jnp.any(right, axis=0), forgotten, right.shape[0]).astype(jnp.float32)


def _kept_count(size: int, fraction: float) -> int:
    """ceil(fraction * size), at least 1; rounding alone adds none: 0.07 of 100 is 7."""
    return max(1, math.ceil(fraction * size - 1e-6))


def _check_fraction(fraction: float) -> None:
    if not _checks.is_concrete(fraction):
        raise ValueError("fraction decides a count and must be a Python number, got a traced value")
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction!r}")


def _check_scores(scores: ArrayLike) -> Array:
    _checks.rank("scores", scores, 1)
    if np.size(scores) == 0:
        raise ValueError("scores must hold at least one example")
    _checks.not_nan("scores", scores)
    return jnp.asarray(scores)


def keep_highest(scores: ArrayLike, *, fraction: float) -> Array:
    """Indices of the share of examples with the highest scores.

    Args:
      scores: [N], N >= 1.
      fraction: f in (0, 1], the share that REMAINS; a Python number.

    Returns:
      int32 [ceil(f N)], by decreasing score, of equal ones the lower index first.

    Raises:
      ValueError: not one axis, empty, concrete NaN (which would win or lose without a word), or f outside (0, 1].

    References:
      Ben-Baruch et al., Distilling the Knowledge in Data Pruning, arXiv:2403.07854.
    """
    _check_fraction(fraction)
    s = _check_scores(scores)
    order = jnp.argsort(s, stable=True, descending=True)
    return order[: _kept_count(s.shape[0], fraction)].astype(jnp.int32)


def keep_random(key: Array, size: int, *, fraction: float) -> Array:
    """Indices of a random share of examples, without replacement: with distillation as good as any score.

    Args:
      key: a PRNG key.
      size: N >= 1.
      fraction: f in (0, 1], the share that remains; a Python number.

    Returns:
      int32 [ceil(f N)], in random order. A larger share with the same key holds the smaller one.

    Raises:
      ValueError: N < 1, or f outside (0, 1].

    References:
      Ben-Baruch et al., arXiv:2403.07854.
    """
    _checks.count("size", size)
    _check_fraction(fraction)
    order = jnp.argsort(jax.vmap(jax.random.bits)(example_keys(key, size)))
    return order[: _kept_count(size, fraction)].astype(jnp.int32)


def keep_balanced(scores: ArrayLike, labels: ArrayLike, *, fraction: float) -> Array:
    """Indices of the share of each class with the highest scores. On the host: their number depends on the labels.

    Args:
      scores: [N], N >= 1, concrete.
      labels: int [N], concrete.
      fraction: f in (0, 1], the share that remains; a Python number.

    Returns:
      int32, ceil(f N_c) of each class, sorted by index. Of equal scores the lower index is kept.

    Raises:
      ValueError: not one axis, empty, NaN, labels not integers [N], or f outside (0, 1].

    References:
      Ben-Baruch et al., arXiv:2403.07854.
    """
    _check_fraction(fraction)
    _check_scores(scores)
    _checks.per_example("labels", labels, np.shape(scores)[0])
    _checks.integers("labels", labels)
    values, classes = np.asarray(scores, np.float64), np.asarray(labels)
    kept = []
    for label in np.unique(classes):
        members = np.flatnonzero(classes == label)
        best = members[np.argsort(-values[members], kind="stable")]
        kept.append(best[: _kept_count(members.size, fraction)])
    return jnp.asarray(np.sort(np.concatenate(kept)), jnp.int32)


def farthest_first(
    candidates: ArrayLike,
    selected: ArrayLike,
    *,
    count: int,
    metric: str = "euclidean",
    axis_name: str | None = None,
) -> Array:
    r"""Greedy k-centre selection: again and again the candidate farthest from all that is selected.

    .. math:: u = \operatorname{argmax}_{u \in P} \min_{v \in S} d(u, v), \quad S \leftarrow S \cup \{u\}

    Args:
      candidates: P [N, D], any vectors.
      selected: S [M, D], M >= 0. With none the first pick is the candidate farthest from the mean of all, and for "cosine"
        the one least similar to the mean direction.
      count: picks, in [1, N].
      metric: "euclidean", or "cosine": 1 less the cosine. A zero vector lies at distance 1 from everything.
      axis_name: inside `shard_map` or `pmap`, the axis over which the candidates are split, while every device holds all of
        `selected`: the picks, the same on all, are indices into the global candidates.

    Returns:
      int32 [count], in the order of selection, none twice. Of equal distances the lower index. O((M + count) N D) time and
      no N x M array. No gradient passes.

    Raises:
      ValueError: not two axes, other widths, count outside [1, N], an unknown metric, or concrete NaN.

    References:
      Gonzalez (1985); Sener and Savarese, arXiv:1708.00489; Kang et al., PCoreSet, arXiv:2506.00910.
    """
    for name, value in (("candidates", candidates), ("selected", selected)):
        _checks.rank(name, value, 2)
        _checks.not_nan(name, value)
    if np.shape(candidates)[1] != np.shape(selected)[1]:
        raise ValueError(f"selected must have {np.shape(candidates)[1]} columns, got shape {np.shape(selected)}")
    _checks.one_of("metric", metric, ("euclidean", "cosine"))
    _checks.count("count", count)
    devices = 1 if axis_name is None else jax.lax.axis_size(axis_name)
    points, known = (jax.lax.stop_gradient(as_float(x)) for x in (candidates, selected))
    size = points.shape[0] * devices
    if count > size:
        raise ValueError(f"count must be at most the number of candidates, {size}, got {count}")
    if metric == "cosine":
        points, known = unit_vectors(points), unit_vectors(known)

    def distance(centre: Array) -> Array:
        # Of one new centre at a time, by differences: inner products would lose the digits of near ones.
        if metric == "euclidean":
            return jnp.sum((points - centre) ** 2, axis=1)
        return 1 - jnp.sum(points * centre, axis=1)

    def nearer(nearest: Array, centre: Array) -> tuple[Array, None]:
        return jnp.minimum(nearest, distance(centre)), None

    nearest = vary_with(jnp.full(points.shape[0], jnp.inf, points.dtype), points)
    if known.shape[0]:
        nearest, _ = jax.lax.scan(nearer, nearest, known)
        first = nearest
    else:
        mean = sum_over(jnp.sum(points, axis=0), axis_name) / size
        first = distance(unit_vectors(mean) if metric == "cosine" else mean)

    def pick(state: tuple[Array, Array, Array], step: Array) -> tuple[tuple[Array, Array, Array], Array]:
        nearest, scores, free = state
        index, vector = _farthest(jnp.where(free, scores, -jnp.inf), points, axis_name)
        free = free & (_global_rows(points, axis_name) != index)
        nearest, _ = nearer(nearest, vector)
        return (nearest, nearest, free), index

    free = vary_with(jnp.ones(points.shape[0], bool), points)
    _, picks = jax.lax.scan(pick, (nearest, first, free), jnp.arange(count))
    return picks


def _global_rows(points: Array, axis_name: str | None) -> Array:
    start = 0 if axis_name is None else jax.lax.axis_index(axis_name) * points.shape[0]
    return (start + jnp.arange(points.shape[0])).astype(jnp.int32)


def _farthest(scores: Array, points: Array, axis_name: str | None) -> tuple[Array, Array]:
    """Global index and vector of the first of the highest scores."""
    own = jnp.argmax(scores).astype(jnp.int32)
    if axis_name is None:
        return own, points[own]
    device = jnp.argmax(gather_over(scores[own], axis_name))
    here = jax.lax.axis_index(axis_name) == device
    index = jax.lax.psum(jnp.where(here, _global_rows(points, axis_name)[own], 0), axis_name)
    return index, jax.lax.psum(jnp.where(here, points[own], 0.0), axis_name)


def highest_entropy(probabilities: ArrayLike, *, count: int, axis_name: str | None = None) -> Array:
    r"""Indices of the most uncertain predictions, by :math:`-\sum_c p_c \log p_c`.

    Args:
      probabilities: [N, C] >= 0; zeros count for nothing.
      count: picks, in [1, N].
      axis_name: inside `shard_map` or `pmap`, the axis over which the rows are split: indices are global, the same on all.

    Returns:
      int32 [count], by decreasing entropy, of equal ones the lower index first.

    Raises:
      ValueError: not two axes, count outside [1, N], or concrete negative values or NaN.

    References:
      as a baseline in Kang et al., arXiv:2506.00910.
    """
    _checks.rank("probabilities", probabilities, 2)
    _checks.not_nan("probabilities", probabilities)
    _checks.non_negative("probabilities", probabilities)
    _checks.count("count", count)
    p = as_float(probabilities)
    held = p > 0
    entropy = -jnp.sum(jnp.where(held, p * jnp.log(jnp.where(held, p, 1.0)), 0.0), axis=1)
    entropy = gather_batch(entropy, axis_name)
    if count > entropy.shape[0]:
        raise ValueError(f"count must be at most the number of predictions, {entropy.shape[0]}, got {count}")
    return jnp.argsort(entropy, stable=True, descending=True)[:count].astype(jnp.int32)


def probability_coreset(
    pool_label_logits: ArrayLike,
    pool_distilled_logits: ArrayLike,
    labelled_label_logits: ArrayLike,
    labelled_distilled_logits: ArrayLike,
    *,
    count: int,
    mix: ArrayLike = 0.5,
    temperature: ArrayLike = 1.0,
    axis_name: str | None = None,
) -> Array:
    """Which examples to annotate next: those that cover the space of predictions (PCoreSet).

    `farthest_first` in Euclidean distance between `distillation.dual_head_probabilities` of pool and labelled examples.
    Labelled examples enter by their predictions, not by their labels.

    Args:
      pool_label_logits: [N, C], of the unlabelled pool by the head for labels.
      pool_distilled_logits: [N, C], by the head for the teacher.
      labelled_label_logits: [M, C], M >= 0, of the labelled examples.
      labelled_distilled_logits: [M, C].
      count: picks, in [1, N]; the number of classes in the paper.
      mix: weight of the distilled head in [0, 1], a scalar (may be traced). Default 0.5.
      temperature: > 0, of the distilled head. Default 1.
      axis_name: inside `shard_map` or `pmap`, the axis over which the pool is split; see `farthest_first`.

    Returns:
      int32 [count], indices into the pool in the order of selection.

    Raises:
      ValueError: not two axes, shapes that do not fit, count outside [1, N], mix outside [0, 1], temperature <= 0, or
        concrete NaN.

    References:
      Kang et al., PCoreSet: Effective Active Learning through Knowledge Distillation from Vision-Language Models,
      arXiv:2506.00910.
    """
    for name, value in (("pool_label_logits", pool_label_logits), ("labelled_label_logits", labelled_label_logits)):
        _checks.rank(name, value, 2)
    pool, labelled = (
        dual_head_probabilities(a, d, mix=mix, temperature=temperature)
        for a, d in ((pool_label_logits, pool_distilled_logits), (labelled_label_logits, labelled_distilled_logits))
    )
    return farthest_first(pool, labelled, count=count, axis_name=axis_name)
