"""Constraint-based search: the graph that independence tests leave, and the directions that it implies."""

from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
from jax.typing import ArrayLike

from mlfuncs import _checks

PValue = Callable[[np.ndarray, np.ndarray, np.ndarray], Any]  # (i [m], j [m], conditioning bool [m, d]) -> [m]


def pc_skeleton(
    p_value: PValue, num_variables: int, *, alpha: float = 0.05, max_conditioning: int | None = None
) -> tuple[np.ndarray, dict[tuple[int, int], tuple[int, ...]]]:
    """The undirected graph of the stable PC algorithm: edges that no conditioning set separates. On the host.

    All tests of a depth use the graph at its start, so that the order of variables does not matter.

    Args:
      p_value: `p_value(i [m], j [m], conditioning bool [m, d]) -> [m]`, called once a depth.
      num_variables: d >= 2.
      alpha: edges with a p-value above it go; in (0, 1). Default 0.05.
      max_conditioning: largest conditioning set; None: no limit.

    Returns:
      bool [d, d] symmetric adjacency, and for each removed pair (i, j), i < j, the set that separated it.

    Raises:
      ValueError: `num_variables` below 2, `alpha` outside (0, 1), or a negative `max_conditioning`.

    References:
      Spirtes, Glymour and Scheines (2000); Colombo and Maathuis, arXiv:1211.3295.
    """
    _checks.count("num_variables", num_variables, 2)
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be in (0, 1), got {alpha!r}")
    if max_conditioning is not None:
        _checks.count("max_conditioning", max_conditioning, 0)
    d = num_variables
    adjacency = ~np.eye(d, dtype=bool)
    separating: dict[tuple[int, int], tuple[int, ...]] = {}
    for depth in range(d - 1 if max_conditioning is None else min(max_conditioning, d - 2) + 1):
        neighbours = [np.flatnonzero(row) for row in adjacency]
        tests = [
            (i, j, chosen)
            for i in range(d)
            for j in neighbours[i]
            for chosen in combinations([k for k in neighbours[i] if k != j], depth)
            if depth or i < j  # with nothing given both orders are one test
        ]
        if not tests:
            break
        conditioning = np.zeros((len(tests), d), bool)
        for row, (_, _, chosen) in enumerate(tests):
            conditioning[row, list(chosen)] = True
        first, second = (np.array([test[k] for test in tests], np.int32) for k in range(2))
        p = np.asarray(p_value(first, second, conditioning))
        if p.shape != first.shape:
            raise ValueError(f"p_value must give one value a test, {first.shape}, got {p.shape}")
        for removed in np.flatnonzero(p > alpha):
            i, j, chosen = tests[removed]
            adjacency[i, j] = adjacency[j, i] = False
            separating.setdefault((min(i, int(j)), max(i, int(j))), tuple(int(k) for k in chosen))
    return adjacency, separating


def orient_skeleton(adjacency: ArrayLike, separating_sets: dict[tuple[int, int], tuple[int, ...]]) -> np.ndarray:
    """Directions that a skeleton and its separating sets imply: v-structures, then Meek's rules 1 to 3. On the host.

    Args:
      adjacency: bool [d, d], symmetric.
      separating_sets: of removed pairs (i, j), i < j.

    Returns:
      int [d, d]: directed[i, j] = 1 for i -> j, both ways for an edge without direction.

    Raises:
      ValueError: `adjacency` not square or not symmetric.

    References:
      Meek (1995); Spirtes, Glymour and Scheines (2000).
    """
    skeleton = np.asarray(adjacency, bool)
    if skeleton.ndim != 2 or skeleton.shape[0] != skeleton.shape[1] or (skeleton != skeleton.T).any():
        raise ValueError(f"adjacency must be square and symmetric, got shape {skeleton.shape}")
    d = skeleton.shape[0]
    graph = skeleton.astype(int)

    def direct(i: int, j: int) -> bool:
        """i -> j, where the edge has no direction yet."""
        if graph[i, j] and graph[j, i]:
            graph[j, i] = 0
            return True
        return False

    for k in range(d):
        for i, j in combinations(np.flatnonzero(skeleton[k]), 2):
            if not skeleton[i, j] and k not in separating_sets.get((int(i), int(j)), ()):
                direct(int(i), k)
                direct(int(j), k)
    moved = True
    while moved:
        moved = False
        arrow, line = (graph == 1) & (graph.T == 0), (graph == 1) & (graph.T == 1)
        for i, j in zip(*np.nonzero(line), strict=True):
            away = (arrow[:, i] & ~skeleton[:, j] & (np.arange(d) != j)).any()  # k -> i - j, k and j apart
            chain = (arrow[i] & arrow[:, j]).any()  # i -> k -> j
            between = np.flatnonzero(line[i] & arrow[:, j])  # i - k -> j, i - l -> j, k and l apart
            kite = any(not skeleton[k, m] for k, m in combinations(between, 2))
            if away or chain or kite:
                moved |= direct(int(i), int(j))
                break
    return graph


def equivalence_class(directed: ArrayLike) -> np.ndarray:
    """All directed acyclic graphs with the independences of a given one, as one graph. On the host.

    An edge keeps its direction where every graph of the class has it, and loses it elsewhere (the completed partially
    directed acyclic graph): what a search on data without interventions can find at best.

    Args:
      directed: [d, d], acyclic; not 0 at (i, j) for i -> j, as are the weights of linear structural equations.

    Returns:
      int [d, d] as from `orient_skeleton`: 1 at (i, j) for i -> j, both ways for an edge without direction.

    Raises:
      ValueError: `directed` not square, or with a cycle.

    References:
      Verma and Pearl (1990); Meek (1995).
    """
    graph = np.asarray(directed) != 0
    if graph.ndim != 2 or graph.shape[0] != graph.shape[1]:
        raise ValueError(f"directed must be square, got shape {graph.shape}")
    left = graph.copy()
    for _ in range(len(graph)):  # of arrows into variables without arrows out, until none is left or a cycle is
        left[:, ~left.any(1)] = False
    if left.any():
        raise ValueError(f"directed must be acyclic, got a cycle through some of {np.flatnonzero(left.any(1))}")
    skeleton = graph | graph.T
    # Two variables apart are separated by all that is no common child of theirs, as far as colliders are concerned.
    separating = {
        (i, j): tuple(np.flatnonzero(~(graph[i] & graph[j])).tolist())
        for i, j in combinations(range(len(graph)), 2)
        if not skeleton[i, j]
    }
    return orient_skeleton(skeleton, separating)
