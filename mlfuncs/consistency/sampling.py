"""Sampling from a consistency model in one step or a few."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks
from mlfuncs._arrays import as_float, example_noise


def multistep_sample(
    key: Array,
    consistency_fn: Callable[[Array, Array], Array],
    shape: tuple[int, ...],
    *,
    sigmas: Sequence[float] | ArrayLike = (80.0,),
    sigma_min: float = 0.002,
) -> Array:
    r"""Samples by jumping to the data and, for each further level, adding noise and jumping again.

    .. math:: x \leftarrow f(\sigma_1 z_1, \sigma_1), \qquad
              x \leftarrow f\big(x + \sqrt{\sigma_j^2 - \sigma_{\min}^2}\, z_j, \sigma_j\big), \; j = 2, 3, \dots

    One evaluation of f a level. Sample i depends on the key and on i alone, not on how many are drawn.

    Args:
      key: a PRNG key.
      consistency_fn: f(x [B, ...], sigma [B]).
      shape: static shape [B, ...] of the samples.
      sigmas: decreasing levels, the first is the prior's. Two steps in the paper: (80, 0.821) for CIFAR-10, (80, 1.526)
        for ImageNet-64.
      sigma_min: level at which f is the identity; no level may lie below it.

    Returns:
      Samples of the given shape, in float32, not clipped.

    Raises:
      ValueError: empty shape or `sigmas`, or concrete levels that do not decrease or lie below sigma_min.

    References:
      Song et al., arXiv:2303.01469, algorithm 1; levels from Song and Dhariwal, arXiv:2310.14189.
    """
    if len(shape) < 1:
        raise ValueError("shape must have a leading batch axis, got ()")
    _checks.rank("sigmas", sigmas, 1)
    if np.shape(sigmas)[0] == 0:
        raise ValueError("sigmas must hold at least one level, got none")
    _checks.non_negative("sigma_min", sigma_min)
    if _checks.is_concrete(sigma_min):
        _checks.at_least("sigmas", sigmas, float(sigma_min) * (1 - 1e-6))  # a float32 grid may end a rounding below
    if _checks.is_concrete(sigmas) and np.any(np.diff(np.asarray(sigmas)) >= 0):
        raise ValueError(f"sigmas must decrease, got {sigmas!r}")
    levels = as_float(sigmas)  # type: ignore[arg-type]

    def noise(step: ArrayLike) -> Array:
        return example_noise(jax.random.fold_in(key, step), shape)

    def jump(x: Array, step_and_sigma: tuple[Array, Array]) -> tuple[Array, None]:
        step, sigma = step_and_sigma
        # A level at sigma_min adds no noise; rounding must not make the root's argument negative.
        spread = jnp.sqrt(jnp.maximum(sigma**2 - sigma_min**2, 0.0))
        return consistency_fn(x + spread * noise(step), jnp.full(shape[:1], sigma)), None

    x = consistency_fn(levels[0] * noise(0), jnp.full(shape[:1], levels[0]))
    if levels.shape[0] > 1:
        x, _ = jax.lax.scan(jump, x, (jnp.arange(1, levels.shape[0]), levels[1:]))
    return x
