"""What the loop can train: a tuple of pure functions."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np
from jax import Array

State = Any  # one pytree of arrays
Batch = Mapping[str, Array]  # "image", "label", ... and "index", the position of each example in the global batch
Panels = Sequence[tuple[str, np.ndarray]]  # titles and uint8 images [N, H, W, C], drawn side by side
Shown = Panels | list[str]  # or texts


# What the axes of a parameter hold, by its path in the tree of parameters; None: nothing that a mesh splits.
Axes = Mapping[tuple[str, ...], tuple[str | None, ...]]


class Sampler(Protocol):
    def __call__(self, state: State, key: Array, num: int, steps: int) -> Any: ...


class Task(NamedTuple):
    """Pure functions over one state; each is written for the global batch and mentions no device.

    `init(key) -> state`; `update(state, batch, key) -> (state, metrics)` with scalar metrics, among them "loss";
    `evaluate(state, key) -> (metrics, pictures)`; `sample(state, key, num, steps) -> uint8 images` or a list of
    texts, or None where there is nothing to draw, and `steps` what it takes where the caller does not say; `axes` of the
    parameters, and of whatever in the state has their paths and shapes.
    """

    init: Callable[[Array], State]
    update: Callable[[State, Batch, Array], tuple[State, dict[str, Array]]]
    evaluate: Callable[[State, Array], tuple[dict[str, float], Mapping[str, Shown]]]
    sample: Sampler | None = None
    axes: Axes = MappingProxyType({})
    steps: int = 1
