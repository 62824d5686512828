"""A teacher and a student that can be solved in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks
from mlfuncs._arrays import as_float
from mlfuncs.distillation._rows import check_integers


def self_distilled_ridge(
    inputs: ArrayLike,
    targets: ArrayLike,
    kept: ArrayLike,
    *,
    soft_weight: ArrayLike,
    regularization: ArrayLike,
) -> Array:
    r"""Ridge regression on a pruned data set with a teacher that saw all of it, in closed form.

    .. math:: \theta_t = (X^\top X + \lambda I)^{-1} X^\top y, \quad
              \theta_s = (X_f^\top X_f + \lambda I)^{-1} X_f^\top [(1 - a)\, y_f + a X_f \theta_t]

    The teacher's targets average the noise of all N samples: with few kept the squared error falls as a grows. The bias does
    not.

    Args:
      inputs: X [N, d].
      targets: y [N].
      kept: int [n], the rows f that the student sees.
      soft_weight: a in [0, 1], a scalar (may be traced).
      regularization: lambda >= 0, a scalar (may be traced), common to both. 0 needs full column rank: otherwise the result
        is not finite.

    Returns:
      [d], the student's coefficients, in at least float32.

    Raises:
      ValueError: other axes or lengths, `kept` not integers in [0, N) or empty, a outside [0, 1], or lambda < 0.

    References:
      Ben-Baruch et al., Distilling the Knowledge in Data Pruning, arXiv:2403.07854.
    """
    _checks.rank("inputs", inputs, 2)
    _checks.per_example("targets", targets, np.shape(inputs)[0])
    _checks.rank("kept", kept, 1)
    if np.shape(kept)[0] == 0:
        raise ValueError("kept must hold at least one row")
    rows = check_integers("kept", kept, np.shape(inputs)[0])
    for name, value in (("soft_weight", soft_weight), ("regularization", regularization)):
        _checks.rank(name, value, 0)
    _checks.within("soft_weight", soft_weight, 0, 1)
    _checks.non_negative("regularization", regularization)
    x, y = as_float(inputs), as_float(targets)

    def product(a: Array, b: Array) -> Array:
        return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)

    def ridge(x: Array, y: Array) -> Array:
        return jnp.linalg.solve(product(x.T, x) + regularization * jnp.eye(x.shape[1], dtype=x.dtype), product(x.T, y))

    seen = x[rows]
    soft = product(seen, ridge(x, y))
    return ridge(seen, jnp.asarray((1 - soft_weight) * y[rows] + soft_weight * soft))
