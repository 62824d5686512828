"""What an edge gains: the Bayesian information criterion from correlations of unequal numbers of samples."""

from functools import lru_cache

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks
from mlfuncs._arrays import as_float
from mlfuncs.causal.independence import LARGEST, Value, of_many, statistic


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
    rescaled = jnp.tanh(statistic(rho, n, 0) / jnp.sqrt(jnp.maximum(full - 3, 1)))
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


def zero_deleted_score_changes(
    data: ArrayLike,
    i: ArrayLike,
    j: ArrayLike,
    conditioning: ArrayLike,
    *,
    penalty: float = 2.0,
    delete: str = "conditioning",
) -> np.ndarray:
    """Gains of edges on data with dropouts, for `greedy_equivalence_search`. On the host.

    `bic_score_change` of the `zero_deleted_partial_correlation`, rescaled to the samples of the whole data by
    `rescale_partial_correlation`. On data without zeros that is the criterion of linear models with normal noise.

    Args:
      data: [n, d].
      i: [m] variables that the edges come from.
      j: [m] those that they go to.
      conditioning: bool [m, d], the other parents of j.
      penalty: c > 0; a larger one penalises less. Default 2, the criterion as it is known; the paper's runs have 1.
      delete: "conditioning" or "all".

    Returns:
      [m] gains.

    Raises:
      ValueError: as `zero_deleted_partial_correlation`, of any edge; `penalty` not > 0.

    References:
      Dai et al., arXiv:2403.15500.
    """
    _checks.positive("penalty", penalty)
    return of_many(_score_change(float(penalty)), data, i, j, conditioning, delete)


@lru_cache
def _score_change(penalty: float) -> Value:
    """Cached, so that searches with the same penalty share one compiled program."""

    def value(found: dict[str, Array], _: Array, rows: int) -> Array:
        rho = rescale_partial_correlation(found["correlation"], found["num_samples"], rows)
        return bic_score_change(rho, rows, penalty=penalty)

    return value
