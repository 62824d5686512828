"""Image operations."""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks
from mlfuncs._arrays import absolute, as_float


def total_variation(images: ArrayLike) -> Array:
    r"""Anisotropic total variation, :math:`\overline{|x_{h,w+1} - x_{h,w}|} + \overline{|x_{h+1,w} - x_{h,w}|}`.

    Args:
      images: [B, H, W, C].

    Returns:
      [B], each mean over its own differences, channels included; 0 along a side of one pixel.

    Raises:
      ValueError: not four axes.

    References:
      Rudin, Osher and Fatemi (1992); in this form Scheliga et al., arXiv:2208.06163.
    """
    _checks.rank("images", images, 4)
    x = as_float(images)

    def along(axis: int) -> Array:
        if x.shape[axis] < 2:
            return jnp.zeros(x.shape[0], x.dtype)
        return jnp.mean(absolute(jnp.diff(x, axis=axis)), axis=(1, 2, 3))

    return along(2) + along(1)
