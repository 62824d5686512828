"""A gated recurrent unit that reads a series and speaks at its end."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from experiments.models import layers


class Recurrent(nnx.Module):
    """x [B, T, ...] -> {"logits" [B, num_classes], "features" [B, width]}, the features being the last hidden state.

    `mask` [B or 1, width], if there is one, multiplies the features as it is.
    """

    def __init__(
        self,
        *,
        example_shape: tuple[int, ...],
        num_classes: int,
        rngs: nnx.Rngs,
        width: int = 32,
        dtype: str = "float32",
    ):
        if len(example_shape) < 2:
            raise ValueError(f"model.name 'recurrent' needs series [T, ...], got examples of shape {example_shape}")
        compute = jnp.dtype(dtype)
        self.width = width
        self.heard = nnx.Linear(math.prod(example_shape[1:]), 3 * width, dtype=compute, rngs=rngs)
        self.recalled = nnx.Linear(width, 3 * width, dtype=compute, rngs=rngs)
        self.last = layers.dense(width, num_classes, inputs_hold="hidden", dtype=compute, rngs=rngs)

    def __call__(self, x: Array, *, mask: Array | None = None) -> dict[str, Any]:
        series = x.reshape(*x.shape[:2], -1)
        heard = self.heard(series)  # of all steps at once: only what depends on the state is left to the loop

        def step(h: Array, heard: Array) -> tuple[Array, None]:
            reset_heard, update_heard, new_heard = jnp.split(heard, 3, axis=-1)
            reset_recalled, update_recalled, new_recalled = jnp.split(self.recalled(h), 3, axis=-1)
            reset = jax.nn.sigmoid(reset_heard + reset_recalled)
            update = jax.nn.sigmoid(update_heard + update_recalled)
            new = jnp.tanh(new_heard + reset * new_recalled)
            return (1 - update) * new + update * h, None

        start = jnp.zeros((x.shape[0], self.width), heard.dtype)
        features, _ = jax.lax.scan(step, start, jnp.moveaxis(heard, 1, 0))
        return {"logits": self.head(features, mask=mask), "features": features}

    def head(self, features: Array, *, mask: Array | None = None) -> Array:
        """Outputs [B, num_classes] from features."""
        return self.last(features if mask is None else features * mask).astype(jnp.float32)
