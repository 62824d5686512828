r"""Robust distances between batches of arrays, one value per example, and robust statistics.

Every distance treats an example as one vector: its residual is :math:`\|p - t\|_2` over all axes but the first. That is
the form the consistency-model papers use; element-wise losses such as `optax.huber_loss` are other functions.
"""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks
from mlfuncs._arrays import as_float, expand_like, per_example_axes


def _residual(prediction: ArrayLike, target: ArrayLike) -> Array:
    _checks.same_shape("prediction", prediction, "target", target)
    _checks.batched("prediction", prediction)
    return as_float(prediction) - as_float(target)


def _scaled_squared_norm(residual: Array, c: ArrayLike) -> Array:
    """||residual / c||^2 per example; dividing first keeps c^2 from underflowing."""
    _checks.scalar_or_per_example("c", c, residual.shape[0])
    _checks.positive("c", c)
    scaled = residual / expand_like(as_float(c), residual)
    return jnp.sum(scaled**2, axis=per_example_axes(residual))


def pseudo_huber(prediction: ArrayLike, target: ArrayLike, *, c: ArrayLike) -> Array:
    r"""Pseudo-Huber distance per example, :math:`\sqrt{\|p - t\|_2^2 + c^2} - c`.

    Quadratic for residuals below `c` and linear above, so that a few large residuals cannot dominate a batch. Computed
    as :math:`r / (\sqrt{r + c^2} + c)` with :math:`r = \|p - t\|_2^2`, which does not cancel for residuals below `c`.

    Args:
      prediction: [B, ...] floats, in data units.
      target: like `prediction`.
      c: turning point in data units, scalar or [B], >= 0. The paper uses 0.00054 * sqrt(values per example); 0 gives
        the Euclidean norm, whose gradient is taken as 0 where the two agree.

    Returns:
      [B] distances in at least float32, exactly 0 where prediction and target agree.

    Raises:
      ValueError: shapes differ, no batch axis, or a concrete `c` is negative.

    References:
      Song and Dhariwal, Improved Techniques for Training Consistency Models, arXiv:2310.14189.
    """
    residual = _residual(prediction, target)
    _checks.scalar_or_per_example("c", c, residual.shape[0])
    _checks.non_negative("c", c)
    c = as_float(c)
    squared = jnp.sum(residual**2, axis=per_example_axes(residual))
    radicand = squared + c**2
    usable = ~(radicand <= 0)  # written so that NaN stays on the branch that computes with it
    root = jnp.sqrt(jnp.where(usable, radicand, 1.0))
    # Far out the plain form, which can't cancel there and stays finite, or infinite, with the residual.
    small = usable & ~(squared > c**2)
    near = jnp.where(small, squared, 0.0) / jnp.where(small, root + c, 1.0)
    return jnp.where(small, near, jnp.where(usable, root - c, 0.0))


def cauchy(prediction: ArrayLike, target: ArrayLike, *, c: ArrayLike) -> Array:
    r"""Cauchy (Lorentzian) distance per example, :math:`\log(1 + \|p - t\|_2^2 / (2 c^2))`.

    Its influence :math:`2r / (r^2 + 2c^2)` grows linearly for small residuals r, peaks at :math:`\sqrt 2 c` and decays
    like 1/r: impulsive outliers are damped but still inform the fit.

    Args:
      prediction: [B, ...] floats, in data units.
      target: like `prediction`.
      c: scale in data units, scalar or [B], > 0; may be traced and change during training
        (`consistency.adaptive_robust_scale`).

    Returns:
      [B] distances in at least float32, exactly 0 where prediction and target agree.

    Raises:
      ValueError: shapes differ, no batch axis, or a concrete `c` is not positive.

    References:
      Dao et al., Improved Training Technique for Latent Consistency Models, arXiv:2502.01441.
    """
    return jnp.log1p(_scaled_squared_norm(_residual(prediction, target), c) / 2)


def geman_mcclure(prediction: ArrayLike, target: ArrayLike, *, c: ArrayLike) -> Array:
    r"""Geman-McClure distance per example, :math:`2 \|p - t\|_2^2 / (\|p - t\|_2^2 + 4 c^2)`.

    Saturates at 2: a far outlier has no influence at all.

    Args:
      prediction: [B, ...] floats, in data units.
      target: like `prediction`.
      c: scale in data units, scalar or [B], > 0.

    Returns:
      [B] distances in [0, 2], in at least float32.

    Raises:
      ValueError: shapes differ, no batch axis, or a concrete `c` is not positive.

    References:
      Barron, A General and Adaptive Robust Loss Function, arXiv:1701.03077; compared with Cauchy in arXiv:2502.01441.
    """
    squared = _scaled_squared_norm(_residual(prediction, target), c)
    far = squared > 4  # there 2 / (1 + 4 / s), which is 2 and not NaN where s overflows
    near = jnp.where(far, 0.0, squared)
    return jnp.where(far, 2 / (1 + 4 / jnp.where(far, squared, 1.0)), 2 * near / (near + 4))


def mean_squared(prediction: ArrayLike, target: ArrayLike) -> Array:
    r"""Mean squared difference per example, the distance of the original consistency training.

    Args:
      prediction: [B, ...] floats.
      target: like `prediction`.

    Returns:
      [B] means over all axes but the first, in at least float32.

    Raises:
      ValueError: shapes differ or no batch axis.

    References:
      Song et al., Consistency Models, arXiv:2303.01469.
    """
    residual = _residual(prediction, target)
    return jnp.mean(residual**2, axis=per_example_axes(residual))


def mean_absolute(prediction: ArrayLike, target: ArrayLike) -> Array:
    r"""Mean absolute difference per example, the L1 alternative of the original consistency training.

    Args:
      prediction: [B, ...] floats.
      target: like `prediction`.

    Returns:
      [B] means over all axes but the first, in at least float32.

    Raises:
      ValueError: shapes differ or no batch axis.

    References:
      Song et al., Consistency Models, arXiv:2303.01469.
    """
    residual = _residual(prediction, target)
    return jnp.mean(jnp.abs(residual), axis=per_example_axes(residual))


def tukey_fences(values: ArrayLike, *, factor: ArrayLike = 1.5) -> tuple[Array, Array]:
    r"""Tukey's fences :math:`Q_1 - k\,\mathrm{IQR}` and :math:`Q_3 + k\,\mathrm{IQR}`: values outside are outliers.

    Args:
      values: array of any shape with at least one element; it is flattened.
      factor: k >= 0; 1.5 gives the inner fences, 3 the outer ones.

    Returns:
      (low, high), scalars in at least float32. Quartiles are interpolated linearly.

    Raises:
      ValueError: no values, or a concrete `factor` is negative.

    References:
      Tukey, Exploratory Data Analysis (1977); used as a diagnostic of latents in arXiv:2502.01441.
    """
    values = as_float(values).reshape(-1)
    if values.size == 0:
        raise ValueError("values must have at least one element, got none")
    _checks.non_negative("factor", factor)
    first, third = jnp.quantile(values, jnp.array([0.25, 0.75], values.dtype))
    margin = factor * (third - first)
    return first - margin, third + margin
