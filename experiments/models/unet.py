"""A U-Net for images of 8 to 64 pixels."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from experiments.models import layers, prompts
from experiments.models.convolution import Convolution


class _ResidualBlock(nnx.Module):
    """Two 3x3 convolutions beside a shortcut, modulated by the time embedding in between; attention to itself and to words.

    `cross` is the name of the layer that attends to words, empty where there is none.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int,
        layer: int,
        *,
        attends: bool,
        cross: str,
        token_width: int,
        heads: int,
        dropout: float,
        norm: str,
        time_conditioning: str,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.layer, self.rate, self.attends, self.hears, self.heads = layer, dropout, attends, bool(cross), heads
        self.norm_in = layers.GroupNorm(inputs, norm, rngs)
        self.first = Convolution(inputs, outputs, 3, dtype=dtype, rngs=rngs)
        self.norm_out = layers.GroupNorm(outputs, norm, rngs)
        self.modulation = layers.Modulation(
            outputs, embedding, kind=time_conditioning, norm=norm, dtype=dtype, rngs=rngs
        )
        self.second = Convolution(outputs, outputs, 3, dtype=dtype, kernel_init=layers.ZERO, rngs=rngs)
        self.shortcut = Convolution(inputs, outputs, 1, dtype=dtype, rngs=rngs) if inputs != outputs else None
        if attends:
            self.norm_attention = layers.GroupNorm(outputs, norm, rngs)
            self.attend = layers.dense(outputs, 3 * outputs, outputs_hold="heads", dtype=dtype, rngs=rngs)
            self.project = layers.dense(
                outputs, outputs, inputs_hold="heads", dtype=dtype, kernel_init=layers.ZERO, rngs=rngs
            )
        if cross:
            self.norm_cross = layers.GroupNorm(outputs, norm, rngs)
            self.cross = prompts.CrossAttention(cross, outputs, token_width, heads=heads, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Array,
        embedding: Array,
        keys: Array | None,
        heard: prompts.Prompts | None,
        attention: prompts.Attention | None,
        read: bool,
    ) -> tuple[Array, Array | None]:
        """Features, and the weights of the attention to words where there is one and they are read."""
        h = self.first(nnx.silu(self.norm_in(x)))
        h = nnx.silu(self.modulation(self.norm_out(h), embedding))
        h = self.second(layers.dropout(h, keys, self.rate, self.layer))
        h = h + (x if self.shortcut is None else self.shortcut(x))
        batch, height, width, channels = h.shape
        if self.attends:
            pixels = self.norm_attention(h).reshape(batch, height * width, channels)
            # The outputs are queries, keys and values of the first head, then of the second: a part of them is whole heads.
            by_head = self.attend(pixels).reshape(batch, height * width, self.heads, -1)
            h = h + self.project(layers.attention(by_head)).reshape(h.shape)
        if not self.hears or heard is None:
            return h, None
        pixels = self.norm_cross(h).reshape(batch, height * width, channels)
        added, weights = self.cross(pixels, heard, attention, read)
        return h + added.reshape(h.shape), weights


class UNet(nnx.Module):
    """x [B, H, W, C], c_noise [B] -> like x. Odd sizes are rounded up on the way down and cropped on the way up.

    With `token_condition` blocks at `cross_attention_resolutions` attend to captions, int `tokens` [B, L]. An `attention`
    (`prompts.Attention`) takes the place of theirs; with `read` the result is (output, `prompts.Readings`).
    """

    def __init__(
        self,
        *,
        example_shape: tuple[int, ...],
        num_classes: int,
        rngs: nnx.Rngs,
        channels: int = 64,
        channel_multipliers: Sequence[int] = (1, 2, 2),
        blocks_per_level: int = 2,
        attention_resolutions: Sequence[int] = (),
        head_channels: int = 0,
        fourier_scale: float = 16.0,
        dropout: float = 0.0,
        norm: str = "scaling",
        time_conditioning: str = "scale_shift",
        class_condition: bool = False,
        vocabulary: int = 0,
        token_length: int = 0,
        token_condition: bool = False,
        token_width: int = 64,
        token_depth: int = 1,
        cross_attention_resolutions: Sequence[int] = (),
        dtype: str = "float32",
        remat: bool = False,
    ):
        if len(example_shape) != 3:
            raise ValueError(f"model.name 'unet' needs images [H, W, C], got examples of shape {tuple(example_shape)}")
        compute, embedding = jnp.dtype(dtype), 4 * channels
        widths = [channels * multiplier for multiplier in channel_multipliers]
        if head_channels < 0 or (head_channels and any(width % head_channels for width in widths)):
            raise ValueError(
                f"model.head_channels must be 0 (one head) or divide the channels {widths}, got {head_channels}"
            )
        self.levels, self.blocks, self.remat = len(widths), blocks_per_level, remat
        self.embed = layers.TimeEmbedding(
            embedding,
            features=2 * channels,
            scale=fourier_scale,
            num_classes=num_classes if class_condition else 0,
            dtype=compute,
            rngs=rngs,
        )
        self.first = Convolution(example_shape[-1], channels, 3, dtype=compute, rngs=rngs)
        self.hears = token_condition
        if token_condition:
            self.tokens = prompts.TokenEncoder(
                vocabulary, token_length, token_width, depth=token_depth, heads=4, dtype=compute, rngs=rngs
            )

        count, hearing = 0, 0

        def block(name: str, inputs: int, outputs: int, size: int) -> None:
            nonlocal count, hearing
            count += 1
            hears = token_condition and size in tuple(cross_attention_resolutions)
            hearing += hears
            module = _ResidualBlock(
                inputs,
                outputs,
                embedding,
                count,
                attends=size in tuple(attention_resolutions),
                cross=name if hears else "",
                token_width=token_width,
                heads=outputs // head_channels if head_channels else 1,
                dropout=dropout,
                norm=norm,
                time_conditioning=time_conditioning,
                dtype=compute,
                rngs=rngs,
            )
            setattr(self, name, module)

        sizes = [example_shape[0]]
        skips, current = [channels], channels
        for level, width in enumerate(widths):
            for index in range(blocks_per_level):
                block(f"down_{level}_{index}", current, width, sizes[-1])
                current = width
                skips.append(current)
            if level + 1 < self.levels:
                setattr(self, f"shrink_{level}", Convolution(current, current, 3, stride=2, dtype=compute, rngs=rngs))
                sizes.append((sizes[-1] + 1) // 2)
                skips.append(current)
        block("middle", current, current, sizes[-1])
        for level in reversed(range(self.levels)):
            for index in range(blocks_per_level + 1):
                block(f"up_{level}_{index}", current + skips.pop(), widths[level], sizes[level])
                current = widths[level]
            if level:
                setattr(self, f"grow_{level}", Convolution(current, current, 3, dtype=compute, rngs=rngs))
        if token_condition and not hearing:
            raise ValueError(
                f"model.cross_attention_resolutions must have some of the sizes {sizes} for captions to be heard, "
                f"got {tuple(cross_attention_resolutions)}"
            )
        self.norm = layers.GroupNorm(current, norm, rngs)
        # Zero at first: the untrained model is its skip connection, the best linear guess at every level.
        self.last = Convolution(current, example_shape[-1], 3, dtype=compute, kernel_init=layers.ZERO, rngs=rngs)

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
        seen = prompts.Readings({}, {})

        def run(name: str, h: Array) -> Array:
            block = getattr(self, name)

            def inside(block: _ResidualBlock, h: Array, embedding: Array, heard: prompts.Prompts | None) -> Any:
                return block(h, embedding, keys, heard, attention, read)

            if self.remat:
                # The block's parameters are closed over: only its inputs are kept, its inside is computed again.
                graph, params = nnx.split(block)
                merged = jax.checkpoint(lambda params, *given: inside(nnx.merge(graph, params), *given))
                h, weights = merged(params, h, embedding, heard)
            else:
                h, weights = inside(block, h, embedding, heard)
            seen.features[name] = h
            if weights is not None:
                seen.maps[name] = weights
            return h

        h = self.first(x)
        skips = [h]
        for level in range(self.levels):
            for index in range(self.blocks):
                h = run(f"down_{level}_{index}", h)
                skips.append(h)
            if level + 1 < self.levels:
                h = getattr(self, f"shrink_{level}")(h)
                skips.append(h)
        h = run("middle", h)
        for level in reversed(range(self.levels)):
            for index in range(self.blocks + 1):
                h = run(f"up_{level}_{index}", jnp.concatenate([h, skips.pop()], axis=-1))
            if level:
                height, width = skips[-1].shape[1:3]
                doubled = jnp.repeat(jnp.repeat(h, 2, axis=1), 2, axis=2)
                h = getattr(self, f"grow_{level}")(doubled[:, :height, :width])
        out = self.last(nnx.silu(self.norm(h))).astype(jnp.float32)
        return (out, seen) if read else out

    def encode(self, tokens: Array) -> prompts.Prompt:
        """The states that cross-attention projects to keys and values."""
        prompts.check(self.hears, tokens, None, None)
        return self.tokens(tokens)
