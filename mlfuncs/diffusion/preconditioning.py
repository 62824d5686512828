"""The EDM denoiser: how a raw network is wrapped and what it is trained on."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks
from mlfuncs._arrays import as_float, expand_like, per_example_axes

SMALLEST_SIGMA = 1e-8  # keeps log(sigma) finite at sigma = 0


def edm_coefficients(sigma: ArrayLike, *, sigma_data: float = 0.5) -> dict[str, Array]:
    r"""Preconditioning that keeps inputs and targets of the network at unit variance.

    .. math::
       c_{skip} = \frac{\sigma_d^2}{\sigma^2 + \sigma_d^2}, \quad
       c_{out} = \frac{\sigma \sigma_d}{\sqrt{\sigma^2 + \sigma_d^2}}, \quad
       c_{in} = \frac{1}{\sqrt{\sigma^2 + \sigma_d^2}}, \quad c_{noise} = \tfrac14 \log\sigma

    Args:
      sigma: levels, scalar or array of any shape, >= 0; 0 is clamped to 1e-8 inside the logarithm.
      sigma_data: standard deviation of the data, > 0. The paper's default.

    Returns:
      {"skip", "out", "in", "noise"}, each like `sigma`.

    Raises:
      ValueError: negative levels or sigma_data <= 0.

    References:
      Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, arXiv:2206.00364.
    """
    _checks.positive("sigma_data", sigma_data)
    _checks.non_negative("sigma", sigma)
    sigma = as_float(sigma)
    scale = jnp.sqrt(sigma**2 + sigma_data**2)
    return {
        "skip": sigma_data**2 / scale**2,
        "out": sigma * sigma_data / scale,
        "in": 1 / scale,
        "noise": jnp.log(jnp.maximum(sigma, SMALLEST_SIGMA)) / 4,
    }


def preconditioned_denoise(
    network: Callable[[Array, Array], Array], x: ArrayLike, sigma: ArrayLike, *, sigma_data: float = 0.5
) -> Array:
    r"""Denoiser of a raw network, :math:`D(x, \sigma) = c_{skip} x + c_{out} F(c_{in} x, c_{noise})`.

    Args:
      network: F(x [B, ...], c_noise [B]) -> like x.
      x: [B, ...] noisy examples in VE form.
      sigma: scalar or [B], >= 0; at 0 the result is x.
      sigma_data: standard deviation of the data, > 0. The paper's default.

    Returns:
      Estimate of the clean x, in at least float32.

    Raises:
      ValueError: sigma is neither a scalar nor [B], negative levels, or sigma_data <= 0.

    References:
      Karras et al., arXiv:2206.00364.
    """
    _checks.batched("x", x)
    x = as_float(x)
    _checks.scalar_or_per_example("sigma", sigma, x.shape[0])
    c = edm_coefficients(jnp.broadcast_to(as_float(sigma), x.shape[:1]), sigma_data=sigma_data)
    raw = network(expand_like(c["in"], x) * x, c["noise"])
    return expand_like(c["skip"], x) * x + expand_like(c["out"], x) * raw


def sample_training_sigmas(key: Array, shape: tuple[int, ...], *, mean: float = -1.2, std: float = 1.2) -> Array:
    r"""Lognormal noise levels for training, :math:`\log\sigma \sim N(P_{mean}, P_{std}^2)`.

    Args:
      key: a PRNG key.
      shape: static shape of the result, () for a scalar.
      mean: mean of log sigma. The paper's default.
      std: standard deviation of log sigma, > 0. The paper's default.

    Returns:
      float32 levels of the given shape.

    Raises:
      ValueError: std <= 0.

    References:
      Karras et al., arXiv:2206.00364.
    """
    _checks.positive("std", std)
    return jnp.exp(mean + std * jax.random.normal(key, shape))


def edm_loss(
    denoise: Callable[[Array, Array], Array],
    x: ArrayLike,
    noise: ArrayLike,
    sigma: ArrayLike,
    *,
    sigma_data: float = 0.5,
) -> Array:
    r"""Weighted denoising error per example.

    .. math:: \frac{\sigma^2 + \sigma_d^2}{(\sigma \sigma_d)^2}\; \overline{(D(x + \sigma n, \sigma) - x)^2}

    The mean runs over the values of an example; the authors' code sums over them instead.

    Args:
      denoise: D(x [B, ...], sigma [B]) -> estimate of the clean x.
      x: [B, ...] clean examples.
      noise: unit normal n, like `x`.
      sigma: [B] levels, > 0.
      sigma_data: standard deviation of the data, > 0. The paper's default.

    Returns:
      [B] losses.

    Raises:
      ValueError: shapes do not fit, or a concrete level is not positive.

    References:
      Karras et al., arXiv:2206.00364.
    """
    _checks.same_shape("x", x, "noise", noise)
    _checks.batched("x", x)
    _checks.per_example("sigma", sigma, np.shape(x)[0])
    _checks.positive("sigma", sigma)
    _checks.positive("sigma_data", sigma_data)
    x, noise, sigma = as_float(x), as_float(noise), as_float(sigma)
    denoised = denoise(x + expand_like(sigma, x) * noise, sigma)
    _checks.same_shape("x", x, "the result of denoise", denoised)
    weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    return weight * jnp.mean((as_float(denoised) - x) ** 2, axis=per_example_axes(x))
