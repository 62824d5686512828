"""A plain multilayer perceptron: the network of the miniatures on digits."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array

from experiments.models import layers

ACTIVATIONS = {"gelu": nnx.gelu, "relu": nnx.relu, "tanh": jnp.tanh}


class Perceptron(nnx.Module):
    """x [B, ...] -> {"logits" [B, num_classes], "features" [B, width], "hidden": activations of every hidden layer}.

    `norm` is a layer norm before every activation. `masks`, one array [B or 1, width] a hidden layer or None, multiply
    the activations as they are.
    """

    def __init__(
        self,
        *,
        example_shape: tuple[int, ...],
        num_classes: int,
        rngs: nnx.Rngs,
        widths: Sequence[int] = (256, 256),
        activation: str = "relu",
        hidden_bias: bool = True,
        head_bias: bool = True,
        norm: str = "none",
        dtype: str = "float32",
    ):
        if activation not in ACTIVATIONS:
            raise ValueError(f"model.activation must be one of {', '.join(sorted(ACTIVATIONS))}, got {activation!r}")
        compute = jnp.dtype(dtype)
        self.activation, self.depth = activation, len(widths)
        current = math.prod(example_shape)
        for index, width in enumerate(widths):
            setattr(self, f"layer_{index}", nnx.Linear(current, width, use_bias=hidden_bias, dtype=compute, rngs=rngs))
            setattr(self, f"norm_{index}", layers.LayerNorm(width, norm, rngs))
            current = width
        self.last = layers.dense(
            current, num_classes, inputs_hold="hidden", use_bias=head_bias, dtype=compute, rngs=rngs
        )

    def __call__(self, x: Array, *, masks: Sequence[Array | None] | None = None) -> dict[str, Any]:
        masks = [None] * self.depth if masks is None else masks
        h, hidden = x.reshape(x.shape[0], -1), []
        for index, mask in enumerate(masks):
            h = getattr(self, f"norm_{index}")(getattr(self, f"layer_{index}")(h))
            h = ACTIVATIONS[self.activation](h)
            h = h if mask is None else h * mask
            hidden.append(h)
        return {"logits": self.last(h).astype(jnp.float32), "features": h, "hidden": tuple(hidden)}
