"""What an assay misses: zeros at random, or more likely for low values."""

import jax
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks
from mlfuncs._arrays import as_float
from mlfuncs.dropout import apply_mask, bernoulli_mask


def logistic_dropout_probability(expression: ArrayLike, slope: ArrayLike, offset: ArrayLike) -> Array:
    r"""Probability that a value is dropped, :math:`\sigma(-(a z + b))`: less likely the higher it is.

    Args:
      expression: [n, d], z.
      slope: a, broadcasts.
      offset: b, broadcasts.

    Returns:
      [n, d] in (0, 1).

    Raises:
      ValueError: `expression` not [n, d].

    References:
      Dai et al., arXiv:2403.15500.
    """
    _checks.rank("expression", expression, 2)
    return jax.nn.sigmoid(-(as_float(slope) * as_float(expression) + as_float(offset)))


def sample_dropout(key: Array, expression: ArrayLike, probability: ArrayLike) -> Array:
    """Sets values to exactly 0 at random; the others stay as they are.

    Args:
      key: a PRNG key.
      expression: [n, d].
      probability: of dropping, broadcasts to `expression`.

    Returns:
      [n, d].

    Raises:
      ValueError: `expression` not [n, d] or a concrete `probability` outside [0, 1].

    References:
      Dai et al., arXiv:2403.15500.
    """
    _checks.rank("expression", expression, 2)
    return apply_mask(expression, bernoulli_mask(key, np.shape(expression), rate=probability))
