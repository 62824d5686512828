"""A small decoder-only language model with rotary positions, and a cache for reading a text token by token."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from experiments.models import layers

Cache = dict[str, tuple[Array, Array]]  # keys and values [B, L, heads, D] of each block


class _Block(nnx.Module):
    """Causal attention and two dense layers, each beside a shortcut and after a norm."""

    def __init__(
        self, layer: int, width: int, inner: int, *, heads: int, dropout: float, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        self.layer, self.heads, self.rate = layer, heads, dropout
        self.norm_attention = nnx.RMSNorm(width, rngs=rngs)
        self.attend = layers.dense(width, 3 * width, outputs_hold="heads", use_bias=False, dtype=dtype, rngs=rngs)
        self.project = layers.dense(width, width, inputs_hold="heads", use_bias=False, dtype=dtype, rngs=rngs)
        self.norm_dense = nnx.RMSNorm(width, rngs=rngs)
        self.first = layers.dense(width, inner, outputs_hold="hidden", use_bias=False, dtype=dtype, rngs=rngs)
        self.second = layers.dense(inner, width, inputs_hold="hidden", use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, h: Array, keys: Array | None) -> Array:
        query, key, value = self._by_head(h, jnp.arange(h.shape[1]))
        attended = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        return self._dense(self._attended(h, attended, keys), keys)

    def extend(self, h: Array, cached: tuple[Array, Array], first: Array | int) -> tuple[Array, tuple[Array, Array]]:
        """The same for the tokens from place `first` on, of which earlier ones are in the cache."""
        places = first + jnp.arange(h.shape[1])
        query, *new = self._by_head(h, places)
        key, value = (
            jax.lax.dynamic_update_slice_in_dim(old, some, first, axis=1) for old, some in zip(cached, new, strict=True)
        )
        seen = jnp.arange(key.shape[1]) <= places[:, None]
        attended = jax.nn.dot_product_attention(query, key, value, mask=seen[None, None])
        return self._dense(self._attended(h, attended, None), None), (key, value)

    def _by_head(self, h: Array, places: Array) -> tuple[Array, Array, Array]:
        """Query and key, turned by their places, and value: [B, T, heads, D]."""
        by_head = self.attend(self.norm_attention(h)).reshape(*h.shape[:2], self.heads, -1)
        query, key, value = jnp.split(by_head, 3, axis=-1)
        return layers.rotary(query, places), layers.rotary(key, places), value

    def _attended(self, h: Array, attended: Array, keys: Array | None) -> Array:
        return h + layers.dropout(self.project(attended.reshape(h.shape)), keys, self.rate, 2 * self.layer)

    def _dense(self, h: Array, keys: Array | None) -> Array:
        inner = self.second(nnx.gelu(self.first(self.norm_dense(h))))
        return h + layers.dropout(inner, keys, self.rate, 2 * self.layer + 1)


class LanguageModel(nnx.Module):
    """int tokens [B, T] -> {"logits" [B, T, V] of the next token, "features" [B, T, width], normalised}.

    `num_classes` is the vocabulary V. Positions enter by rotation alone, so T is as long as it is; `keys`, one an example,
    switch dropout on. Padding on the right changes nothing before it. `tie_weights` makes the embedding of words the
    last layer too.
    """

    def __init__(
        self,
        *,
        example_shape: tuple[int, ...],
        num_classes: int,
        rngs: nnx.Rngs,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        expansion: int = 4,
        dropout: float = 0.0,
        tie_weights: bool = True,
        dtype: str = "float32",
    ):
        del example_shape
        if width % (2 * heads):
            raise ValueError(f"model.width must be a multiple of twice model.heads {heads}, got {width}")
        compute = jnp.dtype(dtype)
        self.depth, self.heads, self.head_width, self.compute = depth, heads, width // heads, compute
        self.words = nnx.Embed(num_classes, width, dtype=compute, rngs=rngs)
        for index in range(depth):
            settings: dict[str, Any] = {"heads": heads, "dropout": dropout, "dtype": compute, "rngs": rngs}
            setattr(self, f"block_{index}", _Block(index, width, expansion * width, **settings))
        self.norm = nnx.RMSNorm(width, rngs=rngs)
        self.tied = tie_weights
        if not tie_weights:
            self.last = nnx.Linear(width, num_classes, use_bias=False, dtype=compute, rngs=rngs)

    def __call__(self, tokens: Array, *, keys: Array | None = None) -> dict[str, Any]:
        h = self.words(tokens)
        for index in range(self.depth):
            h = getattr(self, f"block_{index}")(h, keys)
        return self._outputs(h)

    def empty_cache(self, batch: int, length: int) -> Cache:
        """Room for `length` tokens of each of `batch` texts, none of them read yet."""
        shape = (batch, length, self.heads, self.head_width)
        nothing = jnp.zeros(shape, self.compute)
        return {f"block_{index}": (nothing, nothing) for index in range(self.depth)}

    def extend(self, tokens: Array, cache: Cache, first: Array | int) -> dict[str, Any]:
        """Reads tokens [B, S] that stand from place `first` on, after those in the cache; gives "cache" with them too."""
        h, filled = self.words(tokens), {}
        for name, cached in cache.items():
            h, filled[name] = getattr(self, name).extend(h, cached, first)
        return {**self._outputs(h), "cache": filled}

    def _outputs(self, h: Array) -> dict[str, Any]:
        features = self.norm(h)
        logits = self.words.attend(features) if self.tied else self.last(features)
        return {"logits": logits.astype(jnp.float32), "features": features}
