"""What a scene is: objects, their attributes, which combinations there are, and random scenes."""

import functools
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

SHAPES = ("circle", "square", "triangle", "diamond", "cross")
COLORS = ("red", "green", "blue", "yellow", "cyan", "magenta")
SIZES = ("small", "large")
STYLES = ("plain", "striped", "ringed")
BACKGROUNDS = ("black", "grey", "white", "checkered", "shaded")
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "center", "right")
OBJECT_ATTRIBUTES = {"shape": SHAPES, "color": COLORS, "size": SIZES, "style": STYLES}

RADII = (0.13, 0.19)  # of sizes, as a share of the picture
REACH = 1.2  # how far the farthest point of a shape is from its centre, in radii
GAP = 0.02  # kept free between an object and the border of its cell


class Scene(NamedTuple):
    """K objects on a ground; every field may have more leading axes. -1 where an object, or what is known of it, is missing.

    Later objects lie over earlier ones.
    """

    shape: Any  # int [K] in SHAPES; arrays of JAX or NumPy
    color: Any  # int [K] in COLORS
    size: Any  # int [K] in SIZES
    style: Any  # int [K] in STYLES
    position: Any  # float [K, 2]: row and column of the centre, as shares of the picture
    present: Any  # bool [K]
    background: Any  # int [] in BACKGROUNDS

    @property
    def count(self) -> Array:  # type: ignore[override]  # not the method of tuples
        """How many objects there are."""
        return jnp.sum(self.present, axis=-1)


class Splits(NamedTuple):
    """Rows (shape, color, size, style) of the objects that training shows, and of those that it does not."""

    train: np.ndarray  # [N, 4]
    held_out: np.ndarray  # [M, 4]


def _index(attribute: str, word: str) -> int:
    words = {**OBJECT_ATTRIBUTES, "background": BACKGROUNDS}
    if attribute not in words:
        raise ValueError(f"attribute must be one of {', '.join(words)}, got {attribute!r}")
    if word not in words[attribute]:
        raise ValueError(f"{attribute} must be one of {', '.join(words[attribute])}, got {word!r}")
    return words[attribute].index(word)


def combinations(**allowed: Sequence[str]) -> np.ndarray:
    """Int [N, 4]: every combination of shape, color, size and style, of the allowed words where some are given.

    `combinations(style=["plain"], color=["red", "blue"])` has 5 * 2 * 2 * 1 rows.
    """
    for attribute in allowed:
        if attribute not in OBJECT_ATTRIBUTES:
            raise ValueError(f"attribute must be one of {', '.join(OBJECT_ATTRIBUTES)}, got {attribute!r}")
    values = [
        [_index(attribute, word) for word in dict.fromkeys(allowed.get(attribute, words))]
        for attribute, words in OBJECT_ATTRIBUTES.items()
    ]
    return np.stack(np.meshgrid(*values, indexing="ij"), -1).reshape(-1, len(values)).astype(np.int32)


def splits(
    seed: int, *, held_out: int, over: Sequence[str] = ("shape", "color"), rows: np.ndarray | None = None
) -> Splits:
    """Holds back `held_out` combinations of the attributes `over`, such as green squares, of all sizes and styles.

    Every single value stays in training, in some other combination: only what is new is how they go together.

    Args:
      seed: which combinations.
      held_out: how many.
      over: attributes that are combined.
      rows: [N, 4] what there is to split; None: all combinations.

    Raises:
      ValueError: unknown attributes, or more combinations than can be held back.
    """
    names = list(OBJECT_ATTRIBUTES)
    for attribute in over:
        if attribute not in names:
            raise ValueError(f"over must name attributes among {', '.join(names)}, got {attribute!r}")
    rows = combinations() if rows is None else _check_rows(rows)
    columns = [names.index(attribute) for attribute in over]
    groups, group_of = np.unique(rows[:, columns], axis=0, return_inverse=True)
    group_of = group_of.reshape(-1)
    kept = np.ones(len(groups), bool)
    for group in np.random.default_rng([0x5CE4E5, seed]).permutation(len(groups)):
        if kept.sum() == len(groups) - held_out:
            break
        # Only where each of its values is left in another group.
        rest = kept & (np.arange(len(groups)) != group)
        kept[group] = not np.all(np.any(groups[rest] == groups[group], axis=0))
    if held_out < 0 or kept.sum() != len(groups) - held_out:
        raise ValueError(f"held_out must be in [0, {(~kept).sum()}] for {len(groups)} combinations, got {held_out}")
    return Splits(train=rows[kept[group_of]], held_out=rows[~kept[group_of]])


def _check_rows(rows: Any) -> Any:
    if np.ndim(rows) != 2 or np.shape(rows)[1] != len(OBJECT_ATTRIBUTES) or not len(rows):
        raise ValueError(f"rows must be [N, {len(OBJECT_ATTRIBUTES)}] with N >= 1, got shape {np.shape(rows)}")
    return rows


def draw(
    key: Array,
    rows: ArrayLike | None = None,
    *,
    objects: int = 1,
    fewest: int | None = None,
    grid: int = 2,
    jitter: ArrayLike = 1.0,
    distinct: Collection[str] = (),
    backgrounds: Sequence[str] = BACKGROUNDS,
) -> Scene:
    """A random scene. Objects lie in different cells of a grid, in reading order, and do not touch on grids up to 2.

    Args:
      key: a PRNG key; `jax.vmap` over keys draws many.
      rows: int [N, 4], (shape, color, size, style) of the objects there are, all alike likely; None: all combinations.
      objects: K, at most grid * grid.
      fewest: their number is uniform from here up to K; None: always K.
      grid: cells along each side. With 1 the only object may lie anywhere.
      jitter: how much of the room in its cell an object uses: 0 centres it, 1 lets it touch the cell's margin.
      distinct: attributes that no two objects of the scene share; with more than one, `rows` must leave the choice.
      backgrounds: one or more words of BACKGROUNDS, all alike likely.

    Raises:
      ValueError: numbers that do not fit, unknown words.
    """
    table = jnp.asarray(combinations() if rows is None else rows)
    _check_rows(table)
    if not 1 <= objects <= grid * grid:
        raise ValueError(f"objects must be in [1, {grid * grid}] on a grid of {grid}, got {objects}")
    fewest = objects if fewest is None else fewest
    if not 0 <= fewest <= objects:
        raise ValueError(f"fewest must be in [0, {objects}], got {fewest}")
    columns = tuple(_column(attribute, objects, table) for attribute in distinct)
    if not backgrounds:
        raise ValueError("backgrounds must name at least one, got none")
    grounds = tuple(_index("background", word) for word in backgrounds)
    return _draw(key, table, jitter, objects, fewest, grid, columns, grounds)


@functools.partial(jax.jit, static_argnums=range(3, 8))
def _draw(
    key: Array,
    table: Array,
    jitter: ArrayLike,
    objects: int,
    fewest: int,
    grid: int,
    columns: tuple[int, ...],
    grounds: tuple[int, ...],
) -> Scene:
    count_key, cell_key, place_key, ground_key, *row_keys = jax.random.split(key, 4 + objects)

    present = jnp.arange(objects) < jax.random.randint(count_key, (), fewest, objects + 1)
    cells = jax.random.permutation(cell_key, grid * grid)[:objects]
    cells = jnp.sort(jnp.where(present, cells, grid * grid))

    free, chosen = jnp.ones(len(table), bool), []
    for row_key in row_keys:
        chosen.append(table[jax.random.categorical(row_key, jnp.where(free, 0.0, -jnp.inf))])
        for column in columns:
            free &= table[:, column] != chosen[-1][column]
    shape, color, size, style = jnp.stack(chosen, axis=-1)

    room = jnp.maximum(0.5 / grid - REACH * jnp.array(RADII)[size] - GAP, 0.0)[:, None]
    centre = (jnp.stack([cells // grid, cells % grid], axis=-1) + 0.5) / grid
    position = centre + jitter * room * jax.random.uniform(place_key, (objects, 2), minval=-1, maxval=1)
    ground = jnp.array(grounds)[jax.random.randint(ground_key, (), 0, len(grounds))]
    known = {"shape": shape, "color": color, "size": size, "style": style}
    known = {name: jnp.where(present, value, -1) for name, value in known.items()}
    place = jnp.where(present[:, None], position, -1.0)
    return Scene(**known, position=place, present=present, background=ground)


def _column(attribute: str, objects: int, table: Array) -> int:
    if attribute not in OBJECT_ATTRIBUTES:
        raise ValueError(f"distinct must name attributes among {', '.join(OBJECT_ATTRIBUTES)}, got {attribute!r}")
    column = list(OBJECT_ATTRIBUTES).index(attribute)
    words = len(OBJECT_ATTRIBUTES[attribute])
    if not isinstance(table, jax.core.Tracer):
        words = len(np.unique(np.asarray(table[:, column])))
    if objects > words:
        raise ValueError(f"distinct: {objects} objects can't differ in {attribute}, of which there are {words}")
    return column


def change(scene: Scene, which: int, **words: str) -> Scene:
    """The scene with other attributes of object `which`: `change(scene, 0, color="blue")`; `background` is the scene's."""
    objects = jnp.shape(scene.shape)[-1]
    if not -objects <= which < objects:
        raise ValueError(f"which must be one of {objects} objects, got {which}")
    fields = {}
    for attribute, word in words.items():
        value, old = _index(attribute, word), jnp.asarray(getattr(scene, attribute))
        fields[attribute] = jnp.full_like(old, value) if attribute == "background" else old.at[..., which].set(value)
    return scene._replace(**fields)


def contains(scene: Scene, **words: str) -> Array:
    """Bool: whether an object of the scene has all these attributes, `contains(found, color="red", shape="circle")`."""
    fits, ground = jnp.asarray(scene.present), jnp.ones(jnp.shape(scene.background), bool)
    for attribute, word in words.items():
        index = _index(attribute, word)
        same = jnp.asarray(getattr(scene, attribute)) == index
        fits, ground = (fits, ground & same) if attribute == "background" else (fits & same, ground)
    return (jnp.any(fits, axis=-1) | (set(words) <= {"background"})) & ground


def place(scene: Scene) -> tuple[Array, Array]:
    """Int [..., K] row and column of the centres among the words ROWS and COLUMNS; -1 where it is not known."""
    thirds = jnp.clip(jnp.floor(3 * jnp.asarray(scene.position)).astype(jnp.int32), 0, 2)
    thirds = jnp.where((scene.position >= 0) & scene.present[..., None], thirds, -1)
    return thirds[..., 0], thirds[..., 1]
