"""Masks on weights: sparse training at equal cost, pruning and regrowing, and the nuclear norm."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks
from mlfuncs._arrays import as_float, floor_share

if TYPE_CHECKING:
    import optax

FAMILIES = ("doped", "factorized", "parallel", "wide")


def _check_sparsity(sparsity: float) -> None:
    if not _checks.is_concrete(sparsity):
        raise ValueError("sparsity decides a count and must be a Python number, got a traced value")
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity must be in [0, 1), got {sparsity!r}")


def iso_flop_width(*, family: str, in_features: int, out_features: int, sparsity: float, kernel_size: int = 1) -> int:
    r"""The size of a sparse replacement of a dense layer that costs as many FLOPs.

    With :math:`k = \operatorname{round}(1 / (1 - s))`: "wide" multiplies widths by :math:`\sqrt k`; "parallel" takes k
    branches; "factorized" goes through :math:`\lceil K c_i c_o / ((1 - s)(K c_i + c_o)) \rceil` hidden features; "doped"
    adds a dense factorisation of rank :math:`\lfloor s K c_i c_o / (K c_i + c_o) \rfloor` to a sparse layer.

    Args:
      family: one of those four.
      in_features: c_i >= 1.
      out_features: c_o >= 1.
      sparsity: s in [0, 1), a Python number.
      kernel_size: K, the taps of a convolution (9 for 3x3), 1 for a dense layer.

    Returns:
      int: the new width of the inputs, the number of branches, the hidden width or the rank.

    Raises:
      ValueError: an unknown family, or a number out of range.

    References:
      Thangarasa et al., Sparse-IFT, arXiv:2303.11525.
    """
    _checks.one_of("family", family, FAMILIES)
    for name, count in (("in_features", in_features), ("out_features", out_features), ("kernel_size", kernel_size)):
        _checks.count(name, count)
    _check_sparsity(sparsity)
    fold = round(1 / (1 - sparsity))
    inputs, cost = kernel_size * in_features, kernel_size * in_features * out_features
    if family == "wide":
        return int(in_features * math.sqrt(fold))
    if family == "parallel":
        return fold
    if family == "factorized":
        return math.ceil(cost / ((1 - sparsity) * (inputs + out_features)) - 1e-9)
    return math.floor(sparsity * cost / (inputs + out_features) + 1e-9)


def erdos_renyi_kernel_densities(
    shapes: Sequence[Sequence[int]], *, sparsity: float, power: float = 1.0
) -> list[float]:
    r"""Densities of layers in proportion to :math:`(\sum \text{shape} / \prod \text{shape})^p`, with the right total.

    Layers that would exceed 1 are dense, and the rest is solved again. The total of weights is that of uniform sparsity;
    the FLOPs are not.

    Args:
      shapes: of the kernels, such as (3, 3, in, out).
      sparsity: in [0, 1), of all weights together.
      power: p.

    Returns:
      list of densities in (0, 1].

    Raises:
      ValueError: no shapes, an empty one, or `sparsity` outside [0, 1).

    References:
      Evci et al., RigL, arXiv:1911.11134; Thangarasa et al., arXiv:2303.11525.
    """
    _check_sparsity(sparsity)
    if not shapes or any(len(shape) == 0 or min(shape) < 1 for shape in shapes):
        raise ValueError(f"shapes must hold shapes of positive sizes, got {list(shapes)}")
    sizes = np.array([math.prod(shape) for shape in shapes], np.float64)
    raw = (np.array([sum(shape) for shape in shapes]) / sizes) ** power
    dense = np.zeros(len(shapes), bool)
    while True:
        left = (1 - sparsity) * sizes.sum() - sizes[dense].sum()
        scale = left / np.sum(raw[~dense] * sizes[~dense]) if not dense.all() else 0.0
        over = ~dense & (scale * raw > 1)
        if not over.any():
            return [float(d) for d in np.where(dense, 1.0, scale * raw)]
        # Only the densest, and those that tie with it: the others may fit once it is fixed.
        dense |= over & (raw == raw[over].max())


def random_mask(key: Array, shape: Sequence[int], *, sparsity: float) -> Array:
    r"""A mask with exactly :math:`n - \lfloor s n \rfloor` entries, uniformly at random.

    Args:
      key: a PRNG key; the same on every device.
      shape: of the weight.
      sparsity: s in [0, 1), a Python number.

    Returns:
      bool `shape`, True where a weight is kept.

    Raises:
      ValueError: `sparsity` outside [0, 1).

    References:
      Thangarasa et al., arXiv:2303.11525.
    """
    _check_sparsity(sparsity)
    size = math.prod(shape)
    kept = size - math.floor(sparsity * size + 1e-6)
    return (jax.random.permutation(key, size) < kept).reshape(tuple(shape))


def _ranks(scores: Array) -> Array:
    """int32: 0 for the largest; of equal ones the first comes first."""
    order = jnp.argsort(-scores, stable=True)
    return jnp.zeros(scores.shape, jnp.int32).at[order].set(jnp.arange(scores.shape[0], dtype=jnp.int32))


def prune_and_regrow(weights: ArrayLike, gradients: ArrayLike, mask: ArrayLike, *, drop_fraction: ArrayLike) -> Array:
    r"""RigL's update of a mask: drops the smallest active weights and grows as many with the largest gradients.

    Of n active weights :math:`n - \lfloor f n \rfloor` with the largest magnitude stay; the rest of the n places go to the
    largest gradients among all others, those just dropped included. Grown weights and their moments start at 0.

    Args:
      weights: of one layer, any shape.
      gradients: of the loss with respect to the masked weight w * m, dense; averaged over the global batch.
      mask: bool, True where a weight is active.
      drop_fraction: f in [0, 1], may be traced.

    Returns:
      bool mask with as many entries. Ties go to the lower flat index.

    Raises:
      ValueError: shapes that differ, or a concrete `drop_fraction` outside [0, 1].

    References:
      Evci et al., arXiv:1911.11134; Thangarasa et al., arXiv:2303.11525.
    """
    _checks.same_shape("weights", weights, "mask", mask)
    _checks.same_shape("gradients", gradients, "mask", mask)
    _checks.within("drop_fraction", drop_fraction, 0, 1)
    active = jnp.asarray(mask, bool).reshape(-1)
    magnitude, growth = (jnp.abs(as_float(x)).reshape(-1) for x in (weights, gradients))
    # NaN comes last among its like, so that the count holds whatever a diverged run brings.
    magnitude, growth = (jnp.where(jnp.isnan(x), -1.0, x) for x in (magnitude, growth))
    count = jnp.sum(active)
    dropped = floor_share(drop_fraction, count)
    # Weights outside the mask are never kept, whatever values they hold.
    kept = active & (_ranks(jnp.where(active, magnitude, -jnp.inf)) < count - dropped)
    grown = ~kept & (_ranks(jnp.where(kept, -jnp.inf, growth)) < dropped)
    return (kept | grown).reshape(np.shape(mask))


def cosine_drop_fraction(step: ArrayLike, *, end_step: ArrayLike, initial: ArrayLike = 0.3) -> Array:
    r"""Share of weights that is replaced, :math:`f_0 (1 + \cos(\pi t / T)) / 2` before T, 0 from there on.

    Args:
      step: t >= 0, any shape.
      end_step: T >= 1, may be traced. The paper stops at three quarters of training.
      initial: f_0 in [0, 1]. Default 0.3.

    Returns:
      like `step`.

    Raises:
      ValueError: `end_step` below 1 or `initial` outside [0, 1].

    References:
      Evci et al., arXiv:1911.11134; Thangarasa et al., arXiv:2303.11525.
    """
    _checks.at_least("end_step", end_step, 1)
    _checks.within("initial", initial, 0, 1)
    t = as_float(step) / as_float(end_step)
    return jnp.where(t < 1, as_float(initial) * (1 + jnp.cos(jnp.pi * jnp.minimum(t, 1))) / 2, 0.0)


def masked_update(mask: Any) -> "optax.GradientTransformation":
    """The last link of an optimiser chain: parameters outside the mask are 0 after every step.

    Weight decay and momentum would otherwise leak into them.

    Args:
      mask: pytree of bool like the parameters, True where one may be other than 0.

    Returns:
      a stateless transformation; its `update` needs the parameters.

    References:
      Thangarasa et al., arXiv:2303.11525.
    """

    import optax  # here, so that `import mlfuncs` costs no more than `import jax`

    def init(params: Any) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update(updates: Any, state: optax.EmptyState, params: Any = None) -> tuple[Any, optax.EmptyState]:
        if params is None:
            raise ValueError("params must be given to the update of masked_update")
        return jax.tree.map(lambda u, p, m: jnp.where(m, u, -p), updates, params, mask), state

    return optax.GradientTransformation(init, update)


@jax.custom_jvp
def _nuclear(matrix: Array) -> Array:
    return jnp.sum(jnp.linalg.svd(matrix, compute_uv=False))


@_nuclear.defjvp
def _nuclear_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (matrix,), (tangent,) = primals, tangents
    return _nuclear(matrix), jnp.sum(_polar(matrix) * tangent)


def _polar(matrix: Array) -> Array:
    u, s, vt = jnp.linalg.svd(matrix, full_matrices=False)
    cutoff = jnp.max(s, initial=0.0) * max(matrix.shape) * jnp.finfo(matrix.dtype).eps
    return jnp.matmul(u * (s > cutoff), vt, precision=jax.lax.Precision.HIGHEST)


def nuclear_norm(matrix: ArrayLike) -> Array:
    r"""Sum of singular values, :math:`\|M\|_* = \sum_i \sigma_i`.

    Args:
      matrix: [m, n].

    Returns:
      scalar, whose gradient is `nuclear_norm_subgradient`: finite everywhere, 0 at the zero matrix.

    Raises:
      ValueError: not two axes; `jax.vmap` over others.

    References:
      Hu et al., SaRA, arXiv:2409.06633.
    """
    _checks.rank("matrix", matrix, 2)
    return _nuclear(as_float(matrix))


def nuclear_norm_subgradient(matrix: ArrayLike) -> Array:
    r"""A subgradient of the nuclear norm, :math:`U V^\top` of the thin SVD without its zero directions.

    Args:
      matrix: [m, n].

    Returns:
      [m, n].

    Raises:
      ValueError: not two axes.

    References:
      Watson, Characterization of the Subdifferential of Some Matrix Norms (1992); Hu et al., arXiv:2409.06633.
    """
    _checks.rank("matrix", matrix, 2)
    return _polar(as_float(matrix))


def leading_slice(params: Any, shapes: Any) -> Any:
    """The parameters of a smaller network that shares the first rows and columns of a larger one's.

    Args:
      params: a tree of arrays.
      shapes: a tree of the same structure with a shape, a tuple of Python integers, in the place of each array.

    Returns:
      a tree like `params`, each array cut to its first entries along every axis.

    Raises:
      ValueError: another structure, another number of axes, or a size below 1 or above the array's.

    References:
      Xu et al., AutoDistil: Few-shot Task-agnostic Neural Architecture Search for Distilling Large Language Models,
      arXiv:2201.12507.
    """
    structure: Any  # its class has no types
    leaves, structure = jax.tree.flatten(params)
    try:
        wanted = structure.flatten_up_to(shapes)
    except (TypeError, ValueError) as error:
        raise ValueError(f"shapes must be a tree like params with a shape for each array: {error}") from error

    def cut(array: ArrayLike, shape: Sequence[int]) -> Array:
        own = np.shape(array)
        if not isinstance(shape, (tuple, list)) or len(shape) != len(own):
            raise ValueError(f"shapes must hold a shape of {len(own)} sizes for an array of shape {own}, got {shape!r}")
        for size, most in zip(shape, own, strict=True):
            _checks.count("a size in shapes", size)
            if size > most:
                raise ValueError(f"shapes must be at most those of the arrays, got {tuple(shape)} of {own}")
        return jnp.asarray(array)[tuple(slice(size) for size in shape)]

    return structure.unflatten([cut(array, shape) for array, shape in zip(leaves, wanted, strict=True)])
