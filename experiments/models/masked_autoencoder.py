"""A masked autoencoder of images: an encoder of the patches that are seen, and decoders for all of them."""

import jax.numpy as jnp
from flax import nnx
from jax import Array

from experiments.models import layers
from experiments.models.transformer import Block
from experiments.models.vit import patch_sizes
from mlfuncs import vision


class Stack(nnx.Module):
    """Transformer blocks and a last norm, [B, T, width] -> [B, T, width]."""

    def __init__(self, width: int, depth: int, heads: int, expansion: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.depth = depth
        for index in range(depth):
            setattr(self, f"block_{index}", Block(width, expansion * width, heads, dtype, rngs))
        self.norm = nnx.LayerNorm(width, rngs=rngs)

    def __call__(self, h: Array) -> Array:
        for index in range(self.depth):
            h = getattr(self, f"block_{index}")(h, causal=False)
        return self.norm(h)


class MaskedAutoencoder(nnx.Module):
    """x [B, H, W, C], bool mask [B, P] -> {"pixels" [B, P, p * p * C], "difficulty" [B, P], "features"}.

    Patches stand in their natural order, row by row. Where the mask is True they are `hidden` from the encoder, as many in
    every image; "features" [B, P - hidden, width] are what it says of the others, in their order. "pixels" are those of all
    patches, rows first, then columns, then channels, and "difficulty" is a number for each, from a decoder of its own.
    """

    def __init__(
        self,
        *,
        example_shape: tuple[int, ...],
        num_classes: int,
        rngs: nnx.Rngs,
        width: int = 64,
        depth: int = 2,
        decoder_depth: int = 1,
        heads: int = 4,
        patch: int = 4,
        expansion: int = 4,
        dtype: str = "float32",
    ):
        del num_classes  # it knows no labels
        patches, pixels = patch_sizes("masked_autoencoder", example_shape, patch, width, heads)
        compute = jnp.dtype(dtype)
        self.patch = patch
        self.embed = nnx.Linear(pixels, width, dtype=compute, rngs=rngs)
        self.places = nnx.Embed(patches, width, dtype=compute, rngs=rngs)
        self.decoder_places = nnx.Embed(patches, width, dtype=compute, rngs=rngs)
        self.unseen = nnx.Param(0.02 * nnx.initializers.normal(1.0)(rngs.params(), (width,)))
        self.encoder = Stack(width, depth, heads, expansion, compute, rngs)
        self.reconstructor = Stack(width, decoder_depth, heads, expansion, compute, rngs)
        self.predictor = Stack(width, decoder_depth, heads, expansion, compute, rngs)
        self.to_pixels = layers.dense(width, pixels, inputs_hold="hidden", dtype=compute, rngs=rngs)
        self.to_difficulty = layers.dense(width, 1, inputs_hold="hidden", dtype=compute, rngs=rngs)

    def encode(self, x: Array, mask: Array | None = None, *, hidden: int = 0) -> tuple[Array, Array]:
        """Features of the patches that are seen, [B, P - hidden, width], and their places, int [B, P - hidden]."""
        tokens = vision.patchify(x, patch=self.patch, channels_last=True)
        mask = jnp.zeros(tokens.shape[:2], bool) if mask is None else mask
        seen = jnp.argsort(mask, axis=1, stable=True)[:, : tokens.shape[1] - hidden]
        h = self.embed(jnp.take_along_axis(tokens, seen[..., None], axis=1)) + self.places(seen)
        return self.encoder(h), seen

    def predict(self, features: Array, seen: Array) -> Array:
        """How hard all patches are to fill in, [B, P]."""
        return self.to_difficulty(self.predictor(self.spread(features, seen)))[..., 0].astype(jnp.float32)

    def spread(self, features: Array, seen: Array) -> Array:
        """Features at their places, and one vector for all that are unseen elsewhere, [B, P, width]."""
        places = self.decoder_places.embedding[...]
        empty = jnp.broadcast_to(self.unseen[...], (features.shape[0], *places.shape)).astype(features.dtype)
        return empty.at[jnp.arange(features.shape[0])[:, None], seen].set(features) + places.astype(features.dtype)

    def difficulty(self, x: Array) -> Array:
        """The same of whole images."""
        return self.predict(*self.encode(x))

    def __call__(self, x: Array, mask: Array, *, hidden: int) -> dict[str, Array]:
        features, seen = self.encode(x, mask, hidden=hidden)
        pixels = self.to_pixels(self.reconstructor(self.spread(features, seen)))
        return {
            "pixels": pixels.astype(jnp.float32),
            "difficulty": self.predict(features, seen),
            "features": features.astype(jnp.float32),
        }
