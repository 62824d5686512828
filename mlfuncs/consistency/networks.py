"""What makes a network a consistency model: the boundary condition, and a norm without gain."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks
from mlfuncs._arrays import as_float, expand_like
from mlfuncs.diffusion.preconditioning import SMALLEST_SIGMA


def boundary_preconditioning(
    sigma: ArrayLike, *, sigma_data: float = 0.5, sigma_min: float = 0.002
) -> dict[str, Array]:
    r"""Coefficients that make a raw network satisfy :math:`f(x, \sigma_{\min}) = x`.

    .. math::
       c_{skip} = \frac{\sigma_d^2}{(\sigma - \sigma_{\min})^2 + \sigma_d^2}, \quad
       c_{out} = \frac{\sigma_d (\sigma - \sigma_{\min})}{\sqrt{\sigma^2 + \sigma_d^2}}, \quad
       c_{in} = \frac{1}{\sqrt{\sigma^2 + \sigma_d^2}}, \quad c_{noise} = \tfrac14 \log\sigma

    Args:
      sigma: noise levels, scalar or array of any shape, >= 0, in data units; 0 is clamped to 1e-8 inside the logarithm.
      sigma_data: standard deviation of the data, > 0. The papers' default.
      sigma_min: level at which the function is the identity, >= 0. The papers' default; 0 gives the plain diffusion
        preconditioning.

    Returns:
      {"c_skip", "c_out", "c_in", "c_noise"}, each shaped like `sigma`.

    Raises:
      ValueError: sigma_data <= 0, or negative sigma or sigma_min.

    References:
      Song et al., Consistency Models, arXiv:2303.01469; Karras et al., arXiv:2206.00364.
    """
    _checks.positive("sigma_data", sigma_data)
    _checks.non_negative("sigma_min", sigma_min)
    _checks.non_negative("sigma", sigma)
    sigma = as_float(sigma)
    above = sigma - sigma_min
    scale = jnp.sqrt(sigma**2 + sigma_data**2)
    return {
        "c_skip": sigma_data**2 / (above**2 + sigma_data**2),
        "c_out": sigma_data * above / scale,
        "c_in": 1 / scale,
        "c_noise": jnp.log(jnp.maximum(sigma, SMALLEST_SIGMA)) / 4,
    }


def consistency_function(
    network: Callable[[Array, Array], Array], *, sigma_data: float = 0.5, sigma_min: float = 0.002
) -> Callable[[Array, Array], Array]:
    r"""The consistency function of a raw network, :math:`f(x, \sigma) = c_{skip} x + c_{out} F(c_{in} x, c_{noise})`.

    Close the network over its parameters, its condition and its dropout key: the same key in both passes of a loss is
    what shares the dropout mask between student and teacher.

    Args:
      network: F(x [B, ...], c_noise [B]) -> like x.
      sigma_data: standard deviation of the data, > 0.
      sigma_min: level at which f is the identity, >= 0.

    Returns:
      f(x [B, ...], sigma scalar or [B]) -> estimate of the clean x, in at least float32.

    Raises:
      ValueError: sigma_data <= 0 or sigma_min < 0; f raises it where sigma is neither a scalar nor [B].

    References:
      Song et al., Consistency Models, arXiv:2303.01469.
    """
    _checks.positive("sigma_data", sigma_data)
    _checks.non_negative("sigma_min", sigma_min)

    def consistency(x: Array, sigma: ArrayLike) -> Array:
        _checks.batched("x", x)
        x = as_float(x)
        _checks.scalar_or_per_example("sigma", sigma, x.shape[0])
        sigma = jnp.broadcast_to(as_float(sigma), x.shape[:1])
        c = boundary_preconditioning(sigma, sigma_data=sigma_data, sigma_min=sigma_min)
        raw = network(expand_like(c["c_in"], x) * x, c["c_noise"])
        return expand_like(c["c_skip"], x) * x + expand_like(c["c_out"], x) * raw

    return consistency


def non_scaling_layer_norm(x: ArrayLike, bias: ArrayLike | None = None, *, eps: float = 1e-6) -> Array:
    r"""Layer normalisation without gain, :math:`(h - \mu) / \sqrt{\mathrm{var} + \epsilon} + b`, over the last axis.

    A learned gain amplifies features that carry outliers; the bias stays.

    Args:
      x: [..., F] features.
      bias: [F] or None.
      eps: added to the biased variance, > 0. The authors' default.

    Returns:
      Like `x`; statistics are computed in at least float32.

    Raises:
      ValueError: no axis, eps <= 0, or a bias of another length.

    References:
      Dao et al., Improved Training Technique for Latent Consistency Models, arXiv:2502.01441.
    """
    x = jnp.asarray(x)
    _checks.batched("x", x)
    _checks.positive("eps", eps)
    if bias is not None and np.shape(bias) != x.shape[-1:]:
        raise ValueError(f"bias must have shape {x.shape[-1:]}, got {np.shape(bias)}")
    wide = as_float(x)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    normalised = centred / jnp.sqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + eps)
    if bias is not None:
        normalised = normalised + as_float(bias)
    return normalised.astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else normalised
