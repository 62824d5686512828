"""A U-Net for images of 8 to 64 pixels."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from experiments.models import layers
from experiments.models.convolution import Convolution


class _ResidualBlock(nnx.Module):
    """Two 3x3 convolutions beside a shortcut, modulated by the time embedding in between."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int,
        layer: int,
        *,
        attends: bool,
        heads: int,
        dropout: float,
        norm: str,
        time_conditioning: str,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.layer, self.rate, self.attends, self.heads = layer, dropout, attends, heads
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

    def __call__(self, x: Array, embedding: Array, keys: Array | None) -> Array:
        h = self.first(nnx.silu(self.norm_in(x)))
        h = nnx.silu(self.modulation(self.norm_out(h), embedding))
        h = self.second(layers.dropout(h, keys, self.rate, self.layer))
        h = h + (x if self.shortcut is None else self.shortcut(x))
        if not self.attends:
            return h
        batch, height, width, channels = h.shape
        tokens = self.norm_attention(h).reshape(batch, height * width, channels)
        # The outputs are queries, keys and values of the first head, then of the second: a part of them is whole heads.
        by_head = self.attend(tokens).reshape(batch, height * width, self.heads, -1)
        return h + self.project(layers.attention(by_head)).reshape(h.shape)


class UNet(nnx.Module):
    """x [B, H, W, C], c_noise [B] -> like x. Odd sizes are rounded up on the way down and cropped on the way up."""

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

        count = 0

        def block(inputs: int, outputs: int, size: int) -> _ResidualBlock:
            nonlocal count
            count += 1
            return _ResidualBlock(
                inputs,
                outputs,
                embedding,
                count,
                attends=size in tuple(attention_resolutions),
                heads=outputs // head_channels if head_channels else 1,
                dropout=dropout,
                norm=norm,
                time_conditioning=time_conditioning,
                dtype=compute,
                rngs=rngs,
            )

        sizes = [example_shape[0]]
        skips, current = [channels], channels
        for level, width in enumerate(widths):
            for index in range(blocks_per_level):
                setattr(self, f"down_{level}_{index}", block(current, width, sizes[-1]))
                current = width
                skips.append(current)
            if level + 1 < self.levels:
                setattr(self, f"shrink_{level}", Convolution(current, current, 3, stride=2, dtype=compute, rngs=rngs))
                sizes.append((sizes[-1] + 1) // 2)
                skips.append(current)
        self.middle = block(current, current, sizes[-1])
        for level in reversed(range(self.levels)):
            for index in range(blocks_per_level + 1):
                setattr(self, f"up_{level}_{index}", block(current + skips.pop(), widths[level], sizes[level]))
                current = widths[level]
            if level:
                setattr(self, f"grow_{level}", Convolution(current, current, 3, dtype=compute, rngs=rngs))
        self.norm = layers.GroupNorm(current, norm, rngs)
        # Zero at first: the untrained model is its skip connection, the best linear guess at every level.
        self.last = Convolution(current, example_shape[-1], 3, dtype=compute, kernel_init=layers.ZERO, rngs=rngs)

    def _run(self, block: _ResidualBlock) -> Callable[[Array, Array, Array | None], Array]:
        if not self.remat:
            return block
        # The block's parameters are closed over: only its inputs are kept, its inside is computed again.
        graph, params = nnx.split(block)
        return lambda x, embedding, keys: jax.checkpoint(
            lambda params, x, embedding: nnx.merge(graph, params)(x, embedding, keys)
        )(params, x, embedding)

    def __call__(self, x: Array, c_noise: Array, *, labels: Array | None = None, keys: Array | None = None) -> Array:
        embedding = self.embed(c_noise, labels)
        h = self.first(x)
        skips = [h]
        for level in range(self.levels):
            for index in range(self.blocks):
                h = self._run(getattr(self, f"down_{level}_{index}"))(h, embedding, keys)
                skips.append(h)
            if level + 1 < self.levels:
                h = getattr(self, f"shrink_{level}")(h)
                skips.append(h)
        h = self._run(self.middle)(h, embedding, keys)
        for level in reversed(range(self.levels)):
            for index in range(self.blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = self._run(getattr(self, f"up_{level}_{index}"))(h, embedding, keys)
            if level:
                height, width = skips[-1].shape[1:3]
                doubled = jnp.repeat(jnp.repeat(h, 2, axis=1), 2, axis=2)
                h = getattr(self, f"grow_{level}")(doubled[:, :height, :width])
        return self.last(nnx.silu(self.norm(h))).astype(jnp.float32)
