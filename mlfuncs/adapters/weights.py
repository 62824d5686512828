"""Low-rank and sparse adaptation of trained weights."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks, sparsity
from mlfuncs._arrays import absolute, as_float, float_dtype, safe_sqrt

Select = Callable[[Any, Any], bool]  # (path, leaf) -> whether the leaf takes part


def _check_factors(a: ArrayLike, b: ArrayLike) -> None:
    _checks.rank("a", a, 2)
    _checks.rank("b", b, 2)
    if np.shape(b)[1] != np.shape(a)[0]:
        raise ValueError(
            f"a [rank, inputs] and b [outputs, rank] must share a rank, got {np.shape(a)} and {np.shape(b)}"
        )


def low_rank_row_scale(a: ArrayLike, b: ArrayLike, *, eta: ArrayLike = 1.0) -> Array:
    r"""Adaptive learning rate of each output row, :math:`s_i = (\|(BA)_{i,:}\|_2 + 1/\eta^2)^{-1/2}`.

    The norm enters to the first power. At B = 0 all rows have the rate eta, which tapers off as they grow.

    Args:
      a: [r, inputs].
      b: [outputs, r].
      eta: > 0. The paper uses eta^2 in {1, 2, 4}.

    Returns:
      [outputs], in at least float32, found without forming BA.

    Raises:
      ValueError: shapes that do not fit, or `eta` not > 0.

    References:
      Huang and Balestriero, ALLoRA, arXiv:2410.09692.
    """
    _check_factors(a, b)
    _checks.positive("eta", eta)
    a, b = as_float(a), as_float(b)
    gram = jnp.matmul(a, a.T, precision=jax.lax.Precision.HIGHEST)
    squared = jnp.sum(jnp.matmul(b, gram, precision=jax.lax.Precision.HIGHEST) * b, axis=1)
    return jax.lax.rsqrt(safe_sqrt(jnp.maximum(squared, 0)) + as_float(eta) ** -2)


def adaptive_low_rank(x: ArrayLike, a: ArrayLike, b: ArrayLike, *, eta: ArrayLike = 1.0) -> Array:
    r"""The adapter branch :math:`(x A^\top) B^\top` whose backward pass scales rows by `low_rank_row_scale`.

    The gradients of A and B are those of a cotangent with its rows scaled; that of x is not scaled. No factor alpha/r and no
    dropout. The scaling of A's gradient can't be had from outside the layer. Under Adam a constant factor of B's rows would
    cancel: what acts is that the scale changes over time and mixes rows in A.

    Args:
      x: [..., inputs].
      a: [r, inputs], random at the start.
      b: [outputs, r], 0 at the start.
      eta: > 0; no gradient passes to it.

    Returns:
      [..., outputs]. Only first derivatives are meaningful.

    Raises:
      ValueError: shapes that do not fit, or `eta` not > 0.

    References:
      Huang and Balestriero, arXiv:2410.09692.
    """
    return _adaptive(*_checked_branch(x, a, b, eta))


def _floating(x: ArrayLike) -> Array:
    x = jnp.asarray(x)
    return x.astype(float_dtype(x))


def _checked_branch(x: ArrayLike, a: ArrayLike, b: ArrayLike, eta: ArrayLike) -> tuple[Array, Array, Array, Array]:
    """The arguments of the branch as floating arrays."""
    _check_factors(a, b)
    _checks.positive("eta", eta)
    if np.ndim(x) < 1 or np.shape(x)[-1] != np.shape(a)[1]:
        raise ValueError(f"x must have {np.shape(a)[1]} values on its last axis, got shape {np.shape(x)}")
    return _floating(x), _floating(a), _floating(b), jnp.asarray(eta, jnp.float32)


@jax.custom_vjp
def _adaptive(x: Array, a: Array, b: Array, eta: Array) -> Array:
    return (x @ a.T) @ b.T


def _adaptive_forward(x: Array, a: Array, b: Array, eta: Array) -> tuple[Array, tuple[Array, ...]]:
    return _adaptive(x, a, b, eta), (x, a, b, eta)


def _adaptive_backward(kept: tuple[Array, ...], cotangent: Array) -> tuple[Array, Array, Array, Array]:
    x, a, b, eta = kept
    scaled = cotangent * low_rank_row_scale(a, b, eta=eta).astype(cotangent.dtype)
    rows = lambda y: y.reshape(-1, y.shape[-1])  # noqa: E731
    for_a = rows(scaled @ b).T @ rows(x)
    for_b = rows(scaled).T @ rows(x @ a.T)
    for_x = (cotangent @ b) @ a
    return for_x.astype(x.dtype), for_a.astype(a.dtype), for_b.astype(b.dtype), jnp.zeros_like(eta)


_adaptive.defvjp(_adaptive_forward, _adaptive_backward)


def adaptive_low_rank_gradients(
    x: ArrayLike, a: ArrayLike, b: ArrayLike, cotangent: ArrayLike, *, eta: ArrayLike = 1.0
) -> dict[str, Array]:
    r"""The backward pass of `adaptive_low_rank`, written out.

    .. math:: \tilde g = g \odot s, \quad \partial A = (\tilde g B)^\top x, \quad \partial B = \tilde g^\top (x A^\top),
              \quad \partial x = (g B) A

    Args:
      x: [..., inputs].
      a: [r, inputs].
      b: [outputs, r].
      cotangent: [..., outputs], g.
      eta: > 0.

    Returns:
      {"x", "a", "b"}, like the arguments.

    Raises:
      ValueError: shapes that do not fit, or `eta` not > 0.

    References:
      Huang and Balestriero, arXiv:2410.09692.
    """
    kept = _checked_branch(x, a, b, eta)
    expected = (*np.shape(x)[:-1], np.shape(b)[0])
    if np.shape(cotangent) != expected:
        raise ValueError(f"cotangent must have shape {expected}, got {np.shape(cotangent)}")
    for_x, for_a, for_b, _ = _adaptive_backward(kept, _floating(cotangent))
    return {"x": for_x, "a": for_a, "b": for_b}


def output_dependent_scale(output: ArrayLike, *, eta: ArrayLike = 1.0) -> Array:
    r"""The paper's ablation, :math:`(|f| + 1/\eta^2)^{-1/2}` for each output of the adapter.

    Args:
      output: any shape.
      eta: > 0.

    Returns:
      like `output`, in at least float32.

    Raises:
      ValueError: `eta` not > 0.

    References:
      Huang and Balestriero, arXiv:2410.09692.
    """
    _checks.positive("eta", eta)
    return jax.lax.rsqrt(absolute(as_float(output)) + as_float(eta) ** -2)


def merge_low_rank(kernel: ArrayLike, a: ArrayLike, b: ArrayLike) -> Array:
    """The weight with its adapter in it, W + BA.

    Args:
      kernel: [outputs, inputs] (a Flax kernel is its transpose).
      a: [r, inputs].
      b: [outputs, r].

    Returns:
      [outputs, inputs], in the dtype of `kernel`.

    Raises:
      ValueError: shapes that do not fit.

    References:
      Hu et al., LoRA, arXiv:2106.09685.
    """
    _check_factors(a, b)
    expected = (np.shape(b)[0], np.shape(a)[1])
    if np.shape(kernel) != expected:
        raise ValueError(f"kernel must have shape {expected}, got {np.shape(kernel)}")
    kernel = _floating(kernel)
    product = jnp.matmul(as_float(b), as_float(a), precision=jax.lax.Precision.HIGHEST)
    return (as_float(kernel) + product).astype(kernel.dtype)


def _check_threshold(threshold: ArrayLike) -> None:
    _checks.non_negative("threshold", threshold)
    if _checks.is_concrete(threshold) and np.isnan(np.asarray(threshold, np.float64)).any():
        raise ValueError(f"threshold must be >= 0, got {threshold!r}")


def small_weight_mask(params: Any, *, threshold: ArrayLike, select: Select | None = None) -> Any:
    r"""Which weights are almost zero and may learn, :math:`|p| < \theta`.

    Args:
      params: pytree of trained weights.
      threshold: theta >= 0. The paper uses 2e-3 for a diffusion model of 860 million weights.
      select: `select(path, leaf) -> bool`, which leaves take part; None: all, as in the paper. Zero biases and
        zero-initialised layers are below any threshold.

    Returns:
      pytree of bool, like `params`.

    Raises:
      ValueError: a concrete `threshold` is negative or NaN.

    References:
      Hu et al., SaRA, arXiv:2409.06633.
    """
    _check_threshold(threshold)

    def small(path: Any, leaf: ArrayLike) -> Array:
        if select is not None and not select(path, leaf):
            return jnp.zeros(np.shape(leaf), bool)
        return jnp.abs(as_float(leaf)) < as_float(threshold)  # not rounded to half precision

    return jax.tree_util.tree_map_with_path(small, params)


def magnitude_threshold(params: Any, *, fraction: float) -> Array:
    r"""The threshold below which a fraction of all weights lies: the (k + 1)-th smallest magnitude,
    :math:`k = \lfloor f n \rfloor`.

    Args:
      params: pytree of weights.
      fraction: f in [0, 1], a Python number. 1 gives infinity: all are below it.

    Returns:
      scalar, for the strict comparison of `small_weight_mask`.

    Raises:
      ValueError: `fraction` outside [0, 1], or no weights.

    References:
      Hu et al., arXiv:2409.06633.
    """
    if not _checks.is_concrete(fraction):
        raise ValueError("fraction decides a count and must be a Python number, got a traced value")
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction must be in [0, 1], got {fraction!r}")
    magnitudes = [jnp.abs(as_float(leaf)).reshape(-1) for leaf in jax.tree.leaves(params)]
    total = sum(m.shape[0] for m in magnitudes)
    if total == 0:
        raise ValueError("params must hold at least one weight")
    k = math.floor(fraction * total + 1e-6)
    return jnp.float32(jnp.inf) if k >= total else jnp.sort(jnp.concatenate(magnitudes))[k]


def masked_indices(masks: Any) -> Any:
    """Flat positions of the True entries, in row-major order. On the host: their number decides shapes.

    Args:
      masks: pytree of concrete bool arrays.

    Returns:
      pytree of int32 [n].

    Raises:
      ValueError: traced masks.

    References:
      Hu et al., arXiv:2409.06633.
    """

    def positions(mask: ArrayLike) -> Array:
        if not _checks.is_concrete(mask):
            raise ValueError("masks decide shapes and must be concrete, got a traced one")
        return jnp.asarray(np.flatnonzero(np.asarray(mask, bool)), jnp.int32)

    return jax.tree.map(positions, masks)


def gather_values(params: Any, indices: Any) -> Any:
    """The weights at flat positions, a vector for each leaf: what is trained.

    Args:
      params: pytree.
      indices: pytree of int32 [n], such as `masked_indices`.

    Returns:
      pytree of [n].

    Raises:
      ValueError: trees that differ.

    References:
      Hu et al., arXiv:2409.06633.
    """
    _checks.same_structure("params", params, "indices", indices)
    return jax.tree.map(lambda p, i: jnp.asarray(p).reshape(-1)[i], params, indices)


def scatter_values(param: ArrayLike, indices: ArrayLike, values: ArrayLike) -> Array:
    """A frozen weight with the trained entries in it. Signs are kept (the official code writes magnitudes).

    Args:
      param: any shape; no gradient passes to it.
      indices: int32 [n] flat positions.
      values: [n]; their gradient is that of the weight at these positions.

    Returns:
      like `param`.

    Raises:
      ValueError: `indices` and `values` are not one axis of one length.

    References:
      Hu et al., arXiv:2409.06633.
    """
    _checks.rank("indices", indices, 1)
    _checks.same_shape("indices", indices, "values", values)
    frozen = jax.lax.stop_gradient(jnp.asarray(param))
    flat = frozen.reshape(-1).at[jnp.asarray(indices)].set(jnp.asarray(values, frozen.dtype))
    return flat.reshape(frozen.shape)


def reselect_mask(params: Any, masks: Any, *, threshold: ArrayLike) -> Any:
    r"""The weights that are trained and still almost zero, :math:`M \wedge (|p| < \theta)`.

    Args:
      params: pytree.
      masks: pytree of bool, the selection so far.
      threshold: theta >= 0.

    Returns:
      pytree of bool. Training goes on with these alone and with fresh moments.

    Raises:
      ValueError: trees that differ, or a concrete `threshold` is negative or NaN.

    References:
      Hu et al., arXiv:2409.06633.
    """
    _checks.same_trees("params", params, "masks", masks)
    return jax.tree.map(jnp.logical_and, masks, small_weight_mask(params, threshold=threshold))


def threshold_learning_rate(threshold: ArrayLike, *, base: ArrayLike = 1e-3, slope: ArrayLike = 350.0) -> Array:
    r"""The paper's learning rate for a threshold, :math:`b \exp(-350\, \theta)`.

    Args:
      threshold: theta >= 0.
      base: b.
      slope: 350 in the paper.

    Returns:
      like `threshold`.

    Raises:
      ValueError: a concrete `threshold` is negative or NaN.

    References:
      Hu et al., arXiv:2409.06633.
    """
    _check_threshold(threshold)
    return as_float(base) * jnp.exp(-as_float(slope) * as_float(threshold))


def sparse_nuclear_penalty(params: Any, masks: Any, *, weight: ArrayLike = 5e-4, min_dimension: int = 64) -> Array:
    r"""Nuclear norm of the trained entries, :math:`\lambda \, \overline{\|P \circ M\|_*}` over the eligible matrices.

    The official code draws one matrix a step; this is its expectation.

    Args:
      params: pytree.
      masks: pytree of bool.
      weight: lambda >= 0. Default 5e-4, as in the paper.
      min_dimension: matrices whose shorter side exceeds it are eligible; convolution kernels never are.

    Returns:
      scalar; 0 where none is eligible.

    Raises:
      ValueError: trees that differ, or a negative `weight`.

    References:
      Hu et al., arXiv:2409.06633.
    """
    _checks.same_trees("params", params, "masks", masks)
    _checks.non_negative("weight", weight)
    norms = [
        sparsity.nuclear_norm(jnp.where(mask, as_float(p), 0.0))
        for p, mask in zip(jax.tree.leaves(params), jax.tree.leaves(masks), strict=True)
        if np.ndim(p) == 2 and min(np.shape(p)) > min_dimension
    ]
    return as_float(weight) * sum(norms, jnp.float32(0)) / max(1, len(norms))
