"""Whether pictures show what captions say."""

import itertools

import numpy as np
from jax.typing import ArrayLike

from experiments.worlds.scenes.captions import ATTRIBUTES, read
from experiments.worlds.scenes.description import OBJECT_ATTRIBUTES, Scene, place
from experiments.worlds.scenes.detector import detect

ASPECTS = ("count", *ATTRIBUTES)


def agree(pictures: ArrayLike, tokens: ArrayLike) -> dict[str, np.ndarray]:
    """Which pictures are as their captions say, {aspect of ASPECTS: bool [N]}, on the host.

    "count" is the number of objects. What a caption leaves open is right; what it says of an object that is not to be seen
    is wrong. Several objects are matched to those of the caption so that most is right.

    Args:
      pictures: uint8 [N, S, S, 3].
      tokens: int [N, L], captions.
    """
    pictures = np.asarray(pictures)
    if pictures.dtype != np.uint8:
        raise ValueError(f"pictures must be uint8, got {pictures.dtype}")
    if len(pictures) != len(np.asarray(tokens)):
        raise ValueError(f"tokens must be one caption a picture, {len(pictures)}, got {len(np.asarray(tokens))}")
    said = read(tokens)
    objects = said.present.shape[-1]
    # One more than can be said, so that an object too many is seen.
    found = Scene(*map(np.asarray, detect(pictures.astype(np.float32) / 255, objects=objects + 1)))
    ours, theirs = _values(said), _values(found)
    fits = {name: (ours[name][:, :, None] < 0) | (ours[name][:, :, None] == theirs[name][:, None]) for name in ours}
    fits["place"] = fits.pop("row") & fits.pop("column")

    def matched(order: tuple[int, ...]) -> np.ndarray:
        return np.stack([fit[:, np.arange(objects), order].all(1) for fit in fits.values()])

    every = np.stack([matched(order) for order in itertools.permutations(range(objects + 1), objects)])
    best = np.argmax(every.sum(1), axis=0)
    right = dict(zip(fits, np.take_along_axis(every, best[None, None], axis=0)[0], strict=True))
    right["count"] = said.present.sum(-1) == found.present.sum(-1)
    right["background"] = (said.background < 0) | (said.background == found.background)
    return {aspect: right[aspect] for aspect in ASPECTS}


def _values(scene: Scene) -> dict[str, np.ndarray]:
    """Int [N, K] by attribute of objects, -1 where it is not known."""
    row, column = (np.asarray(part) for part in place(scene))
    return {**{name: np.asarray(getattr(scene, name)) for name in OBJECT_ATTRIBUTES}, "row": row, "column": column}
