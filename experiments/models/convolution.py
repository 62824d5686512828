"""Convolutions of images."""

import functools
import math
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from experiments.models import layers


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

    On a CPU it is a sum of k * k matrix products, one for each tap: XLA's own convolution falls back to plain loops for
    the gradients inside a compiled scan there, 10 to 30 times slower. Elsewhere it is XLA's convolution.
    """
    if kernel.shape[0] == 1 and stride == 1:
        return x @ kernel[0, 0]
    pads = [_padding(side, kernel.shape[0], stride) for side in x.shape[1:3]]
    return jax.lax.platform_dependent(
        x, kernel, cpu=partial(_by_taps, stride=stride, pads=pads), default=partial(_by_xla, stride=stride, pads=pads)
    )


def _padding(side: int, size: int, stride: int) -> tuple[int, int]:
    total = max((math.ceil(side / stride) - 1) * stride + size - side, 0)
    return total // 2, total - total // 2


def _by_xla(x: Array, kernel: Array, *, stride: int, pads: Sequence[tuple[int, int]]) -> Array:
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _by_taps(x: Array, kernel: Array, *, stride: int, pads: Sequence[tuple[int, int]]) -> Array:
    height, width = (math.ceil(side / stride) for side in x.shape[1:3])
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))

    def tap(row: int, column: int) -> Array:
        shifted = padded[:, row : row + stride * (height - 1) + 1 : stride]
        return shifted[:, :, column : column + stride * (width - 1) + 1 : stride] @ kernel[row, column]

    taps = [tap(row, column) for row in range(kernel.shape[0]) for column in range(kernel.shape[1])]
    return functools.reduce(jnp.add, taps)
