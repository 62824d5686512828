"""Coloured shapes on a ground, drawn from a description: pictures, captions, masks of every object, and an exact detector.

    scene = scenes.draw(key, objects=2)          a description; nothing drawn yet
    picture = scenes.render(scene, 16)           floats [16, 16, 3] in [0, 1], anti-aliased
    tokens = scenes.caption(scene)               "a" sentence of fixed length: scenes.decode(tokens) is its text
    regions = scenes.masks(scene, 16)            [objects, 16, 16] coverage
    found = scenes.detect(picture, objects=2)    the description again, or less where less is to be seen
    right = scenes.agree(pictures, tokens)       {"color": bool [N], ...}: which 8-bit pictures show what their captions say
    edited = scenes.change(scene, 0, color="blue")

Descriptions are pytrees: `jax.vmap` over keys makes many, and what takes a scene takes leading axes. The detector is exact
because colour and lightness say different things. Every colour has one saturation, grounds have none, and styles change
lightness alone; so the saturation of a pixel is how much of it the object covers, whatever style and ground.
"""

from experiments.worlds.scenes.agreement import ASPECTS, agree
from experiments.worlds.scenes.captions import (
    ATTRIBUTES,
    END,
    PAD,
    START,
    WORDS,
    caption,
    decode,
    encode,
    leave_out,
    length,
    negative,
    read,
)
from experiments.worlds.scenes.data import build, describe, examples, label
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
    Splits,
    change,
    combinations,
    contains,
    draw,
    place,
    splits,
)
from experiments.worlds.scenes.detector import detect, hue
from experiments.worlds.scenes.pictures import masks, render

__all__ = [
    "ASPECTS",
    "ATTRIBUTES",
    "BACKGROUNDS",
    "COLORS",
    "COLUMNS",
    "END",
    "OBJECT_ATTRIBUTES",
    "PAD",
    "ROWS",
    "SHAPES",
    "SIZES",
    "START",
    "STYLES",
    "WORDS",
    "Scene",
    "Splits",
    "agree",
    "build",
    "caption",
    "change",
    "combinations",
    "contains",
    "decode",
    "describe",
    "detect",
    "draw",
    "encode",
    "examples",
    "hue",
    "label",
    "leave_out",
    "length",
    "masks",
    "negative",
    "place",
    "read",
    "render",
    "splits",
]
