"""A small diffusion transformer: patches of an image, blocks that the noise level scales, shifts and gates."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array

from experiments.models import layers, prompts


class _Block(nnx.Module):
    """Attention among patches, to words, and two dense layers, each beside a shortcut.

    Shift, scale and gate of the first and the last come from the embedding and are zero at first, as the attention to words
    is: an untrained block changes nothing.
    """

    def __init__(
        self,
        layer: int,
        width: int,
        inner: int,
        *,
        heads: int,
        token_width: int,
        dropout: float,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.layer, self.heads, self.rate = layer, heads, dropout
        self.modulation = nnx.Linear(width, 6 * width, dtype=dtype, kernel_init=layers.ZERO, rngs=rngs)
        self.attend = layers.dense(width, 3 * width, outputs_hold="heads", dtype=dtype, rngs=rngs)
        self.project = layers.dense(width, width, inputs_hold="heads", dtype=dtype, rngs=rngs)
        self.first = layers.dense(width, inner, outputs_hold="hidden", dtype=dtype, rngs=rngs)
        self.second = layers.dense(inner, width, inputs_hold="hidden", dtype=dtype, rngs=rngs)
        if token_width:
            self.norm_cross = nnx.LayerNorm(width, rngs=rngs)
            self.cross = prompts.CrossAttention(
                f"block_{layer}", width, token_width, heads=heads, dtype=dtype, rngs=rngs
            )

    def __call__(
        self,
        h: Array,
        embedding: Array,
        keys: Array | None,
        heard: prompts.Prompts | None,
        attention: prompts.Attention | None,
        read: bool,
    ) -> tuple[Array, Array | None]:
        vectors = self.modulation(embedding)[:, None]
        shift, scale, gate, shift_dense, scale_dense, gate_dense = jnp.split(vectors, 6, axis=-1)
        by_head = self.attend(_modulated(h, shift, scale)).reshape(*h.shape[:2], self.heads, -1)
        h = h + gate * self.project(layers.attention(by_head))
        weights = None
        if heard is not None:
            added, weights = self.cross(self.norm_cross(h).astype(h.dtype), heard, attention, read)
            h = h + added
        inner = nnx.gelu(self.first(_modulated(h, shift_dense, scale_dense)))
        return h + gate_dense * self.second(layers.dropout(inner, keys, self.rate, self.layer)), weights


def _modulated(h: Array, shift: Array, scale: Array) -> Array:
    """Layer norm without parameters of its own, then the embedding's."""
    wide = h.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    normed = centred / jnp.sqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + layers.EPSILON)
    return normed.astype(h.dtype) * (1 + scale) + shift


class DiT(nnx.Module):
    """x [B, H, W, C], c_noise [B] -> like x, as patches of side `patch`.

    With `token_condition` every block attends to captions, int `tokens` [B, L]. An `attention` (`prompts.Attention`) takes
    the place of theirs; with `read` the result is (output, `prompts.Readings`), queries being patches row by row.
    """

    def __init__(
        self,
        *,
        example_shape: tuple[int, ...],
        num_classes: int,
        rngs: nnx.Rngs,
        patch: int = 2,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        expansion: int = 4,
        fourier_scale: float = 16.0,
        dropout: float = 0.0,
        class_condition: bool = False,
        vocabulary: int = 0,
        token_length: int = 0,
        token_condition: bool = False,
        token_width: int = 64,
        token_depth: int = 1,
        dtype: str = "float32",
    ):
        if len(example_shape) != 3:
            raise ValueError(f"model.name 'dit' needs images [H, W, C], got examples of shape {tuple(example_shape)}")
        if any(side % patch for side in example_shape[:2]):
            raise ValueError(f"model.patch must divide the sides of images {tuple(example_shape[:2])}, got {patch}")
        if width % heads or width % 2:
            raise ValueError(f"model.width must be even and a multiple of model.heads {heads}, got {width}")
        compute = jnp.dtype(dtype)
        self.patch, self.depth, self.hears = patch, depth, token_condition
        values = patch * patch * example_shape[-1]
        patches = (example_shape[0] // patch) * (example_shape[1] // patch)
        self.embed = layers.TimeEmbedding(
            width,
            features=width,
            scale=fourier_scale,
            num_classes=num_classes if class_condition else 0,
            dtype=compute,
            rngs=rngs,
        )
        self.first = nnx.Linear(values, width, dtype=compute, rngs=rngs)
        self.places = nnx.Embed(patches, width, dtype=compute, rngs=rngs)
        if token_condition:
            self.tokens = prompts.TokenEncoder(
                vocabulary, token_length, token_width, depth=token_depth, heads=4, dtype=compute, rngs=rngs
            )
        for index in range(depth):
            block = _Block(
                index,
                width,
                expansion * width,
                heads=heads,
                token_width=token_width if token_condition else 0,
                dropout=dropout,
                dtype=compute,
                rngs=rngs,
            )
            setattr(self, f"block_{index}", block)
        self.modulation = nnx.Linear(width, 2 * width, dtype=compute, kernel_init=layers.ZERO, rngs=rngs)
        # Zero at first: the untrained model is its skip connection, the best linear guess at every level.
        self.last = nnx.Linear(width, values, dtype=compute, kernel_init=layers.ZERO, rngs=rngs)

    def __call__(
        self,
        x: Array,
        c_noise: Array,
        *,
        labels: Array | None = None,
        tokens: Array | None = None,
        negative_tokens: Array | None = None,
        attention: prompts.Attention | None = None,
        keys: Array | None = None,
        read: bool = False,
    ) -> Any:
        prompts.check(self.hears, tokens, negative_tokens, attention)
        heard = None if tokens is None else self.tokens.prompts(tokens, negative_tokens)
        embedding = self.embed(c_noise, labels)
        batch, height, width, channels = x.shape
        rows, columns, side = height // self.patch, width // self.patch, self.patch
        split = x.reshape(batch, rows, side, columns, side, channels).transpose(0, 1, 3, 2, 4, 5)
        h = self.first(split.reshape(batch, rows * columns, -1)) + self.places.embedding[...].astype(self.first.dtype)
        seen = prompts.Readings({}, {})
        for index in range(self.depth):
            name = f"block_{index}"
            h, weights = getattr(self, name)(h, embedding, keys, heard, attention, read)
            seen.features[name] = h
            if weights is not None:
                seen.maps[name] = weights
        shift, scale = jnp.split(self.modulation(embedding)[:, None], 2, axis=-1)
        out = self.last(_modulated(h, shift, scale)).astype(jnp.float32)
        whole = out.reshape(batch, rows, columns, side, side, channels).transpose(0, 1, 3, 2, 4, 5).reshape(x.shape)
        return (whole, seen) if read else whole

    def encode(self, tokens: Array) -> prompts.Prompt:
        """The states that cross-attention projects to keys and values."""
        prompts.check(self.hears, tokens, None, None)
        return self.tokens(tokens)
