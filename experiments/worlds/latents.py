"""Latents of another world under a small autoencoder, standardised, with impulsive outliers in the training set."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from experiments import worlds
from experiments.engine.errors import UserError
from experiments.worlds import InMemory, Trained, World, Zeros

OUTLIER_STREAM = 0x0071
ENCODE_BATCH = 1024


def build(config: ml_collections.ConfigDict, trained: Trained) -> World:
    """Encodes the world of `config.autoencoder.data`; each channel has mean 0 and standard deviation `config.std`.

    `outlier_fraction` of the entries of the training set are multiplied by `outlier_factor`; the test set stays clean.
    """
    from experiments.tasks import autoencoding

    if not 0 <= config.outlier_fraction <= 1:
        raise UserError(f"config.data.outlier_fraction must be in [0, 1], got {config.outlier_fraction}")
    if config.outlier_seed < 0:
        raise UserError(f"config.data.outlier_seed must be >= 0, got {config.outlier_seed}")
    coder = autoencoding.coder(trained(config.autoencoder))
    base = worlds.build(config.autoencoder.data, trained)
    train_latents, test_latents = (_encode(coder.encode, base, split) for split in (base.train, base.test))
    axes = tuple(range(train_latents.ndim - 1))
    # In float64: a channel that is constant must come out with no spread at all.
    mean, spread = train_latents.mean(axes, dtype=np.float64), train_latents.std(axes, dtype=np.float64)
    # A channel that the autoencoder leaves unused stays at 0 instead of being blown up.
    scale = np.where(spread > 1e-6, config.std / np.maximum(spread, 1e-6), 0.0)
    train_latents, test_latents = (train_latents - mean) * scale, (test_latents - mean) * scale

    generator = np.random.default_rng([OUTLIER_STREAM, config.outlier_seed])
    struck = generator.random(train_latents.shape) < config.outlier_fraction
    train_latents = np.where(struck, config.outlier_factor * train_latents, train_latents).astype(np.float32)
    unscale = np.where(scale > 0, 1 / np.where(scale > 0, scale, 1), 0.0).astype(np.float32)
    decode = jax.jit(coder.decode)
    return World(
        train=InMemory({**_others(base.train), "image": train_latents}),
        test=InMemory({**_others(base.test), "image": test_latents.astype(np.float32)}),
        example_shape=train_latents.shape[1:],
        num_classes=base.num_classes,
        to_model=lambda raw: raw.astype(jnp.float32),
        to_pixels=lambda latents: base.to_pixels(decode(latents * unscale + mean.astype(np.float32))),
    )


def describe(config: ml_collections.ConfigDict, trained: Trained) -> World:
    """The same world with zeros for latents; of the autoencoder only the shapes are looked at."""
    from experiments.tasks import autoencoding

    run = trained(config.autoencoder)
    base = worlds.describe(config.autoencoder.data, trained)

    def encode(state: Any, images: jax.Array) -> jax.Array:
        return autoencoding.coder(run._replace(state=state)).encode(images)

    images = jax.ShapeDtypeStruct((1, *base.example_shape), np.float32)
    shape = jax.eval_shape(encode, run.state, images).shape[1:]
    others = {
        name: jax.ShapeDtypeStruct(values.shape[1:], values.dtype) for name, values in _others(base.train).items()
    }
    zeros = Zeros({"image": jax.ShapeDtypeStruct(shape, np.float32), **others}, len(base.train))
    return World(
        train=zeros,
        test=zeros,
        example_shape=shape,
        num_classes=base.num_classes,
        to_model=lambda raw: raw.astype(jnp.float32),
        to_pixels=base.to_pixels,
    )


def _others(split: worlds.Split) -> Mapping[str, np.ndarray]:
    """What a split holds beside its images: labels, where it has them."""
    if split.examples is None:
        raise UserError("config.data: latents need a set that fits in memory (raise data.resident_bytes)")
    return {name: values for name, values in split.examples.items() if name != "image"}


def _encode(encode, base: World, split: worlds.Split) -> np.ndarray:
    compiled = jax.jit(lambda raw: encode(base.to_model(raw)))
    blocks = [np.arange(i, min(i + ENCODE_BATCH, len(split))) for i in range(0, len(split), ENCODE_BATCH)]
    return np.concatenate([np.asarray(compiled(split.read(block)["image"])) for block in blocks])
