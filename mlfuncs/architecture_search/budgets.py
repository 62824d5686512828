"""Choosing among many candidates: which to train at a step, and which to keep for a budget."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks


def sandwich(key: Array, num_candidates: int, *, num_random: int = 2) -> Array:
    """Which students of a weight-sharing network train at this step: the largest, the smallest and a few others.

    The gradients of all are summed, then clipped.

    Args:
      key: a PRNG key, of the step.
      num_candidates: how many there are, sorted by size, the smallest first.
      num_random: >= 0, others than those two. Default 2, as in the paper.

    Returns:
      int32 [2 + num_random]: the last, the first, and distinct ones in between.

    Raises:
      ValueError: fewer than 2 + num_random candidates, or counts that are no integers >= 0.

    References:
      Xu et al., AutoDistil: Few-shot Task-agnostic Neural Architecture Search for Distilling Large Language Models,
      arXiv:2201.12507; Yu and Huang, Universally Slimmable Networks, arXiv:1903.05134.
    """
    _checks.count("num_random", num_random, 0)
    _checks.count("num_candidates", num_candidates)
    if num_candidates < 2 + num_random:
        raise ValueError(
            f"num_candidates must be at least {2 + num_random} for {num_random} more, got {num_candidates}"
        )
    between = 1 + jax.random.permutation(key, num_candidates - 2)[:num_random]
    return jnp.concatenate([jnp.array([num_candidates - 1, 0]), between]).astype(jnp.int32)


def _check_candidates(costs: ArrayLike, losses: ArrayLike) -> tuple[Array, Array]:
    _checks.rank("costs", costs, 1)
    _checks.same_shape("costs", costs, "losses", losses)
    if np.size(costs) == 0:
        raise ValueError("costs must hold at least one candidate, got none")
    _checks.not_nan("costs", costs)
    _checks.not_nan("losses", losses)
    return _order(costs), _order(losses)


def _on_host(values: ArrayLike) -> np.ndarray:
    """Integers as they are, all else in float64: nothing is rounded."""
    host = np.asarray(values)
    return host if host.dtype.kind in "iu" else host.astype(np.float64)


def _order(values: ArrayLike) -> Array:
    """What sorts as `values` do. Parameters and FLOPs are beyond the whole numbers of float32, and of int32."""
    if not _checks.is_concrete(values):
        return jnp.asarray(values)
    return jnp.asarray(np.unique(_on_host(values), return_inverse=True)[1].reshape(-1), jnp.int32)


def _affordable(costs: ArrayLike, budget: ArrayLike) -> Array:
    """bool [M]: costs within the budget."""
    if _checks.is_concrete(costs) and _checks.is_concrete(budget):
        return jnp.asarray(_on_host(costs) <= _on_host(budget))

    def comparable(values: ArrayLike) -> Array:
        if not _checks.is_concrete(values):
            return jnp.asarray(values)
        host = _on_host(values)
        fits = host.dtype.kind in "iu" and bool(np.all((host < 2**31) & (host >= -(2**31))))
        return jnp.asarray(host if fits else host.astype(np.float64))

    return comparable(costs) <= comparable(budget)


def pareto_front(costs: ArrayLike, losses: ArrayLike) -> Array:
    """Candidates that no other beats: none is at most as high in both, and lower in one.

    Args:
      costs: [M], M >= 1, such as parameters or FLOPs. Integers and float64 of NumPy are compared exactly.
      losses: [M].

    Returns:
      bool [M]. Of equal candidates all are on the front or none. No array [M, M] is made.

    Raises:
      ValueError: not one axis, lengths that differ, no candidate, or concrete NaN.

    References:
      Xu et al., arXiv:2201.12507; for sampling schedules Pan et al., T-Stitch, arXiv:2402.14167.
    """
    cost, loss = _check_candidates(costs, losses)
    order = jnp.lexsort((loss, cost))
    sorted_cost, sorted_loss = cost[order], loss[order]
    # Of one cost only the lowest loss counts, and it must be below all losses of lower costs.
    start = jnp.searchsorted(sorted_cost, sorted_cost)
    lowest = jax.lax.cummin(sorted_loss)
    beats_cheaper = (start == 0) | (sorted_loss < lowest[jnp.maximum(start - 1, 0)])
    on_front = beats_cheaper & (sorted_loss == sorted_loss[start])
    return jnp.zeros(on_front.shape, bool).at[order].set(on_front)


def best_under_budget(costs: ArrayLike, losses: ArrayLike, *, budget: ArrayLike) -> Array:
    """The candidate of the lowest loss among those that cost no more than a budget.

    Args:
      costs: [M], M >= 1. Integers and float64 of NumPy are compared exactly, as in `pareto_front`.
      losses: [M].
      budget: a scalar (may be traced).

    Returns:
      int32 index; of equal losses the lower cost, then the lower index. Where values are traced and none is within the
      budget, -1.

    Raises:
      ValueError: not one axis, lengths that differ, no candidate, NaN, or, where concrete, none within the budget.

    References:
      Xu et al., arXiv:2201.12507.
    """
    cost, loss = _check_candidates(costs, losses)
    _checks.rank("budget", budget, 0)
    affordable = _affordable(costs, budget)
    if _checks.is_concrete(affordable) and not bool(jnp.any(affordable)):
        raise ValueError(
            f"budget must pay for some candidate, the cheapest costs {np.min(_on_host(costs)):g}, got {budget!r}"
        )
    order = jnp.lexsort((cost, loss, ~affordable))  # stable: the last key counts first
    return jnp.where(jnp.any(affordable), order[0], -1).astype(jnp.int32)
