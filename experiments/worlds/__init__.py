"""Where data comes from. A world is two splits of examples and the way from its values to pixels."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import ml_collections
import numpy as np
from jax import Array

from experiments.engine.errors import UserError, unknown


class Split(Protocol):
    """Examples by index: `examples` holds all of them where they fit in memory, `read` fetches some."""

    @property
    def examples(self) -> Mapping[str, np.ndarray] | None: ...

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]: ...


class InMemory:
    """A split held in arrays."""

    def __init__(self, examples: Mapping[str, np.ndarray]):
        self.examples = dict(examples)

    def __len__(self) -> int:
        return len(next(iter(self.examples.values())))

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return {name: values[indices] for name, values in self.examples.items()}


class Zeros:
    """A split of that many examples of which only the shapes are known; it takes no memory."""

    def __init__(self, shapes: Mapping[str, jax.ShapeDtypeStruct], size: int, *, resident: bool = True):
        self._all = {name: np.broadcast_to(np.zeros((), x.dtype), (size, *x.shape)) for name, x in shapes.items()}
        self.examples = self._all if resident else None

    def __len__(self) -> int:
        return len(next(iter(self._all.values())))

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return {name: values[indices] for name, values in self._all.items()}


class Captions(NamedTuple):
    """What a world whose examples have "tokens", int [L] with 0 for padding, knows of them."""

    words: tuple[str, ...]  # by token
    length: int  # L
    encode: Callable[[str], np.ndarray]  # a text -> int32 [L]; "" is the empty prompt; ValueError where it is none
    attributes: tuple[str, ...]  # what is looked at by
    # uint8 images, tokens [B, L] -> {attribute: bool [B]}, whether the images show what the captions say
    agree: Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]
    # tokens of captions, tokens read from images -> the same
    compare: Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]


class Text(NamedTuple):
    """What a world of rows of tokens knows of them.

    Its examples are {"tokens": int32 [L], with 0 for padding; "row": int32, the place in the split}, and where `asks`
    "answer": int32, the place of the first token that answers what is before it.
    """

    words: tuple[str, ...]  # by token, "" for padding, start and end
    encode: Callable[[str], np.ndarray]  # a text -> int32 [n], n >= 1, as a row begins; ValueError where it is none
    decode: Callable[[np.ndarray], str]  # int [n] -> text
    end: int = -1  # token after which a row is padding; -1: rows are full
    asks: bool = False


def no_pictures(values: Array) -> Array:
    """Stands in a world of texts for what turns pictures into numbers."""
    raise UserError("config.data has texts, and no pictures")


class World(NamedTuple):
    """A data set: raw examples {"image", "label", ...} or those of a `Text`, and what a model needs to know of them."""

    train: Split
    test: Split
    example_shape: tuple[int, ...]
    num_classes: int  # of labels; of tokens where the world is one of texts
    to_model: Callable[[Array], Array] = no_pictures  # raw "image" values -> floats that models train on
    to_pixels: Callable[[Array], Array] = no_pictures  # floats of a model -> uint8 images [B, H, W, C]
    flip: bool = False  # mirror images at random while training
    captions: Captions | None = None
    text: Text | None = None


Trained = Callable[[ml_collections.ConfigDict], Any]


def build(config: ml_collections.ConfigDict, trained: Trained | None = None) -> World:
    """The world that `config.name` names; `trained(config)` gives a world that needs a model one, None: there is none."""
    from experiments.worlds import digits, facts, images, latents, scenes, text

    known: dict[str, Callable[..., World]] = {
        "digits": digits.build,
        "facts": facts.build,
        "latents": latents.build,
        "scenes": scenes.build,
        "text": text.build,
    }
    name = config.name
    if name in known:
        return known[name](config, trained or functools.partial(_no_run, name))
    world = images.build(config)
    if world is None:
        raise unknown("config.data.name", name, [*known, *images.known_names()])
    return world


def _no_run(name: str, needed: ml_collections.ConfigDict) -> Any:
    del needed
    raise ValueError(f"{name!r} needs a run of another model, and none is given")


def describe(config: ml_collections.ConfigDict, trained: Trained) -> World:
    """The world that `config.name` names, with zeros for examples: its shapes are known where its data is not.

    `trained(config)` gives a run of which the state may be shapes alone.
    """
    from experiments.worlds import digits, facts, images, latents, scenes, text

    known: dict[str, Callable[..., World]] = {
        "digits": digits.build,
        "facts": facts.build,  # it is small, and nothing is read
        "latents": latents.describe,
        "scenes": scenes.describe,
        "text": text.describe,
    }
    if config.name in known:
        return known[config.name](config, trained)
    world = images.describe(config)
    if world is None:
        raise unknown("config.data.name", config.name, [*known, *images.known_names()])
    return world


def check_batch(batch_size: int, split: Split) -> None:
    """A batch is drawn without repetition, so it can't hold more examples than there are."""
    if batch_size > len(split):
        raise UserError(f"config.batch_size {batch_size} is larger than the data, {len(split)} training examples")
