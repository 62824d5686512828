"""Pictures of a product, shapes on a regular grid over striped ground, some with a defect; and pictures of other things."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from experiments.worlds import scenes

SIDE = 3  # of the grid of a product's shapes
AREAS = (4, 16, 64, 256)  # pixels of defects, in classes
NOISE = 0.03
KINDS = ("blob", "scratch", "missing")  # the last is of a shape, and of the largest class alone


class Ground(NamedTuple):
    """Stripes of a direction and a period, as a share of the picture, which differ from grey by up to `strength`."""

    angle: Array  # [], radians
    period: Array
    strength: Array


class Product(NamedTuple):
    """What all pictures of one product share."""

    scene: scenes.Scene
    ground: Ground


def ground(key: Array) -> Ground:
    """A random one."""
    angle, period, strength = jax.random.uniform(key, (3,))
    return Ground(jnp.pi * angle, 0.1 + 0.15 * period, 0.1 + 0.1 * strength)


def product(key: Array) -> Product:
    """A random one: the same small shape, colour and style in all cells of a grid."""
    scene_key, ground_key = jax.random.split(key)
    one = scenes.draw(scene_key, scenes.combinations(size=("small",)), backgrounds=("grey",))
    cells = SIDE * SIDE
    same = {name: jnp.tile(getattr(one, name), cells) for name in scenes.OBJECT_ATTRIBUTES}
    places = jnp.stack(jnp.divmod(jnp.arange(cells), SIDE), axis=-1)
    scene = scenes.Scene(
        **same, position=(places + 0.5) / SIDE, present=jnp.ones(cells, bool), background=one.background
    )
    return Product(scene, ground(ground_key))


def picture(key: Array, scene: scenes.Scene, below: Ground, size: int) -> Array:
    """A picture [size, size, 3] in [0, 1] of a scene on grey; the stripes' phase and the noise are drawn."""
    phase_key, noise_key = jax.random.split(key)
    centres = (jnp.arange(size) + 0.5) / size
    along = centres[:, None] * jnp.sin(below.angle) + centres * jnp.cos(below.angle)
    phase = jax.random.uniform(phase_key, (), maxval=2 * jnp.pi)
    stripes = below.strength * jnp.sin(2 * jnp.pi * along / below.period + phase)
    bare = 1 - jnp.sum(scenes.masks(scene, size), axis=0)
    clean = scenes.render(scene, size) + (bare * stripes)[..., None]
    return jnp.clip(clean + NOISE * jax.random.normal(noise_key, clean.shape), 0, 1)


def faultless(key: Array, made: Product, count: int, size: int) -> Array:
    """Pictures [count, size, size, 3] of a product as it should be."""
    draw = lambda key: picture(key, made.scene, made.ground, size)  # noqa: E731
    return jax.vmap(draw)(jax.random.split(key, count))


def varied(key: Array, count: int, size: int) -> Array:
    """Pictures of two to four shapes of any kind in random places on random stripes, none of them a product."""

    def draw(key: Array) -> Array:
        scene_key, ground_key, picture_key = jax.random.split(key, 3)
        scene = scenes.draw(scene_key, objects=4, fewest=2, backgrounds=("grey",))
        return picture(picture_key, scene, ground(ground_key), size)

    return jax.vmap(draw)(jax.random.split(key, count))


def region(key: Array, kind: Array, area: Array, size: int) -> Array:
    """Bool [size, size]: the `area` pixels nearest to a random centre, of a round blob or along a scratch."""
    centre_key, angle_key = jax.random.split(key)
    # Inside, so that a defect is not cut off.
    row, column = jax.random.uniform(centre_key, (2,), minval=0.15, maxval=0.85) * size
    angle = jax.random.uniform(angle_key, (), maxval=jnp.pi)
    down, across = jnp.arange(size)[:, None] + 0.5 - row, jnp.arange(size) + 0.5 - column
    along, beside = across * jnp.cos(angle) + down * jnp.sin(angle), down * jnp.cos(angle) - across * jnp.sin(angle)
    length = jnp.where(kind == KINDS.index("scratch"), jnp.sqrt(area / 2.0), 1.0)  # in widths
    distance = (along / length) ** 2 + beside**2
    return (jnp.argsort(jnp.argsort(distance.reshape(-1))) < area).reshape(size, size)


def faulty(key: Array, made: Product, kind: Array, area: Array, size: int, *, contrast: float) -> tuple[Array, Array]:
    """A picture with one defect, and where it is, bool [size, size].

    Blobs and scratches of `area` pixels are lighter or darker than what they lie on, by up to `contrast` in each channel
    and at least half of it; where a shape is "missing", the defect is what it would cover.
    """
    picture_key, region_key, sign_key, shade_key, cell_key = jax.random.split(key, 5)
    missing = kind == KINDS.index("missing")
    cell = jax.random.randint(cell_key, (), 0, SIDE * SIDE)
    present = made.scene.present.at[cell].set(~missing)
    shown = picture(picture_key, made.scene._replace(present=present), made.ground, size)
    spot = region(region_key, kind, area, size)
    shade = contrast * jax.random.uniform(shade_key, (3,), minval=0.5)
    shade = shade * jax.random.rademacher(sign_key, (), jnp.float32)
    marked = jnp.clip(shown + spot[..., None] * shade, 0, 1)
    gone = scenes.masks(made.scene, size)[cell] > 0.5
    return jnp.where(missing, shown, marked), jnp.where(missing, gone, spot)


def mixed(key: Array, made: Product, count: int, size: int, *, contrast: float) -> tuple[Array, Array]:
    """Pictures [count, size, size, 3], a fifth faultless, the rest with a defect, and bool masks [count, size, size].

    Areas are those of AREAS in turn. Of the largest every third defect is a missing shape; else blobs and scratches take
    turns.
    """
    fine, faulty_key = count // 5, jax.random.fold_in(key, 1)
    index = jnp.arange(count - fine)
    which, turn = index % len(AREAS), index // len(AREAS)
    missing = (which == len(AREAS) - 1) & (turn % 3 == 2)
    kind = jnp.where(missing, KINDS.index("missing"), turn % 2)
    keys = jax.random.split(faulty_key, count - fine)
    draw = functools.partial(faulty, size=size, contrast=contrast)
    pictures, masks = jax.vmap(draw, in_axes=(0, None, 0, 0))(keys, made, kind, jnp.array(AREAS)[which])
    good = faultless(key, made, fine, size)
    return jnp.concatenate([good, pictures]), jnp.concatenate([jnp.zeros((fine, size, size), bool), masks])
