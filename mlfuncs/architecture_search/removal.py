"""Which layers to take out of a network: what each removal changes, and the cheapest set that is large enough."""

import bisect
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks
from mlfuncs._arrays import as_float, per_example_axes, safe_sqrt, sum_over

MOST_TIES = 2**12  # states of a search beyond which ties are no longer followed
State = tuple[
    int, int, int
]  # cost, size and mask (the first layer is the highest bit) of a set: in this order the better


def output_change(full_output: ArrayLike, pruned_outputs: ArrayLike, *, axis_name: str | None = None) -> Array:
    r"""How much removing each layer alone changes a network's output, in mean square.

    The paper's criterion for pruning a diffusion model: changes of single removals add up well (`additivity`), so that one
    pass chooses a whole set (`knapsack_removal`). Give all removals the same inputs, times and conditions, with dropout
    off. Where [m, B, ...] outputs don't fit, call this inside `jax.lax.map` over single removals, with m = 1.

    Args:
      full_output: [B, ...] of the whole network, B >= 1.
      pruned_outputs: [m, B, ...], of the network without layer i.
      axis_name: inside `shard_map` or `pmap`, the axis over which the batch is split: the mean is over all of it.

    Returns:
      [m] means over examples and elements, in at least float32.

    Raises:
      ValueError: shapes that do not fit, or no example.

    References:
      Zhang et al., LAPTOP-Diff, arXiv:2404.11098.
    """
    _checks.batched("full_output", full_output)
    if np.ndim(pruned_outputs) < 1 or np.shape(pruned_outputs)[1:] != np.shape(full_output):
        raise ValueError(
            f"pruned_outputs must have shape [m, *{np.shape(full_output)}] as full_output, got {np.shape(pruned_outputs)}"
        )
    if np.size(full_output) == 0:
        raise ValueError(f"full_output must hold at least one value, got shape {np.shape(full_output)}")
    difference = as_float(pruned_outputs) - as_float(full_output)
    means = jnp.mean(difference**2, axis=per_example_axes(difference))
    return sum_over(means, axis_name) / sum_over(1, axis_name)


def additivity(individual: ArrayLike, joint: ArrayLike, masks: ArrayLike) -> Array:
    r"""Pearson correlation of summed single changes with the measured change of sets of layers.

    Near 1, a sum of `output_change` says which sets to remove.

    Args:
      individual: [m], the change that removing layer i alone makes.
      joint: [n], n >= 2, the change that removing set j makes.
      masks: bool [n, m], True for the layers of set j.

    Returns:
      scalar in [-1, 1]; 0, with gradient 0, where either side is constant.

    Raises:
      ValueError: shapes that do not fit, masks not bool, or fewer than two sets.

    References:
      Zhang et al., arXiv:2404.11098.
    """
    _checks.rank("individual", individual, 1)
    _checks.rank("joint", joint, 1)
    expected = (np.shape(joint)[0], np.shape(individual)[0])
    chosen = jnp.asarray(masks)
    if chosen.shape != expected:
        raise ValueError(f"masks must have shape {expected}, one row a set and one column a layer, got {chosen.shape}")
    if chosen.dtype != jnp.bool_:
        raise ValueError(f"masks must be bool, True for the layers of a set, got {chosen.dtype}")
    if expected[0] < 2:
        raise ValueError(f"joint must hold at least 2 sets, got {expected[0]}")

    def unit(values: Array) -> Array:
        scale = jax.lax.stop_gradient(jnp.max(jnp.abs(values)))  # squares of small changes would underflow
        scaled = values / jnp.where(scale > 0, scale, 1.0)
        constant = jax.lax.stop_gradient(jnp.max(scaled) == jnp.min(scaled))
        centred = jnp.where(constant, 0.0, scaled - jnp.mean(scaled))
        norm = safe_sqrt(jnp.sum(centred**2))
        return centred / jnp.where(norm <= 0, 1.0, norm)

    summed = jnp.sum(jnp.where(chosen, as_float(individual), 0.0), axis=1)
    return jnp.sum(unit(summed) * unit(as_float(joint)))


def knapsack_removal(costs: ArrayLike, sizes: ArrayLike, *, target_size: float) -> np.ndarray:
    r"""The cheapest set of layers whose removal saves enough.

    .. math:: \min_{r \in \{0, 1\}^m} \sum_i r_i c_i \quad \text{with} \quad \sum_i r_i p_i \ge P

    Exact: a search over sets that no cheaper set matches in size, with bounds from the fractional problem, in integers, so
    that no sum is rounded. On the host, in NumPy: it is not traced. Milliseconds for a hundred layers, minutes at worst
    where costs are proportional to sizes.

    Args:
      costs: [m] >= 0, such as `output_change`.
      sizes: [m] >= 0, such as numbers of parameters.
      target_size: P, at most the sum of sizes; 0 or less removes nothing. A size that misses it by no more than rounding
        (1e-12 of the total) reaches it.

    Returns:
      bool [m], True for the layers to remove. Of equal costs the smaller size, then the mask that is first in lexicographic
      order (False before True), so that free layers stay unless they are needed; where thousands of sets tie, one of them.

    Raises:
      ValueError: no layers, lengths that differ, negative or infinite entries or NaN, or a target that all sizes together
        do not reach.

    References:
      Zhang et al., arXiv:2404.11098.
    """
    _checks.rank("costs", costs, 1)
    _checks.same_shape("costs", costs, "sizes", sizes)
    cost, size = np.asarray(costs, np.float64), np.asarray(sizes, np.float64)
    for name, values in (("costs", cost), ("sizes", size)):
        if values.size == 0 or not np.all(np.isfinite(values) & (values >= 0)):
            raise ValueError(f"{name} must hold at least one number, all finite and >= 0, got {values.tolist()}")
    total, goal = float(size.sum()), float(target_size)
    if not np.isfinite(goal) or goal > total * (1 + 1e-12):
        raise ValueError(f"target_size must be at most the sum of sizes, {total:g}, got {target_size!r}")
    whole_sizes = _in_one_unit([*size.tolist(), goal - 1e-12 * total])
    chosen = _cheapest(_in_one_unit(cost.tolist()), whole_sizes[:-1], whole_sizes[-1])
    return np.array([bool(chosen >> place & 1) for place in reversed(range(size.size))])


def _in_one_unit(values: Sequence[float]) -> list[int]:
    """Floats as whole multiples of one power of two."""
    ratios = [value.as_integer_ratio() for value in values]
    unit = max(denominator for _, denominator in ratios)
    return [numerator * (unit // denominator) for numerator, denominator in ratios]


def _cheapest(costs: list[int], sizes: list[int], goal: int) -> int:
    """The mask of the best set of size `goal` or more, one bit a layer."""
    if goal <= 0:
        return 0
    # Cheap ones first: what remains at any time is then in the order of the fractional problem.
    order = sorted((i for i, size in enumerate(sizes) if size > 0), key=lambda i: costs[i] / sizes[i])
    bits = [1 << (len(sizes) - 1 - i) for i in order]
    every = [(costs[i], sizes[i], bit) for i, bit in zip(order, bits, strict=True)]
    sums = [(0, 0, 0), *itertools.accumulate(every, _joined)]  # of the first layers in this order
    reached = [size for _, size, _ in sums]

    def completions(state: State, start: int) -> tuple[int, State]:
        """What any completion by layers from `start` on costs at least, and one that is good."""
        end = bisect.bisect_left(reached, reached[start] + goal - state[1])
        without, within = (_joined(state, sums[stop], sums[start]) for stop in (end - 1, end))
        cost, size, _ = every[end - 1]
        return without[0] - (-cost * (goal - without[1]) // size), within

    front: list[State] = [(0, 0, 0)]
    best = completions(front[0], 0)[1]
    for start, layer in enumerate(every, 1):
        states = front + [_joined(state, layer) for state in front]
        best = min([best, *(state for state in states if state[1] >= goal)])
        rest = reached[-1] - reached[start]
        open_states = [state for state in states if goal - rest <= state[1] < goal]
        bounds = [completions(state, start) for state in open_states]
        best = min([best, *(good for _, good in bounds)])
        limit = best[0] - (len(open_states) > MOST_TIES)  # of that many, those that can only tie are let go
        front = _undominated([s for s, (least, _) in zip(open_states, bounds, strict=True) if least <= limit])
    return best[2]


def _joined(first: State, second: State, less: State = (0, 0, 0)) -> State:
    return first[0] + second[0] - less[0], first[1] + second[1] - less[1], first[2] + second[2] - less[2]


def _undominated(states: list[State]) -> list[State]:
    """States without those that a cheaper one of at least their size makes useless."""
    thin = len(states) > MOST_TIES
    kept: list[State] = []
    largest = -1
    for _, group in itertools.groupby(sorted(states), key=lambda state: state[0]):
        alike = list(group)
        # Of one cost and size the smallest mask; smaller sizes of one cost may win by what they leave.
        sized = {size: (cost, size, mask) for cost, size, mask in reversed(alike) if size > largest}
        if sized:
            largest = max(sized)
            kept += [sized[largest]] if thin else sized.values()
    return kept
