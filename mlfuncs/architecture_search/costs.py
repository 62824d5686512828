"""What an architecture costs."""

import math
from collections.abc import Sequence
from typing import Any

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


def transformer_parameter_count(
    layers: Any,
    heads: Any,
    hidden: Any,
    ratio: Any,
    *,
    max_heads: int = 12,
    embeddings: int = 31038,
    classes: int = 2,
) -> Any:
    r"""Parameters of a BERT-shaped student, for sorting candidates and for reports.

    .. math:: H V + L (H^2 + 3 H^2 h / h_{max} + 6 H) + L (2 H^2 R + H R + 3 H) + H^2 + c H

    Projections count as H by H h / h_max, as the paper's code reports them; a student with heads of width 64 has 64 h
    columns instead.

    Args:
      layers: L > 0; this and the next three are numbers, or arrays that broadcast, one entry a candidate.
      heads: h > 0.
      hidden: H > 0.
      ratio: R > 0, width of the feed-forward layer over H.
      max_heads: h_max >= 1, heads of the teacher. Default 12, BERT-base.
      embeddings: V >= 0, rows of all embedding tables. Default 31038: 30522 words, 512 positions, 2 segments, 2 of the norm.
      classes: c >= 0 outputs. Default 2, as in the code.

    Returns:
      a number for numbers, an array for arrays; float.

    Raises:
      ValueError: a concrete number that is not > 0, or the last three not such integers.

    References:
      Xu et al., AutoDistil: Few-shot Task-agnostic Neural Architecture Search for Distilling Large Language Models,
      arXiv:2201.12507.
    """
    for name, value in (("layers", layers), ("heads", heads), ("hidden", hidden), ("ratio", ratio)):
        _checks.positive(name, value)
    _checks.count("max_heads", max_heads)
    _checks.count("embeddings", embeddings, 0)
    _checks.count("classes", classes, 0)
    square = hidden * (hidden * 1.0)  # float: a square of arrays of integers overflows sooner
    attention = square + 3 * square * heads / max_heads + 6 * hidden
    feed_forward = 2 * square * ratio + hidden * ratio + 3 * hidden
    return hidden * embeddings + layers * (attention + feed_forward) + square + classes * hidden
