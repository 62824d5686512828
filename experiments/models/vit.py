"""A small vision transformer whose inner features are a result, not a hook."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from experiments.models import layers
from experiments.models.transformer import Block
from mlfuncs import vision


def patch_sizes(name: str, example_shape: tuple[int, ...], patch: int, width: int, heads: int) -> tuple[int, int]:
    """How many patches an image [H, W, C] has, and values a patch; a ValueError where they or the heads do not fit."""
    if len(example_shape) != 3:
        raise ValueError(f"model.name {name!r} needs images [H, W, C], got examples of shape {tuple(example_shape)}")
    height, breadth, channels = example_shape
    if height % patch or breadth % patch:
        raise ValueError(f"model.patch must divide images of {height} x {breadth}, got {patch}")
    if width % heads:
        raise ValueError(f"model.width must be a multiple of model.heads {heads}, got {width}")
    return (height // patch) * (breadth // patch), patch * patch * channels


class VisionTransformer(nnx.Module):
    """x [B, H, W, C] -> {"logits" [B, num_classes], "features" [B, width], "hidden"}.

    "hidden" are the tokens [B, P, width] after every block, each under the last norm, row by row of the patch grid;
    "features" is the mean of the last of them over patches. With `repeats` the stack of `depth` blocks is run through so
    many times with the same weights.
    """

    def __init__(
        self,
        *,
        example_shape: tuple[int, ...],
        num_classes: int,
        rngs: nnx.Rngs,
        width: int = 64,
        depth: int = 4,
        heads: int = 4,
        patch: int = 2,
        expansion: int = 4,
        repeats: int = 1,
        dtype: str = "float32",
    ):
        patches, values = patch_sizes("vit", example_shape, patch, width, heads)
        compute = jnp.dtype(dtype)
        self.depth, self.patch, self.repeats = depth, patch, repeats
        self.embed = nnx.Linear(values, width, dtype=compute, rngs=rngs)
        self.places = nnx.Embed(patches, width, dtype=compute, rngs=rngs)
        for index in range(depth):
            setattr(self, f"block_{index}", Block(width, expansion * width, heads, compute, rngs))
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.last = layers.dense(width, num_classes, inputs_hold="hidden", dtype=compute, rngs=rngs)

    def __call__(self, x: Array) -> dict[str, Any]:
        tokens = vision.patchify(x, patch=self.patch)
        h = self.embed(tokens) + self.places(jnp.arange(tokens.shape[1]))

        def stack(h: Array, _: None) -> tuple[Array, tuple[Array, ...]]:
            hidden = []
            for index in range(self.depth):
                h = getattr(self, f"block_{index}")(h, causal=False)
                hidden.append(self.norm(h).astype(jnp.float32))
            return h, tuple(hidden)

        # A loop, so that a program does not grow with the repeats.
        _, seen = jax.lax.scan(stack, h, length=self.repeats, unroll=self.repeats == 1)
        hidden = [block[turn] for turn in range(self.repeats) for block in seen]
        features = jnp.mean(hidden[-1], axis=1)
        return {"logits": self.last(features).astype(jnp.float32), "features": features, "hidden": tuple(hidden)}
