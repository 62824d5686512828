"""Scenes for tests: every description of one object, and comparison of descriptions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.worlds import scenes
from tests.experiments.models.helpers import quickly

# Detecting and drawing is arithmetic: eight times as fast as in programs compiled quickly, for a third of a second more.
optimized = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 2})

FIELDS = ("shape", "color", "size", "style", "present", "background")


def single(row=(0, 0, 1, 0), position=(0.5, 0.5), background=0):
    """One object."""
    values = [jnp.array([value]) for value in row]
    return scenes.Scene(*values, jnp.array([position], jnp.float32), jnp.array([True]), jnp.asarray(background))


@functools.cache
def _drawer(**settings):
    return quickly(jax.vmap(functools.partial(scenes.draw, **settings)))


@functools.cache
def _single_drawer(grid):
    return quickly(jax.vmap(lambda key, row: scenes.draw(key, row[None], grid=grid)))


def every_single(seed=0, grid=1):
    """All 900 combinations of shape, colour, size, style and ground, each at a random place."""
    rows = np.repeat(scenes.combinations(), len(scenes.BACKGROUNDS), axis=0)
    grounds = np.tile(np.arange(len(scenes.BACKGROUNDS)), len(scenes.combinations()))
    keys = jax.random.split(jax.random.key(seed), len(rows))
    return _single_drawer(grid)(keys, rows)._replace(background=grounds)


def many(count, seed=0, rows=None, **settings):
    drawer = _drawer if rows is None else functools.partial(_drawer.__wrapped__, rows=rows)
    return drawer(**settings)(jax.random.split(jax.random.key(seed), count))


CHUNK = 100


@functools.cache
def _detector(objects):
    return optimized(lambda pictures: scenes.detect(pictures, objects=objects))


def detected(pictures, objects):
    """What the detector finds in pictures [N, S, S, 3], rounded to 8 bits; one program for each size."""
    pictures = np.round(np.asarray(pictures) * 255) / np.float32(255)
    blocks = [pictures[first : first + CHUNK] for first in range(0, len(pictures), CHUNK)]
    padded = [np.pad(block, ((0, CHUNK - len(block)), (0, 0), (0, 0), (0, 0))) for block in blocks]
    parts = [jax.tree.map(np.asarray, _detector(objects)(block)) for block in padded]
    return jax.tree.map(lambda *x: np.concatenate(x)[: len(pictures)], *parts)


@functools.cache
def _renderer(size):
    return optimized(lambda batch: scenes.render(batch, size))


def pictures_of(batch, size):
    return np.asarray(_renderer(size)(batch))


def seen(batch, size, objects=None):
    """What the detector finds in the renderings of scenes."""
    return detected(pictures_of(batch, size), objects or batch.shape.shape[-1])


def differing(first, second, fields=FIELDS):
    """Indices of scenes [N, ...] that differ in a field."""
    different = np.zeros(len(first.background), bool)
    for name in fields:
        ours, theirs = (np.asarray(getattr(scene, name)) for scene in (first, second))
        unequal = ours != theirs
        different |= unequal.reshape(len(unequal), -1).any(1)
    return np.flatnonzero(different)
