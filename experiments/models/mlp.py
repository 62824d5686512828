"""A residual network of dense layers for small images, latents and points."""

import math
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array

from experiments.models import layers


class _Block(nnx.Module):
    """h + W2 drop(silu(modulate(norm(h)) W1))."""

    def __init__(
        self, width: int, layer: int, *, dropout: float, norm: str, time_conditioning: str, dtype: jnp.dtype, rngs
    ):
        self.layer, self.rate = layer, dropout
        self.norm = layers.LayerNorm(width, norm, rngs)
        self.modulation = layers.Modulation(width, width, kind=time_conditioning, norm=norm, dtype=dtype, rngs=rngs)
        self.first = layers.dense(width, width, outputs_hold="hidden", dtype=dtype, rngs=rngs)
        self.second = layers.dense(width, width, inputs_hold="hidden", dtype=dtype, rngs=rngs)

    def __call__(self, h: Array, embedding: Array, keys: Array | None) -> Array:
        inner = nnx.silu(self.first(self.modulation(self.norm(h), embedding)))
        return h + self.second(layers.dropout(inner, keys, self.rate, self.layer))


class ResidualMLP(nnx.Module):
    """x, c_noise -> like x. Any example shape; it is flattened inside.

    With `target_condition` it is also told `c_target`, the level to which a trajectory model jumps; untrained, it is deaf to
    that, so that it can start as the denoiser that it is distilled from.
    """

    def __init__(
        self,
        *,
        example_shape: tuple[int, ...],
        num_classes: int,
        rngs: nnx.Rngs,
        width: int = 256,
        depth: int = 3,
        fourier_features: int = 64,
        fourier_scale: float = 16.0,
        dropout: float = 0.0,
        norm: str = "scaling",
        time_conditioning: str = "additive",
        class_condition: bool = False,
        target_condition: bool = False,
        dtype: str = "float32",
    ):
        size, compute = math.prod(example_shape), jnp.dtype(dtype)
        fourier: dict[str, Any] = {"features": fourier_features, "scale": fourier_scale, "dtype": compute, "rngs": rngs}
        self.embed = layers.TimeEmbedding(width, num_classes=num_classes if class_condition else 0, **fourier)
        if target_condition:
            self.embed_target = layers.TimeEmbedding(width, num_classes=0, **fourier)
            self.target = nnx.Linear(width, width, use_bias=False, dtype=compute, kernel_init=layers.ZERO, rngs=rngs)
        self.first = nnx.Linear(size, width, dtype=compute, rngs=rngs)
        self.depth = depth
        for index in range(depth):
            block = _Block(
                width, index, dropout=dropout, norm=norm, time_conditioning=time_conditioning, dtype=compute, rngs=rngs
            )
            setattr(self, f"block_{index}", block)
        self.norm = layers.LayerNorm(width, norm, rngs)
        # Zero at first: the untrained model is its skip connection, the best linear guess at every level.
        self.last = nnx.Linear(width, size, dtype=compute, kernel_init=layers.ZERO, rngs=rngs)

    def __call__(
        self,
        x: Array,
        c_noise: Array,
        *,
        labels: Array | None = None,
        c_target: Array | None = None,
        keys: Array | None = None,
    ) -> Array:
        embedding = self.embed(c_noise, labels)
        if c_target is not None:
            embedding = embedding + self.target(self.embed_target(c_target, None))
        h = self.first(x.reshape(x.shape[0], -1))
        for index in range(self.depth):
            h = getattr(self, f"block_{index}")(h, embedding, keys)
        return self.last(nnx.silu(self.norm(h))).reshape(x.shape).astype(jnp.float32)
