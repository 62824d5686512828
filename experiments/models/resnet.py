"""A residual network for small images: wide enough to teach, small enough to read."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jax import Array

from experiments.models import layers
from experiments.models.convolution import Convolution


class ResidualBlock(nnx.Module):
    """x + f(x), f two convolutions, each after its norm; the sum is taken of a projected x where sizes differ."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, norm: str, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.norm_0, self.norm_1 = (layers.GroupNorm(each, norm, rngs) for each in (inputs, outputs))
        self.first = Convolution(inputs, outputs, 3, stride=stride, dtype=dtype, rngs=rngs)
        self.second = Convolution(outputs, outputs, 3, dtype=dtype, rngs=rngs)
        if stride > 1 or inputs != outputs:
            self.project = Convolution(inputs, outputs, 1, stride=stride, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        h = nnx.relu(self.norm_0(x))
        shortcut = self.project(h) if hasattr(self, "project") else x
        return shortcut + self.second(nnx.relu(self.norm_1(self.first(h))))


class ResNet(nnx.Module):
    """x [B, H, W, C] -> {"logits" [B, num_classes], "features" [B, last of `channels`]}.

    Every level but the first halves the image. With three levels of n blocks it has 6 n + 2 layers: ResNet-20 is n = 3.
    """

    def __init__(
        self,
        *,
        example_shape: tuple[int, ...],
        num_classes: int,
        rngs: nnx.Rngs,
        channels: Sequence[int] = (16, 32, 64),
        blocks_per_level: int = 3,
        norm: str = "scaling",
        dropout: float = 0.0,
        dtype: str = "float32",
    ):
        if len(example_shape) != 3:
            raise ValueError(
                f"model.name 'resnet' needs images [H, W, C], got examples of shape {tuple(example_shape)}"
            )
        compute = jnp.dtype(dtype)
        self.rate, self.blocks = dropout, len(channels) * blocks_per_level
        self.stem = Convolution(example_shape[-1], channels[0], 3, dtype=compute, rngs=rngs)
        current = channels[0]
        for index in range(self.blocks):
            level, place = divmod(index, blocks_per_level)
            stride = 2 if level and not place else 1
            block = ResidualBlock(current, channels[level], stride=stride, norm=norm, dtype=compute, rngs=rngs)
            setattr(self, f"block_{index}", block)
            current = channels[level]
        self.norm = layers.GroupNorm(current, norm, rngs)
        self.last = layers.dense(current, num_classes, inputs_hold="hidden", dtype=compute, rngs=rngs)

    def __call__(self, x: Array, *, keys: Array | None = None) -> dict[str, Array]:
        x = self.stem(x)
        for index in range(self.blocks):
            x = getattr(self, f"block_{index}")(x)
        features = jnp.mean(nnx.relu(self.norm(x)), axis=(1, 2))
        logits = self.last(layers.dropout(features, keys, self.rate, 0))
        return {"logits": logits.astype(jnp.float32), "features": features.astype(jnp.float32)}
