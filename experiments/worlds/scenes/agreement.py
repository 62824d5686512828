"""Whether pictures show what captions say."""

import itertools

import numpy as np
from jax.typing import ArrayLike

from experiments.worlds.scenes.captions import ATTRIBUTES, read
from experiments.worlds.scenes.description import OBJECT_ATTRIBUTES, Scene, place
from experiments.worlds.scenes.detector import detect

ASPECTS = ("count", *ATTRIBUTES)


def agree(pictures: ArrayLike, tokens: ArrayLike) -> dict[str, np.ndarray]:
    """Which pictures are as their captions say by the exact detector, {aspect of ASPECTS: bool [N]}, on the host.

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
    # One more than can be said, so that an object too many is seen.
    objects = said.present.shape[-1] + 1
    return fit(said, Scene(*map(np.asarray, detect(pictures.astype(np.float32) / 255, objects=objects))))


def compare(tokens: ArrayLike, found: ArrayLike) -> dict[str, np.ndarray]:
    """The same for what was read as captions [N, L] from the pictures."""
    return fit(read(tokens), read(found))


def fit(said: Scene, found: Scene) -> dict[str, np.ndarray]:
    """Which scenes found [N, K'] are as was said, [N, K], K <= K'; {aspect: bool [N]}.

    "count" is the number of objects. What was left unsaid is right; what was said of an object that is not to be seen is
    wrong. Several objects are matched to those said so that most is right.
    """
    objects = said.present.shape[-1]
    ours, theirs = _values(said), _values(found)
    fits = {name: (ours[name][:, :, None] < 0) | (ours[name][:, :, None] == theirs[name][:, None]) for name in ours}
    fits["place"] = fits.pop("row") & fits.pop("column")

    def matched(order: tuple[int, ...]) -> np.ndarray:
        return np.stack([part[:, np.arange(objects), order].all(1) for part in fits.values()])

    every = np.stack([matched(order) for order in itertools.permutations(range(found.present.shape[-1]), objects)])
    best = np.argmax(every.sum(1), axis=0)
    right = dict(zip(fits, np.take_along_axis(every, best[None, None], axis=0)[0], strict=True))
    right["count"] = said.present.sum(-1) == found.present.sum(-1)
    right["background"] = (said.background < 0) | (said.background == found.background)
    return {aspect: right[aspect] for aspect in ASPECTS}


def _values(scene: Scene) -> dict[str, np.ndarray]:
    """Int [N, K] by attribute of objects, -1 where it is not known."""
    row, column = (np.asarray(part) for part in place(scene))
    return {**{name: np.asarray(getattr(scene, name)) for name in OBJECT_ATTRIBUTES}, "row": row, "column": column}
