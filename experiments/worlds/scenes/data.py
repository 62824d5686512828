"""Scenes as a data set for `experiments.train`."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from experiments.engine.errors import UserError
from experiments.worlds import Captions, InMemory, Split, Trained, World, Zeros
from experiments.worlds.scenes.agreement import ASPECTS, agree, compare
from experiments.worlds.scenes.captions import ATTRIBUTES, WORDS, caption, encode, leave_out, length
from experiments.worlds.scenes.description import (
    BACKGROUNDS,
    COLORS,
    SHAPES,
    Scene,
    Splits,
    combinations,
    draw,
    splits,
)
from experiments.worlds.scenes.pictures import check_size, render


class _Settings(NamedTuple):
    """What a config says, checked; see `configs.common.scenes`."""

    seed: int
    image_size: int
    objects: int
    fewest: int
    grid: int
    train_size: int
    test_size: int
    mention: tuple[str, ...]
    unsaid: float
    jitter: float
    backgrounds: tuple[str, ...]


def _settings(config: ml_collections.ConfigDict) -> tuple[_Settings, Splits]:
    objects = int(config.get("objects", 1))
    seed, held_out = int(config.get("seed", 0)), int(config.get("held_out", 0))
    sizes = {name: int(config.get(name, default)) for name, default in (("train_size", 8192), ("test_size", 1024))}
    for name, value in sizes.items():
        if value < 1:
            raise UserError(f"config.data.{name} must be at least 1, got {value}")
    unsaid, jitter = float(config.get("unsaid", 0.0)), float(config.get("jitter", 1.0))
    for name, share in (("unsaid", unsaid), ("jitter", jitter)):
        if not 0 <= share <= 1:
            raise UserError(f"config.data.{name} must be in [0, 1], got {share}")
    try:
        only = {attribute: tuple(words) for attribute, words in dict(config.get("only", {})).items()}
        backgrounds = only.pop("background", BACKGROUNDS)
        settings = _Settings(
            seed=seed,
            image_size=int(config.get("image_size", 16)),
            objects=objects,
            fewest=int(config.get("fewest", objects)),
            grid=int(config.get("grid", 2)),
            mention=tuple(config.get("mention", ATTRIBUTES)),
            unsaid=unsaid,
            jitter=jitter,
            backgrounds=backgrounds,
            **sizes,
        )
        check_size(settings.image_size)
        dealt = splits(seed, held_out=held_out, rows=combinations(**only))
        _shapes(settings, dealt)
    except ValueError as error:
        raise UserError(f"config.data: {error}") from error
    return settings, dealt


def _shapes(settings: _Settings, dealt: Splits) -> dict[str, jax.ShapeDtypeStruct]:
    return jax.eval_shape(lambda key: _example(key, settings, dealt.train)[1], jax.random.key(0))


def _example(key: Array, settings: _Settings, rows: ArrayLike) -> tuple[Scene, dict[str, Array]]:
    scene = draw(
        key,
        rows,
        objects=settings.objects,
        fewest=settings.fewest,
        grid=settings.grid,
        jitter=settings.jitter,
        backgrounds=settings.backgrounds,
    )
    picture = jnp.round(255 * render(scene, settings.image_size)).astype(jnp.uint8)
    # A key of its own, so that what is left out changes no picture.
    said = leave_out(jax.random.fold_in(key, 1), scene, settings.unsaid) if settings.unsaid else scene
    return scene, {"image": picture, "label": label(scene), "tokens": caption(said, mention=settings.mention)}


def label(scene: Scene) -> Array:
    """int32 in [0, 30): shape and colour of the first object, as shape * 6 + color; 0 where there is none."""
    number = scene.shape[..., 0] * len(COLORS) + scene.color[..., 0]
    return jnp.where(scene.present[..., 0], number, 0).astype(jnp.int32)


BLOCK = 1024  # scenes drawn at once
ROUNDED = 128  # of which smaller blocks are multiples


def examples(config: ml_collections.ConfigDict, split: str) -> tuple[Scene, dict[str, np.ndarray]]:
    """The scenes of a split, "train" or "test", and their examples {"image", "label", "tokens"}.

    Scene i is a function of the seed, the split and i. The test set shows the combinations that are held out; where none
    are, those of training in other scenes.
    """
    settings, dealt = _settings(config)
    table = dealt.train if split == "train" or not len(dealt.held_out) else dealt.held_out
    size = settings.train_size if split == "train" else settings.test_size
    key = jax.random.fold_in(jax.random.key(settings.seed), ("train", "test").index(split))

    # Sets of about one size, and other seeds, share a program.
    at_once = min(BLOCK, -(-size // ROUNDED) * ROUNDED)
    alike = settings._replace(seed=0, train_size=0, test_size=0)
    firsts = range(0, size, at_once)
    parts = [jax.tree.map(np.asarray, _block(key, jnp.int32(first), table, alike, at_once)) for first in firsts]
    return jax.tree.map(lambda *x: np.concatenate(x)[:size], *parts)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _block(key: Array, first: Array, rows: Array, settings: _Settings, count: int) -> tuple[Scene, dict[str, Array]]:
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(first + jnp.arange(count))
    return jax.vmap(lambda key: _example(key, settings, rows))(keys)


def build(config: ml_collections.ConfigDict, trained: Trained) -> World:
    """Scenes drawn once, in memory; `configs.common.scenes` has the fields."""
    del trained
    train, test = (InMemory(examples(config, split)[1]) for split in ("train", "test"))
    return _world(_settings(config)[0], train, test)


def describe(config: ml_collections.ConfigDict, trained: Trained) -> World:
    """The same with zeros for examples."""
    del trained
    settings, dealt = _settings(config)
    shapes = _shapes(settings, dealt)
    return _world(settings, Zeros(shapes, settings.train_size), Zeros(shapes, settings.test_size))


def _world(settings: _Settings, train: Split, test: Split) -> World:
    tokens = length(settings.objects)
    return World(
        train=train,
        test=test,
        example_shape=(settings.image_size, settings.image_size, 3),
        num_classes=len(SHAPES) * len(COLORS),
        to_model=lambda raw: raw.astype(jnp.float32) / 127.5 - 1,
        to_pixels=lambda x: jnp.round((jnp.clip(x, -1, 1) + 1) * 127.5).astype(jnp.uint8),
        captions=Captions(WORDS, tokens, lambda text: encode(text, tokens), ASPECTS, agree, compare),
    )
