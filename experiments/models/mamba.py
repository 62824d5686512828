"""A small stack of Mamba blocks that reads a series, or an image row by row."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from experiments.models import layers
from mlfuncs import attention

TAPS = 4  # of the causal convolution
LEAST_STEP, MOST_STEP = 1e-3, 1e-1  # between which the first step sizes lie


class MambaBlock(nnx.Module):
    """A gated selective state space beside a shortcut, after a norm: h [B, T, width] -> the same."""

    def __init__(self, width: int, states: int, expansion: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        inner, self.rank, self.states = expansion * width, math.ceil(width / 16), states
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.enter = nnx.Linear(width, 2 * inner, use_bias=False, dtype=dtype, rngs=rngs)
        self.taps = nnx.Param(nnx.initializers.uniform(1.0)(rngs.params(), (TAPS, inner)) - 0.5)
        self.tap_bias = nnx.Param(jnp.zeros(inner))
        self.select = nnx.Linear(inner, self.rank + 2 * states, use_bias=False, dtype=dtype, rngs=rngs)
        self.step = nnx.Linear(self.rank, inner, use_bias=False, dtype=dtype, rngs=rngs)
        spread = jax.random.uniform(rngs.params(), (inner,))
        first = jnp.exp(math.log(LEAST_STEP) + spread * math.log(MOST_STEP / LEAST_STEP))
        self.step_bias = nnx.Param(jnp.log(jnp.expm1(first)))  # the inverse of softplus
        self.log_rate = nnx.Param(jnp.log(jnp.tile(jnp.arange(1.0, states + 1), (inner, 1))))
        self.skip = nnx.Param(jnp.ones(inner))
        self.leave = nnx.Linear(inner, width, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, h: Array) -> Array:
        x, gate = jnp.split(self.enter(self.norm(h)), 2, axis=-1)
        early = jnp.pad(x, ((0, 0), (TAPS - 1, 0), (0, 0)))
        seen = sum((early[:, tap : tap + x.shape[1]] * self.taps[...][tap] for tap in range(TAPS)), self.tap_bias[...])
        x = nnx.silu(seen).astype(x.dtype)
        low, into, out = jnp.split(self.select(x), (self.rank, self.rank + self.states), axis=-1)
        y: Any = attention.selective_scan(
            x,
            self.step(low),
            -jnp.exp(self.log_rate[...]),
            into,
            out,
            skip=self.skip[...],
            gate=gate,
            delta_bias=self.step_bias[...],
        )
        return h + self.leave(y)


class Mamba(nnx.Module):
    """x [B, T, ...] -> {"logits" [B, num_classes], "features" [B, width]}, the features being the mean over steps.

    What follows the axis of steps is one: the rows of images [B, H, W, C] are H steps of W C values.
    """

    def __init__(
        self,
        *,
        example_shape: tuple[int, ...],
        num_classes: int,
        rngs: nnx.Rngs,
        width: int = 64,
        depth: int = 2,
        states: int = 16,
        expansion: int = 2,
        dtype: str = "float32",
    ):
        if len(example_shape) < 2:
            raise ValueError(f"model.name 'mamba' needs series [T, ...], got examples of shape {tuple(example_shape)}")
        compute = jnp.dtype(dtype)
        self.depth = depth
        self.embed = nnx.Linear(math.prod(example_shape[1:]), width, dtype=compute, rngs=rngs)
        for index in range(depth):
            setattr(self, f"block_{index}", MambaBlock(width, states, expansion, compute, rngs))
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.last = layers.dense(width, num_classes, inputs_hold="hidden", dtype=compute, rngs=rngs)

    def __call__(self, x: Array) -> dict[str, Any]:
        h = self.embed(x.reshape(*x.shape[:2], -1))
        for index in range(self.depth):
            h = getattr(self, f"block_{index}")(h)
        features = jnp.mean(self.norm(h).astype(jnp.float32), axis=1)
        return {"logits": self.last(features).astype(jnp.float32), "features": features}
