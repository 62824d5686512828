"""Independence tests on data with dropouts: cells are deleted test by test."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import erfc
from jax.typing import ArrayLike

from mlfuncs import _checks
from mlfuncs._arrays import as_float

DELETE = ("all", "conditioning")
EXPLAINED = 1e-5  # what is left of a variance that others explain in full, in float32
SETS, TESTS = 16, 512  # handled at a time: so many copies of the data, and of its covariance, are held
LARGEST = 1 - 1e-6  # correlation: beyond it the transform of float32 is infinite
Value = Callable[[dict[str, Array], Array, int], Array]  # of a partial correlation, |S| and the rows of the data


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


def statistic(correlation: ArrayLike, num_samples: ArrayLike, num_conditioning: ArrayLike) -> Array:
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
    return erfc(statistic(correlation, num_samples, num_conditioning) / np.sqrt(2))


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
    return of_many(_p_value, data, i, j, conditioning, delete)


def _p_value(found: dict[str, Array], num_conditioning: Array, _: int) -> Array:
    return fisher_z_p_value(found["correlation"], found["num_samples"], num_conditioning)


def of_many(value: Value, data: ArrayLike, i: ArrayLike, j: ArrayLike, conditioning: ArrayLike, delete: str) -> Any:
    """`value(found, |S|, n)` of the `zero_deleted_partial_correlation` of many tests of the same data, all checked."""
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
    values = partial(_values, value, len(x))
    return _in_parts(values, TESTS, of_tests, first, second, given)


_moments_of_sets = jax.jit(jax.vmap(_moments, in_axes=(None, 0)))


@partial(jax.jit, static_argnums=(0, 1))
def _values(value: Value, rows: int, moments: _Moments, i: Array, j: Array, given: Array) -> Array:
    def one(moments: _Moments, i: Array, j: Array, given: Array) -> Array:
        return value(_partial_correlation(moments, i, j, given), jnp.sum(given), rows)

    return jax.vmap(one)(moments, i, j, given)


def _in_parts(function: Callable[..., Any], size: int, *arguments: Any) -> Any:
    """`function` over leading axes, `size` entries a call; the last call is filled up, so that all have one shape."""
    length = len(jax.tree.leaves(arguments)[0])
    parts = []
    for start in range(0, length, size):
        chosen = np.minimum(np.arange(start, start + size), length - 1)
        parts.append(function(*jax.tree.map(lambda leaf, chosen=chosen: leaf[chosen], arguments)))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:length], *parts)
