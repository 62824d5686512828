"""The attributes of a scene, read back from its picture."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from experiments.worlds.scenes.description import COLORS, SHAPES, SIZES, STYLES, Scene, place
from experiments.worlds.scenes.pictures import CHROMA, check_size, drawn, grounds_of

_HUES = CHROMA - CHROMA.mean(1, keepdims=True)  # all of one length
_HUE = float(np.linalg.norm(_HUES[0]))
ACCEPTED = 0.7  # least overlap of an object with the shape that it is taken for
BARE = 0.2  # least share of a picture without colour, for its ground to be known
TOLERANCE = 0.1  # most mean difference of a ground from the one that it is taken for


def detect(picture: ArrayLike, *, objects: int = 4) -> Scene:
    """What is to be seen in pictures [..., S, S, 3] with values in [0, 1], whoever drew them.

    Exact, positions within a fifth of a pixel, for renderings at 16 pixels or more of objects that lie inside the picture
    and do not touch, in 8 bits too. In other pictures an object is what one colour covers, without a gap, in a form that
    overlaps a shape of a known size by `ACCEPTED` (intersection over union); all else is nothing. A picture without
    objects gives `present` all False, and a ground like none that is known background -1.

    Args:
      picture: floats; values outside [0, 1] are clipped.
      objects: how many are looked for, K; of more the largest are taken. Absent ones come last.

    Returns:
      A scene [..., K], its objects in reading order of their places, from left to right within a place.

    Raises:
      ValueError: pictures that are not square or without three channels.
    """
    picture = jnp.asarray(picture)
    if picture.ndim < 3 or picture.shape[-1] != 3 or picture.shape[-2] != picture.shape[-3]:
        raise ValueError(f"picture must be [..., S, S, 3], got shape {picture.shape}")
    if not jnp.issubdtype(picture.dtype, jnp.floating):
        raise ValueError(f"picture must be floats in [0, 1], got {picture.dtype}")
    check_size(picture.shape[-2])
    if objects < 1:
        raise ValueError(f"objects must be at least 1, got {objects}")
    return _detect(picture, objects)


def hue(picture: ArrayLike, *, least: float = 0.02) -> Array:
    """Int [...] in COLORS: the colour that most of pictures [..., S, S, 3] in [0, 1] is of, in whatever form, blurred too.

    Counts pixels that are at least a quarter as coloured as an object; -1 where these are less than `least` of the picture.
    """
    _, share = _shares(jnp.clip(jnp.asarray(picture), 0, 1))
    colored = jax.nn.one_hot(jnp.argmax(share, axis=-1), len(COLORS)) * (jnp.max(share, axis=-1, keepdims=True) > 0.25)
    areas = jnp.mean(colored, axis=(-3, -2))
    return jnp.where(jnp.sum(areas, axis=-1) >= least, jnp.argmax(areas, axis=-1), -1)


def _shares(picture: Array) -> tuple[Array, Array]:
    """Lightness [..., S, S], and how much of each colour an object gives to pixels, [..., S, S, colours]."""
    light = jnp.mean(picture, axis=-1)
    return light, (picture - light[..., None]) @ jnp.array(_HUES).T / _HUE**2


@functools.partial(jax.jit, static_argnums=1)
def _detect(picture: Array, objects: int) -> Scene:
    one = jnp.vectorize(
        lambda picture: tuple(_detect_one(picture, objects)), signature="(s,s,c)->(k),(k),(k),(k),(k,d),(k),()"
    )
    return Scene(*one(jnp.clip(picture.astype(jnp.float32), 0, 1)))


def _around(x: Array) -> Array:
    """The largest of a pixel [S, S, ...] and its eight neighbours."""
    window = (3, 3, *(1,) * (x.ndim - 2))
    least = jnp.iinfo(x.dtype).min if jnp.issubdtype(x.dtype, jnp.integer) else -jnp.inf
    return jax.lax.reduce_window(x, jnp.array(least, x.dtype), jax.lax.max, window, (1,) * x.ndim, "SAME")


def _regions(color: Array, solid: Array) -> Array:
    """Int [S, S]: one number > 0 for all solid pixels of one colour that touch; 0 elsewhere."""
    own = jax.nn.one_hot(color, len(COLORS), dtype=jnp.int32) * solid[..., None]
    first = own * (1 + jnp.arange(color.size).reshape(*color.shape, 1))

    def spread(state: tuple[Array, Array]) -> tuple[Array, Array]:
        now, _ = state
        after = _around(now) * own
        return after, jnp.any(after != now)

    numbers, _ = jax.lax.while_loop(lambda state: state[1], spread, (first, jnp.any(solid)))
    return jnp.sum(numbers, axis=-1)


def _detect_one(picture: Array, objects: int) -> Scene:
    pixels = picture.shape[0]
    light, share = _shares(picture)
    color, most = jnp.argmax(share, axis=-1), jnp.max(share, axis=-1)

    grounds = jnp.array(grounds_of(pixels))
    bare = (most < 0.2).astype(jnp.float32)
    misfit = jnp.mean(jnp.abs(picture - grounds[..., None]), axis=-1)
    misfit = jnp.sum(misfit * bare, axis=(1, 2)) / jnp.maximum(jnp.sum(bare), 1e-6)
    ground = jnp.argmin(misfit)
    background = jnp.where((misfit[ground] < TOLERANCE) & (jnp.mean(bare) > BARE), ground, -1)

    region = _regions(color, most > 0.5)
    areas = jnp.zeros(pixels**2 + 1, jnp.int32).at[region].add(1).at[0].set(0)
    _, numbers = jax.lax.top_k(areas, objects)
    inside = (region == numbers[:, None, None]) & (numbers > 0)[:, None, None]  # [K, S, S]
    hue = jnp.argmax(jnp.sum(inside[..., None] * jax.nn.one_hot(color, len(COLORS)), axis=(1, 2)), axis=-1)
    # The edges too: pixels beside it of its colour that are no other region's.
    beside = jax.vmap(_around)(inside.astype(jnp.int32)) > 0
    edge = beside & (region == 0) & (color == hue[:, None, None])
    cover = jnp.where(inside | edge, jnp.clip(most, 0, 1), 0.0)

    centres = (jnp.arange(pixels) + 0.5) / pixels
    total = jnp.maximum(jnp.sum(cover, axis=(1, 2)), 1e-6)
    position = jnp.stack([jnp.sum(cover, axis=2) @ centres, jnp.sum(cover, axis=1) @ centres], -1) / total[:, None]

    kinds = jnp.array([[shape, size] for shape in range(len(SHAPES)) for size in range(len(SIZES))])
    every = jnp.broadcast_to(position[:, None], (objects, len(kinds), 2))
    forms, _ = drawn(kinds[:, 0], kinds[:, 1], jnp.zeros(len(kinds), int), every, pixels)  # [K, kinds, S, S]
    shared = jnp.sum(jnp.minimum(forms, cover[:, None]), axis=(2, 3))
    overlap = shared / jnp.sum(jnp.maximum(forms, cover[:, None]), axis=(2, 3))
    best = jnp.argmax(overlap, axis=-1)
    shape, size = kinds[best].T
    present = (jnp.max(overlap, axis=-1) > ACCEPTED) & (numbers > 0)

    styles = jnp.broadcast_to(jnp.arange(len(STYLES)), (objects, len(STYLES)))
    shapes, sizes = (jnp.broadcast_to(x[:, None], styles.shape) for x in (shape, size))
    every = jnp.broadcast_to(position[:, None], (*styles.shape, 2))
    form, lightness = drawn(shapes, sizes, styles, every, pixels)
    expected = form * (lightness + jnp.array(CHROMA.mean(1))[hue][:, None, None, None]) + (1 - form) * grounds[ground]
    style = jnp.argmin(jnp.sum(cover[:, None] * (expected - light) ** 2, axis=(2, 3)), axis=-1)

    found = Scene(shape, hue, size, style, position, present, background)
    row, column = place(found)
    order = jnp.argsort(jnp.where(present, 3 * row + column + position[:, 1] / 2, jnp.inf))
    seen = {"shape": shape, "color": hue, "size": size, "style": style}
    seen = {name: jnp.where(present, value, -1)[order] for name, value in seen.items()}
    where = jnp.where(present[:, None], position, -1.0)[order]
    return Scene(**seen, position=where, present=present[order], background=background)
