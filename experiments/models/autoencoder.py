"""A dense autoencoder for small images."""

import math

import jax.numpy as jnp
from flax import nnx
from jax import Array

from experiments.models import layers


class Autoencoder(nnx.Module):
    """x [B, ...] -> {"reconstruction" like x, "latent" [B, latent]}; `decode(latent)` goes back."""

    def __init__(
        self,
        *,
        example_shape: tuple[int, ...],
        num_classes: int,
        rngs: nnx.Rngs,
        width: int = 64,
        latent: int = 16,
        dtype: str = "float32",
    ):
        del num_classes
        size, compute = math.prod(example_shape), jnp.dtype(dtype)
        self.shape = tuple(example_shape)
        self.encoder_in = layers.dense(size, width, outputs_hold="hidden", dtype=compute, rngs=rngs)
        self.encoder_out = layers.dense(width, latent, inputs_hold="hidden", dtype=compute, rngs=rngs)
        self.decoder_in = layers.dense(latent, width, outputs_hold="hidden", dtype=compute, rngs=rngs)
        self.decoder_out = layers.dense(width, size, inputs_hold="hidden", dtype=compute, rngs=rngs)

    def encode(self, x: Array) -> Array:
        hidden = nnx.silu(self.encoder_in(x.reshape(x.shape[0], -1)))
        return self.encoder_out(hidden).astype(jnp.float32)

    def decode(self, latent: Array) -> Array:
        hidden = nnx.silu(self.decoder_in(latent))
        return self.decoder_out(hidden).reshape(latent.shape[0], *self.shape).astype(jnp.float32)

    def __call__(self, x: Array) -> dict[str, Array]:
        latent = self.encode(x)
        return {"reconstruction": self.decode(latent), "latent": latent}
