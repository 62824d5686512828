"""Parts that the networks share. Everything random comes in as keys, one an example."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from mlfuncs import consistency

FREQUENCY_SEED = 0xF0
EPSILON = 1e-6  # of the group norm, flax's default


def dense(
    inputs: int, outputs: int, *, inputs_hold: str | None = None, outputs_hold: str | None = None, **settings: Any
) -> nnx.Linear:
    """A linear layer that says what its inputs or outputs hold, which a mesh may split: "hidden" features or "heads"."""
    layer: Any = nnx.Linear(inputs, outputs, **settings)
    bias = (("bias", (outputs_hold,)),) if settings.get("use_bias", True) else ()
    layer.axes = (("kernel", (inputs_hold, outputs_hold)), *bias)
    return layer


def dropout(x: Array, keys: Array | None, rate: float, layer: int) -> Array:
    """Drops values of x [B, ...] and rescales the rest; None or rate 0: x itself.

    The mask of an example is a function of its key and the layer, so it does not depend on the rest of the batch, and two
    passes with the same keys share their masks.
    """
    if keys is None or rate == 0:
        return x

    def keep(key: Array) -> Array:
        return jax.random.bernoulli(jax.random.fold_in(key, layer), 1 - rate, x.shape[1:])

    dropped = jnp.where(jax.vmap(keep)(keys), x / (1 - rate), 0).astype(x.dtype)
    # Apart from what takes it: with random numbers before convolutions, libtpu 0.0.52 did not end in 20 minutes.
    return jax.lax.optimization_barrier(dropped)


class FourierFeatures(nnx.Module):
    """Sines and cosines of a number per example, at fixed normal frequencies of standard deviation `scale`."""

    def __init__(self, features: int, scale: float):
        if features % 2:
            raise ValueError(f"model.fourier_features must be even, a sine and a cosine each, got {features}")
        generator = np.random.default_rng(FREQUENCY_SEED)
        # A tuple is static: the frequencies are constants of the graph, not parameters.
        self.frequencies = tuple((2 * np.pi * scale * generator.standard_normal(features // 2)).tolist())

    def __call__(self, value: Array) -> Array:
        angles = value[:, None] * jnp.asarray(self.frequencies, jnp.float32)
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class TimeEmbedding(nnx.Module):
    """The noise level, and the class where there are any, as a vector for every block. Label -1 is no class."""

    def __init__(self, width: int, *, features: int, scale: float, num_classes: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.fourier = FourierFeatures(features, scale)
        self.first = dense(features, width, outputs_hold="hidden", dtype=dtype, rngs=rngs)
        self.second = dense(width, width, inputs_hold="hidden", dtype=dtype, rngs=rngs)
        if num_classes:
            self.classes = nnx.Embed(num_classes, width, dtype=dtype, rngs=rngs)

    def __call__(self, c_noise: Array, labels: Array | None) -> Array:
        embedding = self.second(nnx.silu(self.first(self.fourier(c_noise))))
        if labels is not None:
            embedding = embedding + jnp.where(labels[:, None] >= 0, self.classes(labels), 0)
        return nnx.silu(embedding)


class LayerNorm(nnx.Module):
    """Layer norm over the last axis: `scaling` with a gain, `non_scaling` with a bias alone, `none` the identity."""

    def __init__(self, features: int, kind: str, rngs: nnx.Rngs):
        self.kind = kind
        if kind == "scaling":
            self.norm = nnx.LayerNorm(features, rngs=rngs)
        elif kind == "non_scaling":
            self.bias = nnx.Param(jnp.zeros(features))

    def __call__(self, x: Array) -> Array:
        if self.kind == "scaling":
            return self.norm(x).astype(x.dtype)
        return consistency.non_scaling_layer_norm(x, self.bias[...]) if self.kind == "non_scaling" else x


class GroupNorm(nnx.Module):
    """Group norm over images: `scaling` with a gain, `non_scaling` with a bias alone, `none` the identity."""

    def __init__(self, channels: int, kind: str, rngs: nnx.Rngs):
        del rngs
        self.kind = kind
        self.groups = next(g for g in range(min(32, max(1, channels // 4)), 0, -1) if channels % g == 0)
        if kind != "none":
            self.bias = nnx.Param(jnp.zeros(channels))
        if kind == "scaling":
            self.scale = nnx.Param(jnp.ones(channels))

    def __call__(self, x: Array) -> Array:
        if self.kind == "none":
            return x
        wide = x.astype(jnp.float32)

        # First over pixels, then over the channels of a group: on CPUs seven times as fast as flax's one reduction.
        def over_group(values: Array) -> Array:
            means = jnp.mean(values, axis=(1, 2)).reshape(x.shape[0], self.groups, -1).mean(-1)
            return jnp.repeat(means, x.shape[-1] // self.groups, axis=-1)

        mean = over_group(wide)
        variance = jnp.maximum(over_group(wide**2) - mean**2, 0)
        gain = jax.lax.rsqrt(variance + EPSILON)
        if self.kind == "scaling":
            gain = gain * self.scale[...]
        shift = self.bias[...] - mean * gain
        return (wide * gain[:, None, None] + shift[:, None, None]).astype(x.dtype)


class Modulation(nnx.Module):
    """How a block hears the time embedding: added, or as scale and shift of normalised features.

    Under a norm without gain the factor (1 + scale) is left out too.
    """

    def __init__(self, features: int, embedding: int, *, kind: str, norm: str, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.scales = kind == "scale_shift" and norm != "non_scaling"
        self.dense = nnx.Linear(embedding, features * (2 if self.scales else 1), dtype=dtype, rngs=rngs)

    def __call__(self, x: Array, embedding: Array) -> Array:
        shift = self.dense(embedding)
        shift = shift.reshape(shift.shape[0], *[1] * (x.ndim - 2), shift.shape[-1])
        if not self.scales:
            return x + shift
        scale, shift = jnp.split(shift, 2, axis=-1)
        return x * (1 + scale) + shift


def attention(by_head: Array, *, causal: bool = False, mask: Array | None = None) -> Array:
    """Multi-head attention among T tokens: [B, T, heads, 3 D], each head's query, key and value, -> [B, T, heads D].

    Tokens whose `mask`, bool [B, T], is False are seen by none.
    """
    query, key, value = jnp.split(by_head, 3, axis=-1)
    seen = None if mask is None else mask[:, None, None]
    return jax.nn.dot_product_attention(query, key, value, mask=seen, is_causal=causal).reshape(*by_head.shape[:2], -1)


def rotary(x: Array, places: Array, *, base: float = 10_000.0) -> Array:
    """Queries or keys x [B, T, heads, D], D even, each pair of features turned by an angle in proportion to its place [T].

    The product of two then depends on how far they are apart, not on where they stand (Su et al., arXiv:2104.09864).
    """
    half = x.shape[-1] // 2
    angles = places[:, None].astype(jnp.float32) * base ** (-jnp.arange(half) / half)
    cosine, sine = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    one, other = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([one * cosine - other * sine, one * sine + other * cosine], axis=-1).astype(x.dtype)


LECUN: Callable[..., Array] = nnx.initializers.lecun_normal()
ZERO: Callable[..., Array] = nnx.initializers.zeros_init()
