"""Convolutions of images."""

import functools
import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from experiments.models import layers

Pads = tuple[tuple[int, int], ...]


class Convolution(nnx.Module):
    """A square convolution with bias, padded to keep (or, with a stride, divide) the size."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
        stride: int = 1,
        kernel_init: Callable[..., Array] = layers.LECUN,
    ):
        self.stride, self.dtype = stride, dtype
        self.kernel = nnx.Param(kernel_init(rngs.params(), (size, size, inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(self, x: Array) -> Array:
        kernel, bias = self.kernel[...].astype(self.dtype), self.bias[...].astype(self.dtype)
        return convolve(x.astype(self.dtype), kernel, self.stride) + bias


def convolve(x: Array, kernel: Array, stride: int) -> Array:
    """x [B, H, W, I] with kernel [k, k, I, O], zero-padded so that each side of the output is ceil(side / stride).

    XLA's convolution everywhere; on a CPU its gradients are written out, because XLA falls back to plain loops, up to 50
    times slower, for the gradients of a convolution inside a compiled loop. There, reverse-mode differentiation alone.
    """
    if kernel.shape[0] == 1 and stride == 1:
        return x @ kernel[0, 0]
    pads = tuple(_padding(side, kernel.shape[0], stride) for side in x.shape[1:3])
    on_cpu = partial(_by_taps, stride=stride, pads=pads) if stride > 1 else partial(_with_gradients, pads)
    return jax.lax.platform_dependent(x, kernel, cpu=on_cpu, default=partial(_by_xla, stride=stride, pads=pads))


def _padding(side: int, size: int, stride: int) -> tuple[int, int]:
    total = max((math.ceil(side / stride) - 1) * stride + size - side, 0)
    return total // 2, total - total // 2


def _by_xla(x: Array, kernel: Array, *, stride: int, pads: Pads) -> Array:
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _with_gradients(pads: Pads, x: Array, kernel: Array) -> Array:
    """Stride 1. Both gradients are forward convolutions in the one layout that XLA has fast code for."""
    return _by_xla(x, kernel, stride=1, pads=pads)


def _forward(pads: Pads, x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _with_gradients(pads, x, kernel), (x, kernel)


def _backward(pads: Pads, residuals: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    size = kernel.shape[0]
    turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    opposite = tuple((size - 1 - low, size - 1 - high) for low, high in pads)
    for_x = _by_xla(cotangent, turned, stride=1, pads=opposite)
    # Channels of x are the batch, examples the channels that are summed over, and the cotangent is the kernel.
    summed = _by_xla(x.transpose(3, 1, 2, 0), cotangent.transpose(1, 2, 0, 3), stride=1, pads=pads)
    return for_x, summed.transpose(1, 2, 0, 3)


_with_gradients.defvjp(_forward, _backward)


def _by_taps(x: Array, kernel: Array, *, stride: int, pads: Pads) -> Array:
    """A sum of k * k matrix products, one for each place of the kernel."""
    height, width = (math.ceil(side / stride) for side in x.shape[1:3])
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))

    def tap(row: int, column: int) -> Array:
        shifted = padded[:, row : row + stride * (height - 1) + 1 : stride]
        return shifted[:, :, column : column + stride * (width - 1) + 1 : stride] @ kernel[row, column]

    taps = [tap(row, column) for row in range(kernel.shape[0]) for column in range(kernel.shape[1])]
    return functools.reduce(jnp.add, taps)
