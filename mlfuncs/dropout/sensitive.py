"""Sensitive-neuron dropout: the units whose activations move most between checkpoints are switched off."""

import math

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks
from mlfuncs._arrays import as_float


def sensitivity_score(embeddings: ArrayLike) -> Array:
    r"""How much each unit moved over training.

    .. math:: V_i = \frac{1}{N} \sum_n \operatorname{Var}_t(e^t_{n,i}) \sum_{t \ge 2} |e^t_{n,i} - e^{t-1}_{n,i}|

    The official code averages over checkpoints first and compares texts; this is the paper's equation.

    Args:
      embeddings: [T, N, D] of T checkpoints, N tracked texts and D units. One checkpoint gives scores of 0.

    Returns:
      [D] scores >= 0, in at least float32. They grow with the cube of the scale: rank the units of one layer only.

    Raises:
      ValueError: not three axes, or one of them empty.

    References:
      Mohammadzadeh et al., Hallucination Detox: Sensitivity Dropout, arXiv:2410.15460.
    """
    _checks.rank("embeddings", embeddings, 3)
    if np.size(embeddings) == 0:
        raise ValueError(f"embeddings must not be empty, got shape {np.shape(embeddings)}")
    e = as_float(embeddings)
    moved = jnp.sum(jnp.abs(jnp.diff(e, axis=0)), axis=0)
    return jnp.mean(jnp.var(e, axis=0) * moved, axis=0)


def sensitive_unit_mask(scores: ArrayLike, *, fraction: float = 0.2) -> Array:
    r"""Keep-mask that drops the :math:`\lfloor \kappa D \rfloor` units with the largest scores.

    Args:
      scores: [D]. Of equal ones the lower index is dropped first; NaN counts as the smallest.
      fraction: kappa in [0, 1], a Python number because it decides a count. Default 0.2 (paper; the code has 0.3).

    Returns:
      bool [D], the same for every key and device. With `apply_mask(x, mask)`, without rescaling.

    Raises:
      ValueError: not one axis, empty, or `fraction` outside [0, 1].

    References:
      Mohammadzadeh et al., arXiv:2410.15460.
    """
    _checks.rank("scores", scores, 1)
    if np.size(scores) == 0:
        raise ValueError("scores must hold at least one unit")
    if not _checks.is_concrete(fraction):
        raise ValueError("fraction decides a count and must be a Python number, got a traced value")
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction must be in [0, 1], got {fraction!r}")
    s = as_float(scores)
    dropped = math.floor(fraction * s.shape[0] + 1e-6)
    order = jnp.argsort(jnp.where(jnp.isnan(s), jnp.inf, -s), stable=True)  # largest first
    return jnp.ones(s.shape, bool).at[order[:dropped]].set(False)


def push_window(window: ArrayLike, embeddings: ArrayLike) -> Array:
    """The embeddings of the last checkpoints: drops the oldest, appends the newest.

    Args:
      window: [C, N, D], oldest first.
      embeddings: [N, D] of the newest checkpoint.

    Returns:
      [C, N, D], in the dtype of `window`.

    Raises:
      ValueError: shapes that do not fit.

    References:
      Mohammadzadeh et al., arXiv:2410.15460.
    """
    window = jnp.asarray(window)
    _checks.rank("window", window, 3)
    if window.shape[0] == 0 or np.shape(embeddings) != window.shape[1:]:
        raise ValueError(f"embeddings must have shape {window.shape[1:]} for this window, got {np.shape(embeddings)}")
    return jnp.concatenate([window[1:], jnp.asarray(embeddings, window.dtype)[None]])
