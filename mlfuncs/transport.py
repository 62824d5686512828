"""Optimal transport between batches: entropic plans and couplings of data with noise."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks
from mlfuncs._arrays import as_float, gather_batch, gather_over, own_rows, varying_axes


def sinkhorn_plan(
    cost: ArrayLike,
    *,
    regularization: ArrayLike = 0.1,
    iterations: int = 20,
    source: ArrayLike | None = None,
    target: ArrayLike | None = None,
    axis_name: str | None = None,
) -> Array:
    r"""Entropic transport plan of a cost matrix, by Sinkhorn iterations in the log domain.

    .. math:: P = \operatorname{diag}(u)\, e^{-C / \lambda} \operatorname{diag}(v), \quad
              u \leftarrow a / (K v), \; v \leftarrow b / (K^\top u)

    Each iteration scales rows first and columns last, so that column sums are exact and row sums nearly so. Potentials are
    kept in logarithms: small regularisation does not underflow. Gradients pass through the iterations.

    Args:
      cost: [n, m] costs C.
      regularization: lambda > 0, in units of the cost. Default of Sinkhorn distillation (may be traced).
      iterations: >= 1.
      source: [n] row masses a >= 0, or None for 1/n each.
      target: [m] column masses b >= 0, or None for 1/m each.
      axis_name: inside `shard_map` or `pmap`, the axis over which the rows are split: `cost` and `source` hold this
        device's rows, `target` all columns; the result is this device's rows of the global plan.

    Returns:
      [n, m] plan, in at least float32. A row or column of mass 0 gets 0.

    Raises:
      ValueError: cost not [n, m] or empty, masses of another length or negative, or a parameter out of range.

    References:
      Cuturi, Sinkhorn Distances, arXiv:1306.0895; Cui et al., arXiv:2402.17110.
    """
    _checks.rank("cost", cost, 2)
    cost = as_float(cost)
    rows, columns = cost.shape
    if rows == 0 or columns == 0:
        raise ValueError(f"cost must hold at least one row and one column, got shape {cost.shape}")
    _checks.positive("regularization", regularization)
    _checks.count("iterations", iterations)
    devices = 1 if axis_name is None else jax.lax.axis_size(axis_name)
    log_source = _log_masses("source", source, rows, rows * devices)
    log_target = _log_masses("target", target, columns, columns)
    kernel = -cost / regularization

    def over_columns(u: Array) -> Array:
        """log sum over all rows, also those of other devices."""
        scores = kernel + u[:, None]
        if axis_name is None:
            return _log_sum_exp(scores, axis=0)
        top = jax.lax.pmax(jax.lax.stop_gradient(jnp.max(scores, axis=0)), axis_name)
        top = jnp.where(jnp.isneginf(top), 0.0, top)
        return _log(jax.lax.psum(jnp.sum(jnp.exp(scores - top), axis=0), axis_name)) + top

    def iterate(potentials: tuple[Array, Array], _: None = None) -> tuple[tuple[Array, Array], None]:
        u = _difference(log_source, _log_sum_exp(kernel + potentials[1][None, :], axis=1))
        return (u, _difference(log_target, over_columns(u))), None

    # The first iteration stands outside the scan, whose carry then has the sharding of its results.
    first, _ = iterate((log_source, jnp.zeros(columns, kernel.dtype)))
    (u, v), _ = jax.lax.scan(iterate, first, None, length=iterations - 1)
    return jnp.exp(kernel + u[:, None] + v[None, :])


def _log_masses(name: str, masses: ArrayLike | None, length: int, total: int) -> Array:
    if masses is None:
        return jnp.full(length, -np.log(total), jnp.float32)
    if np.shape(masses) != (length,):
        raise ValueError(f"{name} must have shape ({length},), got {np.shape(masses)}")
    _checks.non_negative(name, masses)
    return _log(as_float(masses))


def _log(x: Array) -> Array:
    """log with -inf at 0 and a finite gradient there."""
    usable = ~(x <= 0)
    return jnp.where(usable, jnp.log(jnp.where(usable, x, 1.0)), -jnp.inf)


def _log_sum_exp(scores: Array, *, axis: int) -> Array:
    """logsumexp whose gradient is 0, not NaN, where every score is -inf."""
    top = jax.lax.stop_gradient(jnp.max(scores, axis=axis, keepdims=True))
    top = jnp.where(jnp.isneginf(top), 0.0, top)
    return _log(jnp.sum(jnp.exp(scores - top), axis=axis)) + jnp.squeeze(top, axis)


def _difference(a: Array, b: Array) -> Array:
    """a - b, with -inf where a is -inf whatever b is."""
    empty = jnp.isneginf(a)
    return jnp.where(empty, -jnp.inf, jnp.where(empty, 0.0, a) - jnp.where(empty, 0.0, b))


def _flat_pair(data: ArrayLike, noise: ArrayLike, axis_name: str | None) -> tuple[Array, Array]:
    _checks.same_shape("data", data, "noise", noise)
    _checks.batched("data", data)
    flat = []
    for name, value in (("data", data), ("noise", noise)):
        if np.size(value) == 0:
            raise ValueError(f"{name} must not be empty, got shape {np.shape(value)}")
        # With NumPy: a concrete array may be looked at within a trace, where JAX would trace the look itself.
        if _checks.is_concrete(value) and not np.all(np.isfinite(np.asarray(value, np.float64))):
            raise ValueError(f"{name} must be finite to be coupled")
        value = jax.lax.stop_gradient(as_float(value))
        flat.append(gather_batch(value.reshape(value.shape[0], -1), axis_name))
    return flat[0], flat[1]


def _inner(x: Array, z: Array) -> Array:
    """x_i . z_j in full float32, also where the default of a device is less."""
    return jnp.matmul(x, z.T, precision=jax.lax.Precision.HIGHEST)


def minibatch_coupling(data: ArrayLike, noise: ArrayLike, *, axis_name: str | None = None) -> Array:
    r"""Exact optimal-transport pairing of a batch of data with a batch of noise.

    The permutation :math:`\pi` that minimises :math:`\sum_i \|x_i - z_{\pi(i)}\|_2^2`. The marginals of data and noise
    are unchanged; the variance of a loss over their pairing falls. The square norms do not depend on the pairing, so the
    cost is :math:`-x_i \cdot z_j`.

    Args:
      data: [B, ...] examples.
      noise: like `data`.
      axis_name: inside `shard_map` or `pmap`, an axis over which the batch is split: the pairing is that of the global
        batch, and the result is this device's part of it, indices into the gathered noise. None couples the batch it is
        given: inside `shard_map` that of the device, as in the paper.

    Returns:
      int32 [B]: data[i] goes with noise[result[i]]. No gradient passes. Of several optimal pairings, any. O(B^3) time:
      keep B to a few hundred, or couple in groups with `jax.vmap`.

    Raises:
      ValueError: shapes differ, or concrete values are not finite.

    References:
      Dao et al., arXiv:2502.01441; Pooladian et al., Multisample Flow Matching, arXiv:2304.14772.
    """
    x, z = _flat_pair(data, noise, axis_name)
    # Without the means, which change no pairing: in float32 their products would drown the differences.
    cost = -_inner(x - jnp.mean(x, axis=0), z - jnp.mean(z, axis=0))
    return own_rows(_assign(cost), np.shape(data)[0], axis_name)


def _assign(cost: Array) -> Array:
    """int32 [B]: the column of each row in an assignment of least cost."""
    # Imported here, so that `import mlfuncs` costs no more than `import jax`.
    from optax.assignment import hungarian_algorithm

    def solve(cost: Array) -> Array:
        rows, columns = hungarian_algorithm(cost)
        return jnp.zeros(cost.shape[0], jnp.int32).at[rows].set(columns.astype(jnp.int32))

    axes = varying_axes(cost)
    if not axes:
        return solve(cost)
    # The loops inside hungarian_algorithm can't carry values that shard_map tracks as varying: every device solves the
    # assignments of all, side by side, and keeps its own. Under check_vma=False each solves its own alone.
    return jax.vmap(solve)(gather_over(cost, axes))[jax.lax.axis_index(axes)]


def entropic_coupling(
    key: Array,
    data: ArrayLike,
    noise: ArrayLike,
    *,
    regularization: ArrayLike = 0.05,
    iterations: int = 100,
    axis_name: str | None = None,
) -> Array:
    r"""Random pairing of data with noise drawn from the entropic transport plan between the two batches.

    Row i of the plan of :math:`\|x_i - z_j\|_2^2` gives the probabilities of its partner. Draws are with replacement:
    each noise is used once in expectation, not in every batch. O(B^2) an iteration and free of the sequential search of
    `minibatch_coupling`, which suits large batches and accelerators.

    Args:
      key: a PRNG key.
      data: [B, ...] examples.
      noise: like `data`.
      regularization: > 0, as a fraction of the mean cost (may be traced). Small values approach the exact pairing.
      iterations: Sinkhorn iterations, >= 1.
      axis_name: as in `minibatch_coupling`.

    Returns:
      int32 [B]: data[i] goes with noise[result[i]]. No gradient passes. The draw of example i depends on the key, the
      plan and the global index of i.

    Raises:
      ValueError: shapes differ, concrete values are not finite, or a parameter is out of range.

    References:
      Pooladian et al., Multisample Flow Matching, arXiv:2304.14772; Cuturi, arXiv:1306.0895.
    """
    x, z = _flat_pair(data, noise, axis_name)
    centre = jnp.mean(z, axis=0)  # a common shift costs digits and changes no distance
    x, z = x - centre, z - centre
    cost = jnp.sum(x**2, axis=1)[:, None] + jnp.sum(z**2, axis=1)[None, :] - 2 * _inner(x, z)
    mean = jnp.mean(cost)
    _checks.positive("regularization", regularization)
    scale = jnp.where(mean > 0, mean, 1.0)
    plan = sinkhorn_plan(cost / scale, regularization=regularization, iterations=iterations)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(x.shape[0]))
    partner = jax.vmap(jax.random.categorical)(keys, _log(plan)).astype(jnp.int32)
    return own_rows(partner, np.shape(data)[0], axis_name)
