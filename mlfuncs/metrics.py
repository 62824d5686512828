"""Measurements of how far one set of examples lies from another, and how widely one spreads."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks
from mlfuncs._arrays import as_float, gather_batch, squared_distances, top_k, unit_vectors

BLOCK = 512  # rows of a distance matrix held at once


def _feature_sets(
    first_name: str, first: ArrayLike, second_name: str, second: ArrayLike, least: int, axis_name: str | None
) -> tuple[Array, Array]:
    for name, value in ((first_name, first), (second_name, second)):
        _checks.rank(name, value, 2)
        if np.shape(value)[1] == 0:
            raise ValueError(f"{name} must hold at least one feature, got shape {np.shape(value)}")
    if np.shape(first)[1] != np.shape(second)[1]:
        raise ValueError(
            f"{first_name} and {second_name} must have one number of features, "
            f"got {np.shape(first)[1]} and {np.shape(second)[1]}"
        )
    sets = gather_batch(as_float(first), axis_name), gather_batch(as_float(second), axis_name)
    for name, value in zip((first_name, second_name), sets, strict=True):
        if value.shape[0] < least:
            raise ValueError(f"{name} must hold at least {least} examples, got {value.shape[0]}")
    return sets


@jax.custom_vjp
def _cross_nuclear_norm(a: Array, b: Array) -> Array:
    """Sum of the singular values of a b^T for a [N, D], b [M, D], from [D, D] factors alone."""
    return _cross_nuclear_norm_forward(a, b)[0]


def _cross_nuclear_norm_forward(a: Array, b: Array) -> tuple[Array, tuple[Array, Array]]:
    qa, ra = jnp.linalg.qr(a)
    qb, rb = jnp.linalg.qr(b)
    u, s, vt = jnp.linalg.svd(ra @ rb.T, full_matrices=False)
    # d|a b^T|_* / da = (U V^T) b, bounded however small the singular values are.
    rotation = u @ vt
    return jnp.sum(s), (qa @ (rotation @ rb), qb @ (rotation.T @ ra))


def _cross_nuclear_norm_backward(residuals: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    return cotangent * residuals[0], cotangent * residuals[1]


_cross_nuclear_norm.defvjp(_cross_nuclear_norm_forward, _cross_nuclear_norm_backward)


def frechet_distance(first: ArrayLike, second: ArrayLike, *, axis_name: str | None = None) -> Array:
    r"""Fréchet distance between two sets of features, each taken as a normal distribution.

    .. math:: \|\mu_1 - \mu_2\|_2^2 + \operatorname{tr}\big(\Sigma_1 + \Sigma_2 - 2(\Sigma_1 \Sigma_2)^{1/2}\big)

    With centred features A and B (over the root of their number less one), the last trace is the nuclear norm of
    :math:`A B^\top`. It is taken from QR factors, so that rank-deficient covariances, few examples and float32 do no harm
    and nothing complex appears. Gradients are bounded.

    Args:
      first: [N, D] features, N >= 2. The covariance divides by N - 1.
      second: [M, D] features, M >= 2.
      axis_name: inside `shard_map` or `pmap`, an axis over which both sets are split; the result is that of the whole
        sets.

    Returns:
      Scalar >= 0, in squared units of the features. On Inception features this is FID. It is biased upwards for small
      sets: compare like with like.

    Raises:
      ValueError: not two axes, other widths, no features, or fewer than 2 examples.

    References:
      Heusel et al., GANs Trained by a Two Time-Scale Update Rule, arXiv:1706.08500.
    """
    first, second = _feature_sets("first", first, "second", second, 2, axis_name)
    mean_first, mean_second = jnp.mean(first, axis=0), jnp.mean(second, axis=0)
    a = (first - mean_first) / np.sqrt(first.shape[0] - 1)
    b = (second - mean_second) / np.sqrt(second.shape[0] - 1)
    spread = jnp.sum(a**2) + jnp.sum(b**2) - 2 * _cross_nuclear_norm(a, b)
    # Rounding can leave a small negative difference; NaN stays.
    return jnp.sum((mean_first - mean_second) ** 2) + jnp.where(spread < 0, 0.0, spread)


def nearest_neighbor_precision_recall(
    real: ArrayLike, generated: ArrayLike, *, num_neighbors: int = 3, axis_name: str | None = None
) -> dict[str, Array]:
    r"""Precision and recall of generated examples by k-nearest-neighbour balls.

    Each set's manifold is the union of balls around its points that reach to their k-th nearest other point. Precision is
    the fraction of generated examples in the real manifold (quality), recall the fraction of real examples in the
    generated one (diversity).

    Args:
      real: [N, D] features, N > num_neighbors.
      generated: [M, D] features, M > num_neighbors.
      num_neighbors: k >= 1. The paper's default.
      axis_name: inside `shard_map` or `pmap`, an axis over which both sets are split.

    Returns:
      {"precision", "recall"}: scalars in [0, 1]. A point on the border of a ball is inside. Memory grows with N, not with
      N * M. Piecewise constant: gradients are 0.

    Raises:
      ValueError: not two axes, other widths, num_neighbors < 1, or too few examples.

    References:
      Kynkäänniemi et al., Improved Precision and Recall Metric for Assessing Generative Models, arXiv:1904.06991.
    """
    _checks.count("num_neighbors", num_neighbors)
    real, generated = _feature_sets("real", real, "generated", generated, num_neighbors + 1, axis_name)
    # Distances come from norms and inner products: a common shift costs digits there and changes nothing else.
    centre = jnp.mean(real, axis=0)
    real, generated = (jax.lax.stop_gradient(points - centre) for points in (real, generated))

    def radii(points: Array) -> Array:
        def of(row: Array) -> Array:
            nearest = -top_k(-squared_distances(row[None], points)[0], num_neighbors + 1)[0]
            return nearest[num_neighbors]  # nearest[0] is the point itself

        return jax.lax.map(of, points, batch_size=BLOCK)

    def covered(queries: Array, points: Array) -> Array:
        reach = radii(points)
        inside = jax.lax.map(
            lambda row: jnp.any(squared_distances(row[None], points)[0] <= reach), queries, batch_size=BLOCK
        )
        return jnp.mean(inside.astype(jnp.float32))

    return {"precision": covered(generated, real), "recall": covered(real, generated)}


def sliced_wasserstein_distance(
    key: Array,
    first: ArrayLike,
    second: ArrayLike,
    *,
    num_projections: int = 128,
    order: float = 2.0,
    axis_name: str | None = None,
) -> Array:
    r"""Sliced Wasserstein distance, the mean of one-dimensional transport costs over random directions.

    .. math:: \Big(\mathbb{E}_\theta \int_0^1 |F_\theta^{-1}(q) - G_\theta^{-1}(q)|^p\, dq\Big)^{1/p}

    The inner integral is exact, also for sets of different size. Direction j depends on the key and on j alone.

    Args:
      key: a PRNG key.
      first: [N, D] points.
      second: [M, D] points.
      num_projections: number of directions, >= 1.
      order: p >= 1.
      axis_name: inside `shard_map` or `pmap`, an axis over which both sets are split.

    Returns:
      Scalar >= 0, in units of the points; its gradient is 0 where the two sets agree.

    Raises:
      ValueError: not two axes, other widths, empty sets, num_projections < 1, or order < 1.

    References:
      Bonneel et al., Sliced and Radon Wasserstein Barycenters of Measures (2015).
    """
    _checks.count("num_projections", num_projections)
    _checks.at_least("order", order, 1)
    first, second = _feature_sets("first", first, "second", second, 1, axis_name)
    draw = lambda index: jax.random.normal(jax.random.fold_in(key, index), first.shape[1:])  # noqa: E731
    directions = jax.vmap(draw)(jnp.arange(num_projections))
    directions /= jnp.linalg.norm(directions, axis=1, keepdims=True)

    # Quantile functions are steps: between neighbouring jumps of either, both are constant.
    n, m = first.shape[0], second.shape[0]
    jumps = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)  # in units of 1 / (n m), exact
    widths = jnp.asarray(np.diff(jumps, prepend=0) / (n * m), first.dtype)
    at_first, at_second = (jumps - 1) // m, (jumps - 1) // n

    def cost(direction: Array) -> Array:
        gap = jnp.sort(first @ direction)[at_first] - jnp.sort(second @ direction)[at_second]
        return jnp.sum(widths * jnp.abs(gap) ** order)

    mean = jnp.mean(jax.lax.map(cost, directions, batch_size=16))
    usable = ~(mean <= 0)
    return jnp.where(usable, jnp.where(usable, mean, 1.0) ** (1 / order), 0.0)


def power_law_fit(steps: ArrayLike, values: ArrayLike, *, fit_count: int | None = None) -> dict[str, Array]:
    r"""The power law :math:`c\, n^b` of a falling measurement, by least squares between logarithms.

    A distance between student and teacher that follows such a law early and leaves it late is a sign of teacher hacking
    that needs no ground truth.

    Args:
      steps: n [N] > 0, numbers of training steps.
      values: [N] > 0.
      fit_count: how many points, from the first, are fitted; >= 2. None: all.

    Returns:
      {"scale": c, "exponent": b, "residuals": log values minus the fitted ones, for all N points}.

    Raises:
      ValueError: not one axis, lengths differ, concrete entries <= 0, fewer than 2 fitted points or all at one step.

    References:
      Tiapkin et al., On Teacher Hacking in Language Model Distillation, arXiv:2502.02671.
    """
    for name, value in (("steps", steps), ("values", values)):
        _checks.rank(name, value, 1)
        _checks.positive(name, value)
    _checks.same_shape("steps", steps, "values", values)
    total = np.shape(steps)[0]
    used = total if fit_count is None else fit_count
    _checks.count("fit_count", used, 2)
    if used > total:
        raise ValueError(f"fit_count must be at most the number of points, {total}, got {fit_count!r}")
    if _checks.is_concrete(steps) and np.ptp(np.asarray(steps, np.float64)[:used]) == 0:
        raise ValueError("steps must differ within the fitted points")
    x, y = jnp.log(as_float(steps)), jnp.log(as_float(values))
    mean_x, mean_y = jnp.mean(x[:used]), jnp.mean(y[:used])
    centred = x[:used] - mean_x
    exponent = jnp.sum(centred * (y[:used] - mean_y)) / jnp.sum(centred**2)
    residuals = (y - mean_y) - exponent * (x - mean_x)
    return {"scale": jnp.exp(mean_y - exponent * mean_x), "exponent": exponent, "residuals": residuals}


def proxy_gap(proxy: ArrayLike, golden: ArrayLike) -> dict[str, Array]:
    """Whether a student came closer to its teacher while moving away from the truth.

    Args:
      proxy: [N] distances to the teacher over training.
      golden: [N] distances to the ground truth at the same points.

    Returns:
      {"onset": int, the first point of the smallest golden distance; "golden_rise": from there to the end; "proxy_drop": of
      the other distance over the same stretch; "hacked": bool, both > 0}.

    Raises:
      ValueError: not one axis, lengths differ, or empty.

    References:
      Tiapkin et al., arXiv:2502.02671.
    """
    _checks.rank("proxy", proxy, 1)
    _checks.same_shape("proxy", proxy, "golden", golden)
    if np.size(proxy) == 0:
        raise ValueError("proxy must hold at least one point")
    near, true = as_float(proxy), as_float(golden)
    onset = jnp.argmin(true).astype(jnp.int32)
    rise, drop = true[-1] - true[onset], near[onset] - near[-1]
    return {"onset": onset, "golden_rise": rise, "proxy_drop": drop, "hacked": (rise > 0) & (drop > 0)}


def effective_rank(embeddings: ArrayLike, *, axis_name: str | None = None) -> Array:
    r"""Over how many directions embeddings spread, :math:`\exp(-\sum_i p_i \log p_i)` with
    :math:`p_i = \sigma_i^2 / \sum_j \sigma_j^2` of the singular values of normalised rows.

    Args:
      embeddings: [N, D], N >= 1; rows are normalised here, zeros stay. Not centred.
      axis_name: inside `shard_map` or `pmap`, an axis over which rows are split.

    Returns:
      Scalar from 1 (one direction: collapse) to min(N, D); 0 where all rows are zeros.

    Raises:
      ValueError: not two axes, or empty.

    References:
      Roy and Vetterli, The Effective Rank (2007); in this form Moon et al., arXiv:2207.03552.
    """
    _checks.rank("embeddings", embeddings, 2)
    if np.size(embeddings) == 0:
        raise ValueError(f"embeddings must hold at least one row and feature, got shape {np.shape(embeddings)}")
    z = unit_vectors(gather_batch(as_float(embeddings), axis_name))
    squares = jnp.linalg.svd(z, compute_uv=False) ** 2
    total = jnp.sum(squares)
    share = squares / jnp.where(total == 0, 1.0, total)
    entropy = -jnp.sum(share * jnp.log(jnp.where(share == 0, 1.0, share)))
    return jnp.where(total == 0, 0.0, jnp.exp(entropy))


def per_region_overlap_area(
    maps: ArrayLike,
    masks: ArrayLike,
    *,
    limits: Sequence[float] = (0.3, 0.1, 0.05, 0.01),
    num_thresholds: int = 99,
    size_range: tuple[float, float] | None = None,
) -> np.ndarray:
    """Area under the curve of per-region overlap against false positive rate (AUPRO), for maps of anomalies.

    Thresholds are scores of normal pixels at equally spaced places of their order, which gives the rate; the overlap is the
    share of pixels strictly above the threshold, a mean over defects (8-connected components), so that small ones count
    as much as large ones. On the host, in NumPy and SciPy: it is not traced.

    Args:
      maps: [B, H, W] scores, higher where more anomalous.
      masks: [B, H, W] of 0 and 1, 1 on defects. Images without any are fine.
      limits: rates in (0, 1] up to which the area is taken, then divided by them. Default the paper's.
      num_thresholds: >= 2. Default 99, as in the authors' code.
      size_range: (low, high) in pixels, both included: of the defects, only those count. Normal pixels are always all. None:
        all defects.

    Returns:
      float64 [len(limits)] in [0, 1]. A score that ties with a threshold is not above it: constant maps get about 0.

    Raises:
      ValueError: not three axes, shapes that differ, masks other than 0 and 1, NaN among the scores, limits or thresholds
        out of range, no defect of the range of sizes, or no normal pixel.

    References:
      Costanzino et al., Learning to Be a Transformer to Pinpoint Anomalies, arXiv:2407.04092; Bergmann et al., The MVTec
      Anomaly Detection Dataset (2021).
    """
    _checks.rank("maps", maps, 3)
    _checks.same_shape("maps", maps, "masks", masks)
    scores, defects = np.asarray(maps, np.float64), np.asarray(masks)
    if not np.all((defects == 0) | (defects == 1)):
        raise ValueError("masks must hold 0 and 1 alone")
    _checks.not_nan("maps", scores)
    for limit in limits:
        if not 0 < limit <= 1:
            raise ValueError(f"limits must be in (0, 1], got {limit!r}")
    _checks.count("num_thresholds", num_thresholds, 2)
    regions = _region_scores(scores, defects, size_range)
    normal = np.sort(scores[defects == 0])
    if normal.size == 0:
        raise ValueError("masks must leave at least one normal pixel")
    places = np.linspace(0, normal.size - 1, num_thresholds).astype(int)[::-1]
    rates = np.append(1 - (places + 1) / normal.size, 1.0)
    above = [1 - np.searchsorted(region, normal[places], side="right") / region.size for region in regions]
    overlaps = np.append(np.mean(above, axis=0), 1.0)

    def area(limit: float) -> float:
        within = rates < limit
        x = np.append(rates[within], limit)
        y = np.append(overlaps[within], np.interp(limit, rates, overlaps))
        return float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2) / limit)

    return np.array([area(limit) for limit in limits])


def _region_scores(scores: np.ndarray, defects: np.ndarray, size_range: tuple[float, float] | None) -> list[np.ndarray]:
    """The sorted scores of each 8-connected component whose size is in the range."""
    from scipy import ndimage  # here, so that `import mlfuncs` costs no more than `import jax`

    low, high = (0, np.inf) if size_range is None else size_range
    regions = []
    for image, mask in zip(scores, defects, strict=True):
        labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
        found = [np.sort(image[labels == label]) for label in range(1, count + 1)]
        regions += [region for region in found if low <= region.size <= high]
    if not regions:
        raise ValueError(f"masks must hold a defect of {low} to {high} pixels, got none")
    return regions


def smallest_sufficient_prefix(accuracies: ArrayLike, costs: ArrayLike, *, target: ArrayLike) -> tuple[Array, Array]:
    """The fewest members of an ordered ensemble that reach a target together, and what they cost.

    Args:
      accuracies: [K], K >= 1, of the first 1, 2, ..., K members together. They need not rise.
      costs: [K] >= 0, of each member alone, such as FLOPs.
      target: a scalar (may be traced).

    Returns:
      (k, cost): int32, 0 if no prefix reaches the target, and the sum of the costs of the first k.

    Raises:
      ValueError: not one axis, lengths that differ, empty, or concrete negative costs.

    References:
      Medina et al., Mamba base PKD for efficient knowledge compression, arXiv:2503.01727.
    """
    _checks.rank("accuracies", accuracies, 1)
    _checks.same_shape("accuracies", accuracies, "costs", costs)
    _checks.rank("target", target, 0)
    _checks.non_negative("costs", costs)
    if np.size(accuracies) == 0:
        raise ValueError("accuracies must hold at least one prefix, got none")
    enough = as_float(accuracies) >= target
    count = jnp.where(jnp.any(enough), jnp.argmax(enough) + 1, 0).astype(jnp.int32)
    used = jnp.arange(enough.shape[0]) < count
    return count, jnp.sum(jnp.where(used, as_float(costs), 0.0))
