"""How networks hear captions: tokens become states, and layers of an image attend to them, as the caller likes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax import Array

from experiments.models import layers
from experiments.models.transformer import Block
from mlfuncs.attention import scaled_dot_product_attention

PAD = 0  # the token that is not attended to

# (layer, query [B, heads, N, D], key [B, heads, L, D], value, mask=bool [B, L]) -> [B, heads, N, D] or [B, N, heads D];
# with negative tokens also negative_key, negative_value and negative_mask.
Attention = Callable[..., Array]


class Prompt(NamedTuple):
    """Captions as layers attend to them."""

    states: Array  # [B, L, width]
    mask: Array  # bool [B, L], False for padding


class Prompts(NamedTuple):
    """What all cross-attention layers of a pass share."""

    positive: Prompt
    negative: Prompt | None = None


class Readings(NamedTuple):
    """What a network shows of a pass, by the name of the block; row-major queries where blocks hold images."""

    maps: dict[
        str, Array
    ]  # [B, heads, queries, tokens]: the plain weights of each cross-attention, whatever replaced it
    features: dict[str, Array]  # what comes out of each block


class TokenEncoder(nnx.Module):
    """int tokens [B, L] -> Prompt. Words and places, and blocks of self-attention that padding takes no part in."""

    def __init__(
        self, vocabulary: int, length: int, width: int, *, depth: int, heads: int, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        if isinstance(depth, bool) or not isinstance(depth, int) or depth < 0:
            raise ValueError(f"model.token_depth must be whole and >= 0, got {depth!r}")
        if width % heads:
            raise ValueError(f"model.token_width must be a multiple of {heads} heads, got {width}")
        self.depth, self.length = depth, length
        self.words = nnx.Embed(vocabulary, width, dtype=dtype, rngs=rngs)
        self.places = nnx.Embed(length, width, dtype=dtype, rngs=rngs)
        for index in range(depth):
            setattr(self, f"block_{index}", Block(width, 2 * width, heads, dtype, rngs))
        self.norm = nnx.LayerNorm(width, rngs=rngs)

    def __call__(self, tokens: Array) -> Prompt:
        if tokens.ndim != 2 or not 1 <= tokens.shape[1] <= self.length or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ValueError(
                f"tokens must be int [B, L] with L in [1, {self.length}], got {tokens.dtype} of shape {tokens.shape}"
            )
        mask = tokens != PAD
        h = self.words(tokens) + self.places(jnp.arange(tokens.shape[1]))
        for index in range(self.depth):
            h = getattr(self, f"block_{index}")(h, causal=False, mask=mask)
        return Prompt(self.norm(h), mask)

    def prompts(self, tokens: Array, negative_tokens: Array | None) -> Prompts:
        return Prompts(self(tokens), None if negative_tokens is None else self(negative_tokens))


class CrossAttention(nnx.Module):
    """Features [B, N, C] of an image attend to prompts; zero until it is trained.

    Keys and values have no bias: they are linear in the states, and those of a negative prompt come from the same kernels.
    """

    def __init__(self, layer: str, channels: int, width: int, *, heads: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.layer, self.heads = layer, heads

        def projection(inputs: int) -> nnx.Linear:
            return layers.dense(inputs, channels, outputs_hold="heads", use_bias=False, dtype=dtype, rngs=rngs)

        self.query, self.key, self.value = projection(channels), projection(width), projection(width)
        self.project = layers.dense(
            channels, channels, inputs_hold="heads", dtype=dtype, kernel_init=layers.ZERO, rngs=rngs
        )

    def __call__(
        self, h: Array, prompts: Prompts, attention: Attention | None = None, read: bool = False
    ) -> tuple[Array, Array | None]:
        """What is to be added to `h`, and the attention weights [B, heads, N, L] if they are read."""
        query, (states, mask) = self._by_head(self.query(h)), prompts.positive
        key, value = self._by_head(self.key(states)), self._by_head(self.value(states))
        given: dict[str, Any] = {"mask": mask}
        if prompts.negative is not None:
            states, given["negative_mask"] = prompts.negative
            given["negative_key"] = self._by_head(self.key(states))
            given["negative_value"] = self._by_head(self.value(states))
        attended = (attention or plain_attention)(self.layer, query, key, value, **given)
        if attended.shape == query.shape:
            attended = jnp.moveaxis(attended, 1, 2).reshape(h.shape)
        elif attended.shape != h.shape:
            raise ValueError(f"attention must give {query.shape} or {h.shape} in {self.layer}, got {attended.shape}")
        return self.project(attended), attention_map(query, key, mask) if read else None

    def _by_head(self, x: Array) -> Array:
        """[B, N, heads D] -> [B, heads, N, D]."""
        return jnp.moveaxis(x.reshape(*x.shape[:2], self.heads, -1), 2, 1)


def plain_attention(layer: str, query: Array, key: Array, value: Array, *, mask: Array, **negative: Array) -> Array:
    """The attention that networks use where the caller gives none; it has no use for a negative prompt."""
    del layer, negative
    return scaled_dot_product_attention(query, key, value, mask[:, None, None])


def attention_map(query: Array, key: Array, mask: Array) -> Array:
    """Weights [B, heads, N, L] of the plain attention: 0 for padding, with sum 1 over the other tokens."""
    tokens = key.shape[-2]
    # Values that are one unit vector a token make the output the weights.
    return scaled_dot_product_attention(
        query, key, jnp.broadcast_to(jnp.eye(tokens), (*key.shape[:-1], tokens)), mask[:, None, None]
    )


def check(conditioned: bool, tokens: Array | None, negative_tokens: Array | None, attention: Attention | None) -> None:
    """Refuses prompts for a network that hears none, no prompt for one that does, and what would go unused."""
    if not conditioned and not (tokens is None and negative_tokens is None and attention is None):
        raise ValueError("tokens, negative_tokens and attention need a network with model.token_condition")
    if conditioned and tokens is None:
        raise ValueError("tokens must be given to a network with model.token_condition, got None")
    if negative_tokens is not None and attention is None:
        raise ValueError("negative_tokens need an attention that uses them, got None")
