"""Scenes for tests: every description of one object, and comparison of descriptions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.worlds import scenes
from tests.experiments.models.helpers import quickly

FIELDS = ("shape", "color", "size", "style", "present", "background")


def single(row=(0, 0, 1, 0), position=(0.5, 0.5), background=0):
    """One object."""
    values = [jnp.array([value]) for value in row]
    return scenes.Scene(*values, jnp.array([position], jnp.float32), jnp.array([True]), jnp.asarray(background))


def every_single(seed=0, grid=1):
    """All 900 combinations of shape, colour, size, style and ground, each at a random place."""
    rows = np.repeat(scenes.combinations(), len(scenes.BACKGROUNDS), axis=0)
    grounds = np.tile(np.arange(len(scenes.BACKGROUNDS)), len(scenes.combinations()))
    keys = jax.random.split(jax.random.key(seed), len(rows))
    drawn = quickly(jax.vmap(lambda key, row: scenes.draw(key, row[None], grid=grid)))(keys, jnp.asarray(rows))
    return drawn._replace(background=jnp.asarray(grounds))


def many(count, seed=0, **settings):
    return quickly(jax.vmap(lambda key: scenes.draw(key, **settings)))(jax.random.split(jax.random.key(seed), count))


@functools.cache
def _seen(size, objects, bits):
    def one(scene):
        picture = scenes.render(scene, size)
        return scenes.detect(jnp.round(picture * 255) / 255 if bits else picture, objects=objects)

    return jax.jit(lambda batch: jax.lax.map(one, batch, batch_size=64))


def seen(batch, size, objects=None, *, bits=False):
    """What the detector finds in the renderings of scenes."""
    return _seen(size, objects or batch.shape.shape[-1], bits)(batch)


def differing(first, second, fields=FIELDS):
    """Indices of scenes [N, ...] that differ in a field."""
    different = np.zeros(len(first.background), bool)
    for name in fields:
        ours, theirs = (np.asarray(getattr(scene, name)) for scene in (first, second))
        unequal = ours != theirs
        different |= unequal.reshape(len(unequal), -1).any(1)
    return np.flatnonzero(different)
