"""Scenes in words: captions as tokens, and back."""

import functools
from collections.abc import Collection, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from experiments.worlds.scenes.description import (
    BACKGROUNDS,
    COLORS,
    COLUMNS,
    OBJECT_ATTRIBUTES,
    ROWS,
    SHAPES,
    SIZES,
    STYLES,
    Scene,
    place,
)

ATTRIBUTES = ("size", "style", "color", "shape", "place", "background")  # what a caption can mention, in its order
PAD, START, END = 0, 1, 2
WORDS = ("<pad>", "<start>", "<end>", "and", "on", *SIZES, *STYLES, *COLORS, *SHAPES, *ROWS, *COLUMNS, *BACKGROUNDS)
_NUMBERS = {word: number for number, word in enumerate(WORDS)}
_PER_OBJECT = 6  # size, style, colour, shape, row, column


def length(objects: int) -> int:
    """Tokens of the longest caption of so many objects."""
    return 2 + _PER_OBJECT * objects + (objects - 1) + 2


def encode(text: str, length: int) -> np.ndarray:
    """Words between blanks -> int32 [length]: start, words, end, padding. The empty text is the empty prompt.

    Raises:
      ValueError: a word that is not in WORDS, or too many.
    """
    unknown = [word for word in text.split() if word not in _NUMBERS]
    if unknown:
        raise ValueError(f"text has words that are not in the vocabulary: {', '.join(unknown)}")
    tokens = [START, *(_NUMBERS[word] for word in text.split()), END]
    if len(tokens) > length:
        raise ValueError(f"text has {len(tokens) - 2} words and {length} tokens hold {length - 2}")
    return np.array([*tokens, *[PAD] * (length - len(tokens))], np.int32)


def decode(tokens: ArrayLike) -> str:
    """Tokens [L] -> words between blanks, without padding, start and end."""
    return " ".join(WORDS[token] for token in np.asarray(tokens).tolist() if token not in (PAD, START, END))


def caption(scene: Scene, *, mention: Collection[str] = ATTRIBUTES) -> Array:
    """int32 [..., L]: "large striped red circle top left and small ... on grey", with start, end and padding.

    L depends on the number of objects in the arrays alone, not on how many are present or what is mentioned.

    Args:
      scene: what is described; what is missing in it (-1) is not mentioned.
      mention: attributes among ATTRIBUTES; the order is always theirs.
    """
    for attribute in mention:
        if attribute not in ATTRIBUTES:
            raise ValueError(f"mention must name attributes among {', '.join(ATTRIBUTES)}, got {attribute!r}")
    return _caption(scene, tuple(mention))


@functools.partial(jax.jit, static_argnums=1)
def _caption(scene: Scene, mention: tuple[str, ...]) -> Array:
    row, column = place(scene)
    said = [  # what is meant, its number, its words
        ("size", scene.size, SIZES),
        ("style", scene.style, STYLES),
        ("color", scene.color, COLORS),
        ("shape", scene.shape, SHAPES),
        ("place", row, ROWS),
        ("place", column, COLUMNS),
    ]
    words = jnp.stack([_token(value, words, attribute in mention) for attribute, value, words in said], axis=-1)
    words = jnp.where(jnp.asarray(scene.present)[..., None], words, PAD)  # [..., K, 6]
    named = jnp.any(words != PAD, axis=-1)
    another = jnp.where(named & (jnp.cumsum(named, axis=-1) > 1), _NUMBERS["and"], PAD)
    sentence = jnp.concatenate([another[..., None], words], axis=-1)
    sentence = sentence.reshape(*sentence.shape[:-2], -1)[..., 1:]  # there is nothing before the first
    ground = _token(scene.background, BACKGROUNDS, "background" in mention)
    on = jnp.where(ground != PAD, _NUMBERS["on"], PAD)
    edge = lambda token: jnp.full((*sentence.shape[:-1], 1), token)  # noqa: E731
    every = jnp.concatenate([edge(START), sentence, on[..., None], ground[..., None], edge(END)], axis=-1)
    # Words to the front, in their order.
    order = jnp.argsort(every == PAD, axis=-1, stable=True)
    return jnp.take_along_axis(every, order, axis=-1).astype(jnp.int32)


def _token(value: ArrayLike, words: Sequence[str], mentioned: bool) -> Array:
    value = jnp.asarray(value)
    return jnp.where((value >= 0) & mentioned, value + _NUMBERS[words[0]], PAD)


def leave_out(key: Array, scene: Scene, rate: ArrayLike) -> Scene:
    """The scene with each attribute of each object, and its ground, unknown with probability `rate`, each by itself.

    For captions that leave things unsaid: what is there stays there. Row and column of a place go together.
    """
    names = (*OBJECT_ATTRIBUTES, "position")
    *keys, ground_key = jax.random.split(key, len(names) + 1)

    def left(key: Array, value: ArrayLike, axes: int) -> Array:
        value = jnp.asarray(value)
        unknown = jax.random.bernoulli(key, rate, value.shape[: value.ndim - axes])
        return jnp.where(unknown.reshape(*unknown.shape, *(1,) * axes), jnp.asarray(-1, value.dtype), value)

    fields = {
        name: left(key, getattr(scene, name), int(name == "position")) for name, key in zip(names, keys, strict=True)
    }
    return scene._replace(**fields, background=left(ground_key, scene.background, 0))


def negative(key: Array, scene: Scene, *, attribute: str = "color") -> Array:
    """int32 [..., L]: a prompt of one word that is true of nothing in the scene, drawn among those there are.

    Empty where all are true of something. As long as a caption of the scene.
    """
    words = {**OBJECT_ATTRIBUTES, "background": BACKGROUNDS}
    if attribute not in words:
        raise ValueError(f"attribute must be one of {', '.join(words)}, got {attribute!r}")
    return _negative(key, scene, attribute, words[attribute])


@functools.partial(jax.jit, static_argnums=(2, 3))
def _negative(key: Array, scene: Scene, attribute: str, words: tuple[str, ...]) -> Array:
    value = jnp.asarray(getattr(scene, attribute))
    used = value[..., None] == jnp.arange(len(words))
    used = used if attribute == "background" else jnp.any(used & scene.present[..., None], axis=-2)
    choice = jax.random.categorical(key, jnp.where(used, -jnp.inf, 0.0))
    word = jnp.where(jnp.all(used, axis=-1), END, choice + _NUMBERS[words[0]])
    end = jnp.where(word == END, PAD, END)
    rest = jnp.full((*word.shape, length(jnp.shape(scene.shape)[-1]) - 3), PAD)
    front = jnp.stack([jnp.full_like(word, START), word, end], axis=-1)
    return jnp.concatenate([front, rest], axis=-1).astype(jnp.int32)


def read(tokens: ArrayLike) -> Scene:
    """The scene that captions [..., L] describe, on the host: -1 for what they do not say, the middle of a place for it."""
    tokens = np.asarray(tokens)
    objects = (tokens.shape[-1] - length(1)) // (_PER_OBJECT + 1) + 1
    known = {word: (name, i) for name, words in OBJECT_ATTRIBUTES.items() for i, word in enumerate(words)}
    scenes = []
    for line in tokens.reshape(-1, tokens.shape[-1]):
        fields = {name: np.full(objects, -1, np.int32) for name in OBJECT_ATTRIBUTES}
        position, present = np.full((objects, 2), -1, np.float32), np.zeros(objects, bool)
        background, which = -1, 0
        for word in decode(line).split():
            if word == "and":
                which += 1
                if which == objects:
                    raise ValueError(f"tokens of length {tokens.shape[-1]} describe at most {objects} objects")
            elif word in BACKGROUNDS:
                background = BACKGROUNDS.index(word)
            elif word != "on":
                present[which] = True
                if word in known:
                    name, index = known[word]
                    fields[name][which] = index
                else:
                    axis = int(word in COLUMNS)
                    position[which, axis] = ((ROWS, COLUMNS)[axis].index(word) + 0.5) / 3
        scenes.append(Scene(**fields, position=position, present=present, background=np.int32(background)))
    stacked = jax.tree.map(lambda *parts: np.stack(parts), *scenes)
    return jax.tree.map(lambda x: x.reshape(*tokens.shape[:-1], *x.shape[1:]), stacked)
