"""What studies share: digits as arrays, batches, a compiled training loop, accuracy."""

import functools
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax import Array

from experiments import models, runs, worlds
from experiments.engine import logs
from experiments.tasks import classification, common
from experiments.worlds import digits

PIXELS = 64
CLASSES = 10
KEPT = 8  # results of a function that is asked for the same again
MOST_AT_ONCE = 600  # examples that a network is asked about while nothing is trained


class Labelled(NamedTuple):
    """Examples [N, 64] of pixels in [0, 1], and their labels [N]."""

    x: Array
    y: Array

    def take(self, rows: Any) -> "Labelled":
        return Labelled(self.x[rows], self.y[rows])


@functools.cache
def _table() -> tuple[np.ndarray, np.ndarray]:
    split = digits.build(ml_collections.ConfigDict(), None).train  # type: ignore[arg-type]
    everything = split.read(np.arange(len(split)))
    return everything["image"].reshape(-1, PIXELS).astype(np.float32) / 16, everything["label"]


def digit_splits(key: Array, sizes: tuple[int, ...]) -> tuple[Labelled, ...]:
    """The 1,797 digits shuffled by the key and dealt into parts of the given sizes."""
    x, y = _table()
    if sum(sizes) > len(x):
        raise ValueError(f"the digits are {len(x)}, fewer than the {sum(sizes)} of the parts {sizes}")
    order = jax.random.permutation(key, len(x))
    bounds = np.cumsum([0, *sizes])
    everything = Labelled(jnp.asarray(x), jnp.asarray(y))
    return tuple(everything.take(order[low:high]) for low, high in itertools.pairwise(bounds))


@functools.cache
def _world(name: str, folder: str) -> worlds.World:
    """Read once, as every arm and seed asks for it; `folder` is where the environment says that sets lie."""
    del folder
    return worlds.build(ml_collections.ConfigDict({"name": name}))


def image_splits(name: str, key: Array, sizes: tuple[int, int]) -> tuple[Labelled, Labelled]:
    """Training and test images [N, H, W, C] in [0, 1], drawn by the key from a world: "digits", "mnist", "cifar10", ..."""
    if name == "digits":
        side = int(PIXELS**0.5)
        train, test = (part._replace(x=part.x.reshape(-1, side, side, 1)) for part in digit_splits(key, sizes))
        return train, test
    world = _world(name, os.environ.get("MLFUNCS_DATA", ""))
    parts = []
    for index, (split, size) in enumerate(zip((world.train, world.test), sizes, strict=True)):
        if size > len(split):
            raise ValueError(f"{name} has {len(split)} images, fewer than the {size} of a part")
        order = jax.random.permutation(jax.random.fold_in(key, index), len(split))
        found = split.read(np.asarray(order[:size]))
        parts.append(Labelled((world.to_model(jnp.asarray(found["image"])) + 1) / 2, jnp.asarray(found["label"])))
    return parts[0], parts[1]


def flat_splits(name: str, key: Array, sizes: tuple[int, int]) -> tuple[Labelled, Labelled]:
    """As `image_splits`, each image one row: [N, H W C]."""
    train, test = image_splits(name, key, sizes)
    return train._replace(x=train.x.reshape(sizes[0], -1)), test._replace(x=test.x.reshape(sizes[1], -1))


def perceptron(
    widths: tuple[int, ...], *, classes: int = CLASSES, pixels: int = PIXELS, **settings: Any
) -> models.Model:
    """`experiments.models.perceptron` of rows of pixels: init(key), apply(params, x, masks=...) -> logits, features."""
    config = ml_collections.ConfigDict({"name": "perceptron", "widths": tuple(widths), **settings})
    return models.build(config, example_shape=(pixels,), num_classes=classes)


def batches(key: Array, size: int, batch: int, steps: int) -> Array:
    """Rows [steps, batch] of a training set of `size`: a new order every epoch, its last incomplete batch left out."""
    if not 1 <= batch <= size:
        raise ValueError(f"batch must be in [1, {size}], the number of examples, got {batch}")
    each = size // batch
    epochs = -(-steps // each)
    orders = jax.vmap(lambda epoch: jax.random.permutation(jax.random.fold_in(key, epoch), size))(jnp.arange(epochs))
    return orders[:, : each * batch].reshape(-1, batch)[:steps]


Loss = Callable[[Any, Array, Array], Array]  # (params, rows [B], key) -> scalar


def fit(
    loss: Loss,
    params: Any,
    optimizer: optax.GradientTransformation,
    rows: Array,
    key: Array,
    *,
    probe: Callable[[Any], Any] | None = None,
) -> tuple[Any, Array, Any]:
    """Trains over `rows` [steps, B] in one scan -> (params, losses [steps], what `probe(params)` gave after every step)."""

    def step(carry: Any, given: Any) -> Any:
        params, state = carry
        index, chosen = given
        value, gradients = jax.value_and_grad(loss)(params, chosen, jax.random.fold_in(key, index))
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (value, probe(params) if probe else ())

    steps = jnp.arange(rows.shape[0])
    (params, _), (losses, probed) = jax.lax.scan(step, (params, optimizer.init(params)), (steps, rows))
    return params, losses, probed


def in_parts(apply: Callable[[Array], Array], x: Array) -> Array:
    """`apply(x)` of examples that do not see each other, with at most so many at once."""
    size = min(MOST_AT_ONCE, len(x))
    lacking = -len(x) % size
    padded = jnp.concatenate([x, jnp.zeros((lacking, *x.shape[1:]), x.dtype)])
    found = jax.lax.map(apply, padded.reshape(-1, size, *x.shape[1:]))
    return found.reshape(-1, *found.shape[2:])[: len(x)]


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Softmax cross-entropy [B] with integer labels."""
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)


def accuracy(logits: Array, labels: Array) -> Array:
    """Share of rows whose largest logit is the label's."""
    return jnp.mean(jnp.argmax(logits, -1) == labels)


Given = TypeVar("Given")


def kept(function: Callable[..., Given]) -> Callable[..., Given]:
    """Remembers the last results of a function of configs, keys and plain values: arms of a study ask for the same again.

    What it gives must not be changed. Compiled functions among it are compiled once for all arms.
    """
    held: dict[str, Given] = {}

    @functools.wraps(function)
    def remembered(*given: Any) -> Given:
        name = json.dumps([_plain(value) for value in given], sort_keys=True)
        if name not in held:
            found = function(*given)
            if len(held) == KEPT:
                del held[next(iter(held))]  # the oldest
            held[name] = found
        return held[name]

    return remembered


def _plain(value: Any) -> Any:
    if isinstance(value, ml_collections.ConfigDict):
        return value.to_dict()
    return jax.random.key_data(value).tolist() if isinstance(value, Array) else value


class Measured(NamedTuple):
    """A run of `experiments.train`, trained to its end, and what its last evaluation measured."""

    run: runs.Run
    last: dict[str, float]


@kept
def engine_run(config: ml_collections.ConfigDict, key: Array, cache_dir: str) -> Measured:
    """Trains a config of `experiments.train` from the seed of a key; the cache keeps it, and goes on where it stopped."""
    config = ml_collections.ConfigDict(config.to_dict())
    config.seed = int(jax.random.key_data(key)[-1])
    run = runs.obtain(config, Path(cache_dir))
    assert run.workdir is not None
    return Measured(run, logs.read(run.workdir / "metrics.jsonl")[-1])


@kept
def classifier(config: ml_collections.ConfigDict, cache_dir: str) -> Callable[[Array], dict[str, Array]]:
    """Compiled `outputs(images) -> {"logits", "features"}` of a classifier that judges samples, trained where the cache
    lacks it."""
    outputs: Callable[[Array], dict[str, Array]] = jax.jit(classification.outputs(runs.obtain(config, Path(cache_dir))))
    return outputs


@kept
def judge(config: ml_collections.ConfigDict, cache_dir: str) -> common.Judge:
    """What measures samples of a config of `experiments.train`, with the world that they are compared with."""
    trained = functools.partial(runs.obtain, cache_dir=Path(cache_dir))
    return common.Judge(config, worlds.build(config.data, trained), trained)
