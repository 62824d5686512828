"""A small decoder-only transformer: the language model of the miniatures."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array

from experiments.models import layers


class Block(nnx.Module):
    """Attention, causal or to the tokens of a mask [B, T], and two dense layers, each beside a shortcut and after a norm."""

    def __init__(self, width: int, inner: int, heads: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.heads = heads
        self.norm_attention = nnx.LayerNorm(width, rngs=rngs)
        self.attend = layers.dense(width, 3 * width, outputs_hold="heads", dtype=dtype, rngs=rngs)
        self.project = layers.dense(width, width, inputs_hold="heads", dtype=dtype, rngs=rngs)
        self.norm_dense = nnx.LayerNorm(width, rngs=rngs)
        self.first = layers.dense(width, inner, outputs_hold="hidden", dtype=dtype, rngs=rngs)
        self.second = layers.dense(inner, width, inputs_hold="hidden", dtype=dtype, rngs=rngs)

    def __call__(self, h: Array, *, causal: bool = True, mask: Array | None = None) -> Array:
        by_head = self.attend(self.norm_attention(h)).reshape(*h.shape[:2], self.heads, -1)
        h = h + self.project(layers.attention(by_head, causal=causal, mask=mask))
        return h + self.second(nnx.gelu(self.first(self.norm_dense(h))))


class Transformer(nnx.Module):
    """int tokens [B, T] -> {"logits" [B, T, V] of the next token, "features", "penultimate", "hidden"}.

    `example_shape` is (longest T,), `num_classes` the vocabulary V. "hidden" are the states [B, T, width] after every
    block, "penultimate" those that the last block takes in, "features" the normalised ones before the logits.
    `masks`, one array that broadcasts to [B, T, width] a block or None, multiply the states after the block as they are.
    Padding on the right changes nothing before it.
    """

    def __init__(
        self,
        *,
        example_shape: tuple[int, ...],
        num_classes: int,
        rngs: nnx.Rngs,
        width: int = 64,
        depth: int = 2,
        heads: int = 4,
        expansion: int = 4,
        dtype: str = "float32",
    ):
        if width % heads:
            raise ValueError(f"model.width must be a multiple of model.heads {heads}, got {width}")
        compute = jnp.dtype(dtype)
        self.depth = depth
        self.words = nnx.Embed(num_classes, width, dtype=compute, rngs=rngs)
        self.places = nnx.Embed(math.prod(example_shape), width, dtype=compute, rngs=rngs)
        for index in range(depth):
            setattr(self, f"block_{index}", Block(width, expansion * width, heads, compute, rngs))
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.last = nnx.Linear(width, num_classes, use_bias=False, dtype=compute, rngs=rngs)

    def __call__(self, tokens: Array, *, masks: Sequence[Array | None] | None = None) -> dict[str, Any]:
        masks = [None] * self.depth if masks is None else masks
        h = self.words(tokens) + self.places(jnp.arange(tokens.shape[1]))
        hidden = [h]
        for index, mask in enumerate(masks):
            h = getattr(self, f"block_{index}")(h)
            h = h if mask is None else h * jnp.asarray(mask, h.dtype)
            hidden.append(h)
        features = self.norm(h)
        return {
            "logits": self.last(features).astype(jnp.float32),
            "features": features,
            "penultimate": hidden[-2],
            "hidden": tuple(hidden[1:]),
        }
