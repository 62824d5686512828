"""Linear layers of which each part of the outputs sees its own part of the inputs."""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks


def vertical_connection_mask(class_vertical: ArrayLike, *, num_verticals: int, width: int, shared: int = 0) -> Array:
    r"""Which units of a last layer each class sees: the shared ones and those of its own vertical.

    Units 0 to x - 1 are shared by all classes; then come `width` - x units for each vertical in turn. x = 0 is the
    structurally connected layer that is best in the paper, x = `width` the dense one.

    Args:
      class_vertical: int [C], the vertical of each class, in [0, num_verticals). Under `jit` it is not checked.
      num_verticals: M >= 1.
      width: s >= 1, units that a class sees. 512 in the paper.
      shared: x in [0, width].

    Returns:
      bool [x + M (s - x), C], for `masked_linear`.

    Raises:
      ValueError: `class_vertical` not integers [C], a size out of range, or too few verticals.

    References:
      Gao et al., Knowledge Concentration, arXiv:1711.07607.
    """
    _checks.rank("class_vertical", class_vertical, 1)
    _checks.integers("class_vertical", class_vertical)
    verticals = jnp.asarray(class_vertical)
    _checks.count("num_verticals", num_verticals)
    _checks.count("width", width)
    _checks.count("shared", shared, 0)
    if shared > width:
        raise ValueError(f"shared must be in [0, width], got {shared} for a width of {width}")
    _checks.within("class_vertical", class_vertical, 0, num_verticals - 1)
    owners = jnp.repeat(jnp.arange(num_verticals), width - shared)
    own = owners[:, None] == verticals[None, :]
    return jnp.concatenate([jnp.ones((shared, verticals.shape[0]), bool), own])


def grouped_linear(inputs: ArrayLike, kernel: ArrayLike, bias: ArrayLike | None = None) -> Array:
    """Inputs in G equal groups, each mapped by its own matrix: a block-diagonal layer. One group is a dense layer.

    Args:
      inputs: [..., D].
      kernel: [G, D / G, E / G].
      bias: [E], or None.

    Returns:
      [..., E], group by group.

    Raises:
      ValueError: kernel not three axes, D not G times its rows, or a bias of another length.

    References:
      Gao et al., arXiv:1711.07607.
    """
    _checks.rank("kernel", kernel, 3)
    x, k = jnp.asarray(inputs), jnp.asarray(kernel)
    groups, rows, columns = k.shape
    if x.ndim < 1 or x.shape[-1] != groups * rows:
        raise ValueError(
            f"inputs must have {groups * rows} values on their last axis for a kernel of shape {k.shape}, got {x.shape}"
        )
    grouped = x.reshape(*x.shape[:-1], groups, rows)
    outputs = jnp.einsum("...gd,gde->...ge", grouped, k).reshape(*x.shape[:-1], groups * columns)
    return _with_bias(outputs, bias)


def masked_linear(inputs: ArrayLike, kernel: ArrayLike, mask: ArrayLike, bias: ArrayLike | None = None) -> Array:
    """A linear layer with some connections cut, inputs (kernel * mask) + bias.

    The matrix is stored dense. Sort classes by vertical and use `grouped_linear` where most of it is cut.

    Args:
      inputs: [..., D].
      kernel: [D, E].
      mask: [D, E], True or 1 where a connection stands, such as `vertical_connection_mask`. A cut weight gets gradient 0,
        whatever its value.
      bias: [E], or None.

    Returns:
      [..., E].

    Raises:
      ValueError: shapes that do not fit.

    References:
      Gao et al., arXiv:1711.07607.
    """
    _checks.rank("kernel", kernel, 2)
    _checks.same_shape("kernel", kernel, "mask", mask)
    x, k, m = jnp.asarray(inputs), jnp.asarray(kernel), jnp.asarray(mask)
    if x.ndim < 1 or x.shape[-1] != k.shape[0]:
        raise ValueError(f"inputs must have {k.shape[0]} values on their last axis, got shape {x.shape}")
    return _with_bias(x @ jnp.where(m == 0, 0, k * m), bias)


def _with_bias(outputs: Array, bias: ArrayLike | None) -> Array:
    if bias is None:
        return outputs
    if np.shape(bias) != outputs.shape[-1:]:
        raise ValueError(f"bias must have shape {outputs.shape[-1:]}, got {np.shape(bias)}")
    return outputs + jnp.asarray(bias)
