"""A small convolutional classifier, whose penultimate features judge generated images."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array

from experiments.models import layers
from experiments.models.convolution import Convolution


class Classifier(nnx.Module):
    """x [B, H, W, C] -> {"logits" [B, num_classes], "features" [B, features], "hidden": maps of every convolution}."""

    def __init__(
        self,
        *,
        example_shape: tuple[int, ...],
        num_classes: int,
        rngs: nnx.Rngs,
        channels: Sequence[int] = (16, 32),
        features: int = 32,
        dropout: float = 0.0,
        dtype: str = "float32",
    ):
        if len(example_shape) != 3:
            raise ValueError(
                f"model.name 'classifier' needs images [H, W, C], got examples of shape {tuple(example_shape)}"
            )
        compute = jnp.dtype(dtype)
        self.rate, self.depth = dropout, len(channels)
        height, width, current = example_shape
        for index, outputs in enumerate(channels):
            # The second and later layers halve the image; the first sees every pixel.
            stride = 1 if index == 0 else 2
            setattr(self, f"layer_{index}", Convolution(current, outputs, 3, stride=stride, dtype=compute, rngs=rngs))
            height, width, current = math.ceil(height / stride), math.ceil(width / stride), outputs
        self.dense = layers.dense(height * width * current, features, outputs_hold="hidden", dtype=compute, rngs=rngs)
        self.last = layers.dense(features, num_classes, inputs_hold="hidden", dtype=compute, rngs=rngs)

    def __call__(self, x: Array, *, keys: Array | None = None) -> dict[str, Any]:
        hidden = []
        for index in range(self.depth):
            x = nnx.relu(getattr(self, f"layer_{index}")(x))
            hidden.append(x)
        x = layers.dropout(x.reshape(x.shape[0], -1), keys, self.rate, 0)
        features = nnx.relu(self.dense(x))
        logits = self.last(layers.dropout(features, keys, self.rate, 1))
        return {"logits": logits.astype(jnp.float32), "features": features.astype(jnp.float32), "hidden": tuple(hidden)}
