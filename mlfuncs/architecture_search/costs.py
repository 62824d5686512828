"""What an architecture costs."""

import math
from collections.abc import Sequence

from mlfuncs import _checks


def layer_flops(shape: Sequence[int], positions: int, density: float) -> int:
    """Multiply-adds of a dense or convolution layer for one example.

    Args:
      shape: of the kernel, such as (in, out) or (3, 3, in, out).
      positions: how often the kernel is applied: 1 for a dense layer, output height times width for a convolution.
      density: share of weights that are not zero, in [0, 1].

    Returns:
      int.

    Raises:
      ValueError: an empty shape, sizes below 1, `positions` below 1 or `density` outside [0, 1].

    References:
      Thangarasa et al., Sparse-IFT, arXiv:2303.11525.
    """
    if len(shape) == 0:
        raise ValueError("shape must have at least one axis")
    for size in shape:
        _checks.count("a size in shape", size)
    _checks.count("positions", positions)
    _checks.within("density", density, 0, 1)
    return round(math.prod(shape) * positions * density)
