"""Pictures of scenes, and masks of their objects."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from experiments.worlds.scenes.description import RADII, REACH, Scene

SATURATION = 0.6  # difference between the channels of an object's colour
CHROMA = SATURATION * np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1], [1, 0, 1]], np.float32)


def grounds_of(size: int) -> np.ndarray:
    """[len(BACKGROUNDS), size, size] lightness."""
    centres = (np.arange(size) + 0.5) / size
    row, column = centres[:, None], centres[None]
    flat = np.ones((size, size))
    checkered = 0.25 + 0.5 * ((np.floor(8 * row) + np.floor(8 * column)) % 2)
    return np.stack([0.05 * flat, 0.5 * flat, 0.95 * flat, checkered, (0.15 + 0.7 * row) * flat]).astype(np.float32)


def _select(index: Array, choices: Sequence[Array]) -> Array:
    return jnp.select([index == number for number in range(len(choices))], choices)


def drawn(shape: Array, size: Array, style: Array, position: Array, pixels: int) -> tuple[Array, Array]:
    """Coverage and lightness [..., pixels, pixels] of single objects; both change over one pixel at an edge."""
    shape, style, radius = (x[..., None, None] for x in (shape, style, jnp.array(RADII)[jnp.maximum(size, 0)]))
    centres = (jnp.arange(pixels) + 0.5) / pixels
    y = centres[:, None] - position[..., 0, None, None]
    x = centres[None, :] - position[..., 1, None, None]
    down, across = jnp.abs(y), jnp.abs(x)
    arm, bar = radius, 0.4 * radius
    distance = _select(  # to the outline, below 0 inside
        shape,
        [
            jnp.sqrt(y**2 + x**2 + 1e-12) - radius,
            jnp.maximum(down, across) - 0.85 * radius,
            jnp.maximum(y, (jnp.sqrt(3.0) * across - y) / 2) - REACH / 2 * radius,
            (down + across - 1.1 * radius) / jnp.sqrt(2.0),
            jnp.minimum(
                jnp.maximum(down - arm, across - bar),
                jnp.maximum(down - bar, across - arm),
            ),
        ],
    )
    period = 1.5 * radius
    from_stripe = jnp.abs(jnp.mod(y + period / 2, period) - period / 2) + 0 * x
    coverage = jnp.clip(0.5 - pixels * distance, 0, 1)
    lightness = _select(
        style,
        [
            jnp.full_like(distance, 0.2),
            0.4 * jnp.clip(0.5 - pixels * (from_stripe - period / 4), 0, 1),
            0.4 * jnp.clip(0.5 - pixels * (distance + 0.2 * radius), 0, 1),
        ],
    )
    return coverage, lightness


def check_size(size: int) -> None:
    if isinstance(size, bool) or int(size) != size or size < 8:
        raise ValueError(f"size must be a whole number of pixels >= 8, got {size}")


def masks(scene: Scene, size: int, *, hidden: bool = False) -> Array:
    """[..., K, size, size]: how much of each pixel an object covers, in [0, 1]; with `hidden` also where others cover it."""
    check_size(size)
    return _layers(scene, size, hidden)[0]


@functools.partial(jax.jit, static_argnums=(1, 2))
def _layers(scene: Scene, size: int, hidden: bool) -> tuple[Array, Array]:
    shape, kind, style, position = (jnp.asarray(x) for x in (scene.shape, scene.size, scene.style, scene.position))
    coverage, lightness = drawn(shape, kind, style, position, size)
    coverage = jnp.where(jnp.asarray(scene.present)[..., None, None], coverage, 0.0)
    if not hidden:
        left = jnp.cumprod(jnp.flip(1 - coverage, -3), axis=-3)  # by the object itself and those over it
        over = jnp.concatenate([jnp.ones_like(left[..., :1, :, :]), left[..., :-1, :, :]], axis=-3)
        coverage = coverage * jnp.flip(over, -3)
    return coverage, lightness


def render(scene: Scene, size: int) -> Array:
    """The picture, floats [..., size, size, 3] in [0, 1]. Differentiable in the positions.

    Raises:
      ValueError: `size` is not a whole number >= 8. Shapes can be told apart from 16 pixels on.
    """
    check_size(size)
    return _render(scene, size)


@functools.partial(jax.jit, static_argnums=1)
def _render(scene: Scene, size: int) -> Array:
    visible, lightness = _layers(scene, size, False)
    paint = jnp.array(CHROMA)[jnp.maximum(scene.color, 0)][..., None, None, :] + lightness[..., None]
    ground = jnp.array(grounds_of(size))[jnp.maximum(scene.background, 0)]
    bare = 1 - jnp.sum(visible, axis=-3)
    return jnp.sum(visible[..., None] * paint, axis=-4) + (bare * ground)[..., None]
