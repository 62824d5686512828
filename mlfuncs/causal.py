"""Causal structure from data with dropouts: independence tests by deletion, and constraint-based search."""

from collections.abc import Callable
from itertools import combinations
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import erfc
from jax.typing import ArrayLike

from mlfuncs import _checks
from mlfuncs._arrays import as_float
from mlfuncs.dropout import apply_mask, bernoulli_mask

DELETE = ("all", "conditioning")
EXPLAINED = 1e-5  # what is left of a variance that others explain in full, in float32
SETS, TESTS = 16, 512  # handled at a time: so many copies of the data, and of its covariance, are held
LARGEST = 1 - 1e-6  # correlation: beyond it the transform of float32 is infinite
PValue = Callable[[np.ndarray, np.ndarray, np.ndarray], Any]  # (i [m], j [m], conditioning bool [m, d]) -> [m]


def zero_deleted_partial_correlation(
    data: ArrayLike, i: ArrayLike, j: ArrayLike, conditioning: ArrayLike, *, delete: str = "conditioning"
) -> dict[str, Array]:
    r"""Partial correlation of two variables given others, from the rows in which none of the others is zero.

    With dropouts that depend on a variable alone, :math:`X_i \perp X_j \mid X_S` in the rows with all
    :math:`X_S \neq 0` is :math:`Z_i \perp Z_j \mid Z_S` of the true values. Zeros of i and j stay, unless `delete` is
    "all": fewer rows, but unbiased also where dropout depends on the value and the test sees linear relations only.

    Args:
      data: [n, d], exact zeros where dropped; not centred.
      i: index of a variable (may be traced).
      j: index of another one.
      conditioning: bool [d], S.
      delete: "conditioning", the paper's, or "all": rows with a zero in i or j go too.

    Returns:
      {"correlation" in [-1, 1], "num_samples" int32}; correlation 0 where the rows are too few, a column is constant or
      the conditioning variables determine i or j.
      Deletion is by weights: `jax.vmap` over (i, j, conditioning) works.

    Raises:
      ValueError: `data` not [n, d], `conditioning` not [d], an unknown `delete`; and, where concrete, NaN in `data`,
        i = j, or i or j in the conditioning set or out of range.

    References:
      Dai et al., Gene Regulatory Network Inference in the Presence of Dropouts, arXiv:2403.15500.
    """
    _checks.rank("data", data, 2)
    d = np.shape(data)[1]
    if np.shape(conditioning) != (d,):
        raise ValueError(f"conditioning must have shape ({d},), got {np.shape(conditioning)}")
    _checks.one_of("delete", delete, DELETE)
    _check_variables(data, i, j, conditioning, d)
    x, given = as_float(data), jnp.asarray(conditioning, bool)
    return _partial_correlation(_moments(x, _looked_at(i, j, given, delete)), i, j, given)


def _looked_at(i: ArrayLike, j: ArrayLike, given: Array, delete: str) -> Array:
    """Bool [d]: the variables whose zeros delete a row."""
    return given.at[jnp.stack([jnp.asarray(i), jnp.asarray(j)])].set(True) if delete == "all" else given


class _Moments(NamedTuple):
    """Of the rows that are left: their number, sums of products about the mean [d, d] and sums of squares [d]."""

    rows: Array
    products: Array
    squares: Array


def _moments(x: Array, looked_at: Array) -> _Moments:
    weights = jnp.all(jnp.where(looked_at, x != 0, True), axis=1).astype(x.dtype)
    count = jnp.sum(weights)
    mean = weights @ x / jnp.maximum(count, 1)
    centred = (x - mean) * weights[:, None]
    products = jnp.matmul(centred.T, centred, precision=jax.lax.Precision.HIGHEST)
    return _Moments(count, products, weights @ x**2)


def _partial_correlation(moments: _Moments, i: ArrayLike, j: ArrayLike, given: Array) -> dict[str, Array]:
    variance = jnp.diagonal(moments.products)
    spread = variance > 1e-10 * moments.squares
    deviation = jnp.where(spread, jnp.sqrt(jnp.where(spread, variance, 1.0)), 1.0)
    correlation = moments.products / (deviation[:, None] * deviation[None, :])
    # What the conditioning variables leave of i and j. The same as minus the scaled entry of the inverse of all, but with
    # the right sign where i and j are copies of each other; constant variables explain nothing.
    among = jnp.where((given & spread)[:, None] & (given & spread)[None, :], correlation, 0.0)
    both = jnp.stack([jnp.asarray(i), jnp.asarray(j)])
    across = jnp.where((given & spread)[:, None], correlation[:, both], 0.0)
    with jax.default_matmul_precision("highest"):
        left = correlation[both][:, both] - across.T @ jnp.linalg.pinv(among, hermitian=True) @ across
    known = moments.rows > jnp.sum(given) + 3
    known &= spread[i] & spread[j] & (left[0, 0] > EXPLAINED) & (left[1, 1] > EXPLAINED)
    rho = left[0, 1] * jax.lax.rsqrt(jnp.where(known, left[0, 0] * left[1, 1], 1.0))
    return {
        "correlation": jnp.where(known, jnp.clip(rho, -1, 1), 0.0),
        "num_samples": moments.rows.astype(jnp.int32),
    }


def _check_variables(data: ArrayLike, i: ArrayLike, j: ArrayLike, conditioning: ArrayLike, d: int) -> None:
    if _checks.is_concrete(data) and np.isnan(np.asarray(data, np.float64)).any():
        raise ValueError("data must hold no NaN: what is missing is not a dropout")
    if np.ndim(i) or np.ndim(j):
        raise ValueError(f"i and j must be single indices, got shapes {np.shape(i)} and {np.shape(j)}; use jax.vmap")
    if _checks.is_concrete(i) and _checks.is_concrete(j):
        i, j = int(np.asarray(i)), int(np.asarray(j))
        if not (0 <= i < d and 0 <= j < d) or i == j:
            raise ValueError(f"i and j must be two different variables of {d}, got {i} and {j}")
        if _checks.is_concrete(conditioning) and np.asarray(conditioning, bool)[[i, j]].any():
            raise ValueError(f"conditioning must not contain i = {i} or j = {j}")


def _statistic(correlation: ArrayLike, num_samples: ArrayLike, num_conditioning: ArrayLike) -> Array:
    """sqrt(n - |S| - 3) |atanh(rho)|, 0 where there are too few samples."""
    rho = jnp.clip(jnp.abs(as_float(correlation)), 0, LARGEST)
    freedom = as_float(num_samples) - as_float(num_conditioning) - 3
    usable = freedom > 0
    return jnp.where(usable, jnp.sqrt(jnp.where(usable, freedom, 1.0)) * jnp.arctanh(rho), 0.0)


def fisher_z_p_value(correlation: ArrayLike, num_samples: ArrayLike, num_conditioning: ArrayLike) -> Array:
    r"""p-value of a partial correlation, :math:`\operatorname{erfc}(\sqrt{n - |S| - 3}\,|\tanh^{-1} \rho| / \sqrt 2)`.

    Args:
      correlation: rho in [-1, 1], any shape.
      num_samples: n, broadcasts.
      num_conditioning: |S|, broadcasts.

    Returns:
      p-values in [0, 1]; 1 where n <= |S| + 3: nothing can be tested.

    References:
      Fisher (1924); Dai et al., arXiv:2403.15500.
    """
    return erfc(_statistic(correlation, num_samples, num_conditioning) / np.sqrt(2))


def zero_deleted_independence_test(
    data: ArrayLike, i: ArrayLike, j: ArrayLike, conditioning: ArrayLike, *, delete: str = "conditioning"
) -> Array:
    """`fisher_z_p_value` of the `zero_deleted_partial_correlation`.

    Args:
      data: [n, d].
      i: index of a variable.
      j: index of another one.
      conditioning: bool [d].
      delete: "conditioning" or "all".

    Returns:
      scalar p-value.

    Raises:
      ValueError: as `zero_deleted_partial_correlation`.

    References:
      Dai et al., arXiv:2403.15500.
    """
    found = zero_deleted_partial_correlation(data, i, j, conditioning, delete=delete)
    return fisher_z_p_value(found["correlation"], found["num_samples"], jnp.sum(jnp.asarray(conditioning, bool)))


def zero_deleted_p_values(
    data: ArrayLike, i: ArrayLike, j: ArrayLike, conditioning: ArrayLike, *, delete: str = "conditioning"
) -> np.ndarray:
    """Many `zero_deleted_independence_test`s of the same data, for `pc_skeleton`. On the host.

    Tests that delete the same rows share their covariance: one pass over the data for each different set, not for each
    test. Compiled once for a shape of `data`, however many tests there are.

    Args:
      data: [n, d].
      i: [m] indices of variables.
      j: [m] of other ones.
      conditioning: bool [m, d].
      delete: "conditioning" or "all".

    Returns:
      [m] p-values.

    Raises:
      ValueError: as `zero_deleted_partial_correlation`, of any test.

    References:
      Dai et al., arXiv:2403.15500.
    """
    _checks.rank("data", data, 2)
    d = np.shape(data)[1]
    _checks.one_of("delete", delete, DELETE)
    first, second, given = np.asarray(i), np.asarray(j), np.asarray(conditioning, bool)
    if first.ndim != 1 or second.shape != first.shape or given.shape != (first.size, d):
        raise ValueError(
            f"i, j and conditioning must have shapes [m], [m] and [m, {d}], "
            f"got {first.shape}, {second.shape} and {given.shape}"
        )
    if not first.size:
        return np.zeros(0, np.float32)
    rows = np.arange(first.size)
    outside = (np.minimum(first, second) < 0) | (np.maximum(first, second) >= d) | (first == second)
    if outside.any():
        raise ValueError(f"i and j must be two different variables of {d}, got those of tests {rows[outside]}")
    if (given[rows, first] | given[rows, second]).any():
        raise ValueError("conditioning must not contain i or j")
    if np.isnan(np.asarray(data, np.float64)).any():
        raise ValueError("data must hold no NaN: what is missing is not a dropout")
    looked_at = given.copy()
    if delete == "all":
        looked_at[rows, first] = looked_at[rows, second] = True
    sets, of_set = np.unique(looked_at, axis=0, return_inverse=True)
    x = as_float(data)
    moments = _in_parts(lambda sets: _moments_of_sets(x, sets), SETS, sets)
    of_tests = jax.tree.map(lambda leaf: leaf[of_set.reshape(-1)], moments)
    return _in_parts(_p_values, TESTS, of_tests, first, second, given)


_moments_of_sets = jax.jit(jax.vmap(_moments, in_axes=(None, 0)))


@jax.jit
@jax.vmap
def _p_values(moments: _Moments, i: Array, j: Array, given: Array) -> Array:
    found = _partial_correlation(moments, i, j, given)
    return fisher_z_p_value(found["correlation"], found["num_samples"], jnp.sum(given))


def _in_parts(function: Callable[..., Any], size: int, *arguments: Any) -> Any:
    """`function` over leading axes, `size` entries a call; the last call is filled up, so that all have one shape."""
    length = len(jax.tree.leaves(arguments)[0])
    parts = []
    for start in range(0, length, size):
        chosen = np.minimum(np.arange(start, start + size), length - 1)
        parts.append(function(*jax.tree.map(lambda leaf, chosen=chosen: leaf[chosen], arguments)))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:length], *parts)


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


def rescale_partial_correlation(correlation: ArrayLike, num_samples: ArrayLike, full_num_samples: ArrayLike) -> Array:
    r"""The correlation that is as significant in all N samples as the given one in n.

    .. math:: \rho' = 1 - 2 / (1 + e^{2 t / \sqrt{N - 3}}), \quad t = \sqrt{n - 3}\,|\tanh^{-1} \rho|

    Args:
      correlation: rho, any shape.
      num_samples: n after deletion.
      full_num_samples: N.

    Returns:
      values in [0, 1); the magnitude itself where n = N; 0 where n <= 3.

    References:
      Dai et al., arXiv:2403.15500.
    """
    rho, n, full = as_float(correlation), as_float(num_samples), as_float(full_num_samples)
    rescaled = jnp.tanh(_statistic(rho, n, 0) / jnp.sqrt(jnp.maximum(full - 3, 1)))
    return jnp.where(n == full, jnp.abs(rho), rescaled)


def bic_score_change(correlation: ArrayLike, num_samples: ArrayLike, *, penalty: ArrayLike = 2.0) -> Array:
    r"""Gain of an edge in the Bayesian information criterion, :math:`-\frac{N}{2} \log(1 - \rho^2) - \frac{\log N}{c}`.

    Args:
      correlation: rho given the other parents, any shape.
      num_samples: N.
      penalty: c > 0; a larger one penalises less, as in the official code. Default 2.

    Returns:
      like `correlation`; positive where the edge pays.

    Raises:
      ValueError: `penalty` not > 0.

    References:
      Chickering, GES (2002); Dai et al., arXiv:2403.15500.
    """
    _checks.positive("penalty", penalty)
    rho, n = jnp.clip(jnp.abs(as_float(correlation)), 0, LARGEST), as_float(num_samples)
    return -0.5 * n * jnp.log1p(-(rho**2)) - jnp.log(n) / as_float(penalty)


def logistic_dropout_probability(expression: ArrayLike, slope: ArrayLike, offset: ArrayLike) -> Array:
    r"""Probability that a value is dropped, :math:`\sigma(-(a z + b))`: less likely the higher it is.

    Args:
      expression: [n, d], z.
      slope: a, broadcasts.
      offset: b, broadcasts.

    Returns:
      [n, d] in (0, 1).

    Raises:
      ValueError: `expression` not [n, d].

    References:
      Dai et al., arXiv:2403.15500.
    """
    _checks.rank("expression", expression, 2)
    return jax.nn.sigmoid(-(as_float(slope) * as_float(expression) + as_float(offset)))


def sample_dropout(key: Array, expression: ArrayLike, probability: ArrayLike) -> Array:
    """Sets values to exactly 0 at random; the others stay as they are.

    Args:
      key: a PRNG key.
      expression: [n, d].
      probability: of dropping, broadcasts to `expression`.

    Returns:
      [n, d].

    Raises:
      ValueError: `expression` not [n, d] or a concrete `probability` outside [0, 1].

    References:
      Dai et al., arXiv:2403.15500.
    """
    _checks.rank("expression", expression, 2)
    return apply_mask(expression, bernoulli_mask(key, np.shape(expression), rate=probability))
