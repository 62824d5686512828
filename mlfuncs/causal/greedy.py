"""Score-based search: greedy steps from one equivalence class of graphs to the next."""

from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from mlfuncs import _checks
from mlfuncs.causal.skeleton import equivalence_class

# (i [m], j [m], other parents of j bool [m, d]) -> [m], what the score gains by i -> j
ScoreChange = Callable[[np.ndarray, np.ndarray, np.ndarray], Any]


class _Step(NamedTuple):
    """The edge i -> j comes or goes, and its score depends on the other parents of j; `turned` become directed with it."""

    i: int
    j: int
    parents: frozenset[int]
    turned: frozenset[int]


def greedy_equivalence_search(
    score_change: ScoreChange, num_variables: int, *, max_parents: int | None = None
) -> np.ndarray:
    """The equivalence class of graphs in which no valid step raises the score: GES. On the host.

    Edges are inserted while the best insertion gains, then deleted while the best deletion does. The score of a graph is
    a sum over variables and their parents, and `score_change` is all that the search sees of it. With a consistent
    score, in the limit of many samples from a graph's own distribution, the result is that graph's class; on finite
    samples it is a local optimum.

    Args:
      score_change: `score_change(i [m], j [m], parents bool [m, d]) -> [m]`, what i -> j gains beside the other parents
        of j; called once a step, never twice for the same. Such as `zero_deleted_score_changes`.
      num_variables: d >= 2.
      max_parents: insertions that give a variable more are left out; None: no limit. The sets that are tried grow
        exponentially with the undirected neighbours of a variable.

    Returns:
      int [d, d] as from `orient_skeleton`: 1 at (i, j) for i -> j, both ways for an edge without direction.

    Raises:
      ValueError: `num_variables` below 2, a `max_parents` below 1, or not one value an edge from `score_change`.

    References:
      Chickering, Optimal Structure Identification With Greedy Search (2002).
    """
    _checks.count("num_variables", num_variables, 2)
    if max_parents is not None:
        _checks.count("max_parents", max_parents, 1)
    most = num_variables if max_parents is None else max_parents
    gains = _Gains(score_change, num_variables)
    graph = np.zeros((num_variables, num_variables), int)
    while (best := gains.best([s for s in _insertions(graph) if len(s.parents) < most], sign=1)) is not None:
        graph = _inserted(graph, best)
    while (best := gains.best(list(_deletions(graph)), sign=-1)) is not None:
        graph = _deleted(graph, best)
    return graph


class _Gains:
    """Score changes, each asked for once."""

    def __init__(self, score_change: ScoreChange, d: int):
        self._score_change, self._d = score_change, d
        self._known: dict[tuple[int, int, frozenset[int]], float] = {}

    def best(self, steps: list[_Step], *, sign: int) -> _Step | None:
        """The step that gains most, the first of equals; None where none gains."""
        self._ask([key for key in dict.fromkeys(step[:3] for step in steps) if key not in self._known])
        found = [sign * self._known[step[:3]] for step in steps]
        if not found or not max(found) > 0:
            return None
        return steps[int(np.argmax(found))]

    def _ask(self, keys: list[tuple[int, int, frozenset[int]]]) -> None:
        if not keys:
            return
        parents = np.zeros((len(keys), self._d), bool)
        for row, (_, _, given) in enumerate(keys):
            parents[row, list(given)] = True
        i, j = (np.array([key[k] for key in keys], np.int32) for k in range(2))
        found = np.asarray(self._score_change(i, j, parents))
        if found.shape != i.shape:
            raise ValueError(f"score_change must give one value an edge, {i.shape}, got {found.shape}")
        if np.isnan(found).any():
            raise ValueError(
                f"score_change must give numbers, got NaN for {int(np.isnan(found).sum())} of {i.size} edges"
            )
        self._known.update(zip(keys, map(float, found), strict=True))


def _insertions(graph: np.ndarray) -> Iterator[_Step]:
    """All valid insertions: the neighbours that i and j have in common and those turned form a clique, which blocks
    every path from j to i that goes against no arrow."""
    adjacent = (graph + graph.T) > 0
    for i, j in zip(*np.nonzero(~adjacent & ~np.eye(len(graph), dtype=bool)), strict=True):
        neighbours, parents = _around(graph, j)
        common = frozenset(k for k in neighbours if adjacent[i, k])
        blocked: list[frozenset[int]] = []  # minimal sets that pass: larger ones do too
        for turned in _subsets(neighbours - common):
            given = common | turned
            if not _clique(adjacent, given):
                continue
            if not any(turned >= smaller for smaller in blocked):
                if _reaches(graph, int(j), int(i), given):
                    continue
                blocked.append(turned)
            yield _Step(int(i), int(j), given | parents, turned)


def _deletions(graph: np.ndarray) -> Iterator[_Step]:
    """All valid deletions: the common neighbours of i and j that are not turned form a clique."""
    adjacent = (graph + graph.T) > 0
    for i, j in zip(*np.nonzero(graph), strict=True):
        neighbours, parents = _around(graph, j)
        common = frozenset(k for k in neighbours if adjacent[i, k])
        for turned in _subsets(common):
            if _clique(adjacent, common - turned):
                yield _Step(int(i), int(j), (common - turned) | (parents - {int(i)}), turned)


def _around(graph: np.ndarray, j: int) -> tuple[frozenset[int], frozenset[int]]:
    """Undirected neighbours of j, and its parents."""
    into, out = graph[:, j] > 0, graph[j] > 0
    return frozenset(np.flatnonzero(into & out).tolist()), frozenset(np.flatnonzero(into & ~out).tolist())


def _subsets(items: frozenset[int]) -> Iterator[frozenset[int]]:
    """Small ones first."""
    for size in range(len(items) + 1):
        yield from map(frozenset, combinations(sorted(items), size))


def _clique(adjacent: np.ndarray, items: frozenset[int]) -> bool:
    return all(adjacent[a, b] for a, b in combinations(items, 2))


def _reaches(graph: np.ndarray, start: int, end: int, blocked: frozenset[int]) -> bool:
    """Whether a path of lines and forward arrows leads from start to end past the blocked variables."""
    seen, waiting = {start, *blocked}, [start]
    while waiting:
        for k in np.flatnonzero(graph[waiting.pop()]).tolist():
            if k == end:
                return True
            if k not in seen:
                seen.add(k)
                waiting.append(k)
    return False


def _inserted(graph: np.ndarray, step: _Step) -> np.ndarray:
    graph = graph.copy()
    graph[step.i, step.j] = 1
    graph[step.j, list(step.turned)] = 0  # turned -> j
    return equivalence_class(_extension(graph))


def _deleted(graph: np.ndarray, step: _Step) -> np.ndarray:
    graph = graph.copy()
    graph[step.i, step.j] = graph[step.j, step.i] = 0
    for k in step.turned:  # j -> k, and i -> k where that was a line
        graph[k, step.j] = 0
        if graph[step.i, k]:
            graph[k, step.i] = 0
    return equivalence_class(_extension(graph))


def _extension(graph: np.ndarray) -> np.ndarray:
    """A directed acyclic graph with the arrows, the adjacencies and the v-structures of a partially directed one.

    After Dor and Tarsi (1992): a variable without arrows out, whose undirected neighbours are adjacent to all others
    around it, can be the last; then the next before it.
    """
    directed, left = graph.copy(), graph.copy()
    remaining = set(range(len(graph)))
    while remaining:
        for k in sorted(remaining):
            into, out = left[:, k] > 0, left[k] > 0
            around = np.flatnonzero(into | out)
            adjacent = (left + left.T) > 0
            lines = np.flatnonzero(into & out)
            if (out & ~into).any() or not all(adjacent[a, b] for a in lines for b in around if a != b):
                continue
            directed[k, lines] = 0
            left[k], left[:, k] = 0, 0
            remaining.remove(k)
            break
        else:
            raise AssertionError("a valid step has a directed extension")
    return directed
