"""Defects by two small networks, each of which tells one layer of a frozen transformer from the other, on good pictures."""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import scipy.ndimage
from jax import Array
from sklearn.metrics import roc_auc_score

from experiments import models
from experiments.papers import training
from experiments.worlds import defects
from mlfuncs import distillation, metrics, vision

VECTORISED = False  # overlap with regions is measured on the host, and it takes the time

SIZE = 64  # of pictures, in pixels
RESOLUTIONS = {"full": 1, "half": 2}  # pixels that are averaged, along a side
READINGS = ("product", "forward", "backward", "memory")
CENTRE, SPREAD = 0.5, 0.17  # of pixels
BLUR = (5, 5, 5)  # as wide for a patch as in the paper
TIMED = 7  # calls, of which the median counts


def transformer(config: ml_collections.ConfigDict, size: int) -> models.Model:
    """The teacher for pictures of a size; its logits are the pixels of a patch."""
    return _transformer(size, **{name: config[name] for name in ("width", "depth", "heads", "patch")})


@functools.cache
def _transformer(size: int, **fields: int) -> models.Model:
    network = ml_collections.ConfigDict({"name": "vit", "expansion": 2, **fields})
    return models.build(network, example_shape=(size, size, 3), num_classes=3 * fields["patch"] ** 2)


def blocks(config: ml_collections.ConfigDict, params: Any, pictures: Array) -> tuple[Array, ...]:
    """Tokens [B, P, D] after every block, of pictures of any size: places are resized with it."""
    size = pictures.shape[1]
    sides = SIZE // config.patch, size // config.patch
    places = params["places"]["embedding"].reshape(sides[0], sides[0], -1)
    resized = jax.image.resize(places, (sides[1], sides[1], places.shape[-1]), "linear").reshape(sides[1] ** 2, -1)
    shown = params | {"places": {"embedding": resized}}
    found: tuple[Array, ...] = transformer(config, size).apply(shown, (pictures - CENTRE) / SPREAD)["hidden"]
    return found


def shrunk(pictures: Array, factor: int) -> Array:
    """Means of squares of factor * factor pixels."""
    batch, size = pictures.shape[:2]
    return pictures.reshape(batch, size // factor, factor, size // factor, factor, -1).mean((2, 4))


def reconstruction(config: ml_collections.ConfigDict, params: Any, pictures: Array, key: Array) -> Array:
    """Mean squared error of hidden patches, from those that are left, and of these too."""
    size, patch = pictures.shape[1], config.patch
    patches = vision.patchify(pictures, patch=patch, channels_last=True)
    hidden = jax.random.bernoulli(key, config.hidden, patches.shape[:2])[..., None]
    seen = jnp.where(hidden, CENTRE, patches)
    shown = vision.unpatchify(seen, height=size, width=size, patch=patch, channels_last=True)
    last = params["last"]
    told = blocks(config, params, shown)[-1] @ last["kernel"] + last["bias"]
    return jnp.mean((told - (patches - CENTRE) / SPREAD) ** 2)


def pretrained(config: ml_collections.ConfigDict, key: Array) -> tuple[Any, Array]:
    """A teacher that fills in hidden patches of varied pictures, at all resolutions; and its losses."""
    data_key, init_key, order_key, step_key = jax.random.split(key, 4)
    factors = [RESOLUTIONS[name] for name in config.resolutions]
    pictures = defects.varied(data_key, config.pictures, SIZE)

    def loss(params: Any, rows: Array, key: Array) -> Array:
        errors = [
            reconstruction(config, params, shrunk(pictures[rows], factor), jax.random.fold_in(key, factor))
            for factor in factors
        ]
        return jnp.mean(jnp.stack(errors))

    rows = training.batches(order_key, config.pictures, config.batch, config.steps)
    warmup = config.steps // 10
    optimizer = optax.adam(optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, config.steps))
    params, losses, _ = training.fit(loss, transformer(config, SIZE).init(init_key), optimizer, rows, step_key)
    return params, losses


def layers(config: ml_collections.ConfigDict, params: Any, pictures: Array) -> dict[str, Array]:
    """Tokens [B, P, D] of the early and the late block."""
    found = blocks(config, params, pictures)
    return {"early": found[config.early], "late": found[config.late]}


def student(width: int) -> models.Model:
    """Three dense layers that see one token each."""
    network = ml_collections.ConfigDict({"name": "perceptron", "widths": (width, width), "activation": "gelu"})
    return models.build(network, example_shape=(width,), num_classes=width)


def told(params: Any, tokens: dict[str, Array]) -> tuple[Array, Array]:
    """What the forward student says of the late block, and the backward one of the early block, [B, P, D] each."""
    width = tokens["early"].shape[-1]

    def apply(params: Any, given: Array) -> Array:
        logits: Array = student(width).apply(params, given.reshape(-1, width))["logits"]
        return logits.reshape(given.shape)

    return apply(params["forward"], tokens["early"]), apply(params["backward"], tokens["late"])


def transferred(config: ml_collections.ConfigDict, tokens: dict[str, Array], key: Array) -> Any:
    """Both students, trained on tokens of good pictures."""
    *init_keys, order_key = jax.random.split(key, 3)

    def loss(params: Any, rows: Array, key: Array) -> Array:
        del key
        some = {name: values[rows] for name, values in tokens.items()}
        return jnp.mean(distillation.layer_transfer(*told(params, some), **some))

    init = student(config.width).init
    params = {name: init(one) for name, one in zip(("forward", "backward"), init_keys, strict=True)}
    rows = training.batches(order_key, config.train, config.student_batch, config.student_steps)
    return training.fit(loss, params, optax.adam(config.student_learning_rate), rows, order_key)[0]


def prepare(config: ml_collections.ConfigDict, key: Array) -> dict[str, Any]:
    """Of a seed: its product's pictures as the teacher's tokens, and the students, at all resolutions."""
    found: dict[str, Any] = jax.jit(functools.partial(_prepared, config))(key)
    return found


def _prepared(config: ml_collections.ConfigDict, key: Array) -> dict[str, Any]:
    teacher_key, product_key, train_key, test_key, student_key = jax.random.split(key, 5)
    teacher, losses = pretrained(config, teacher_key)
    made = defects.product(product_key)
    seen = defects.faultless(train_key, made, config.train, SIZE)
    unseen, masks = defects.mixed(test_key, made, config.test, SIZE, contrast=config.contrast)
    found: dict[str, Any] = {"masks": masks, "teacher_loss": jnp.mean(losses[-config.steps // 10 :])}
    for name in config.resolutions:
        tokens = layers(config, teacher, shrunk(jnp.concatenate([seen, unseen]), RESOLUTIONS[name]))
        train = jax.tree.map(lambda x: x[: config.train], tokens)
        test = jax.tree.map(lambda x: x[config.train :], tokens)
        found[name] = {"students": transferred(config, train, student_key), "train": train, "test": test}
    return found


def apart(prediction: Array, target: Array) -> Array:
    """Distance of unit vectors, [B, P]: the factor of `vision.transfer_anomaly_map` that is one student's."""
    return jnp.sqrt(jnp.maximum(2 * distillation.cosine_distance(prediction, target), 0.0))


def from_memory(memory: Array, tokens: dict[str, Array]) -> Array:
    """Distance [B, P] of each token to the nearest of a memory [M, 2 D] of good ones."""

    def nearest(query: Array) -> Array:
        squares = jnp.sum(query**2, axis=-1, keepdims=True) + jnp.sum(memory**2, axis=-1) - 2 * query @ memory.T
        return jnp.sqrt(jnp.maximum(jnp.min(squares, axis=-1), 0.0))

    return jax.lax.map(nearest, joined(tokens))


@jax.jit
def joined(tokens: dict[str, Array]) -> Array:
    """Both layers, each as a unit vector, side by side, [B, P, 2 D]."""
    unit = [x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12) for x in tokens.values()]
    return jnp.concatenate(unit, axis=-1)


@functools.partial(jax.jit, static_argnums=2)
def remembered(tokens: dict[str, Array], key: Array, kept: int) -> Array:
    """Some of the tokens, drawn at random, [kept, 2 D]."""
    known = joined(tokens)
    return jax.random.permutation(key, known.reshape(-1, known.shape[-1]))[:kept]


@functools.partial(jax.jit, static_argnames="reading")
def maps(reading: str, students: Any, memory: Array, tokens: dict[str, Array]) -> Array:
    """How unusual pixels are, [B, SIZE, SIZE]."""
    early, late = tokens["early"], tokens["late"]
    side = round(early.shape[1] ** 0.5)
    if reading == "memory":
        found = from_memory(memory, tokens)
    else:
        forward, backward = told(students, tokens)
        if reading == "product":
            found = vision.transfer_anomaly_map(forward, backward, early, late, grid=(side, side))
        else:
            found = apart(forward, late) if reading == "forward" else apart(backward, early)
    large = jax.image.resize(found.reshape(-1, side, side), (len(found), SIZE, SIZE), "linear")
    return vision.box_blur(large, sizes=BLUR)


def smallest_quartile(masks: np.ndarray) -> float:
    """Pixels of the defect that a quarter of all are no larger than."""
    sizes = [np.bincount(scipy.ndimage.label(mask, np.ones((3, 3)))[0].reshape(-1))[1:] for mask in masks]
    return float(np.quantile(np.concatenate(sizes), 0.25))


def median_seconds(function: Callable[[], Array]) -> float:
    """Of several calls after a first."""
    taken = []
    for _ in range(TIMED + 1):
        begin = time.perf_counter()
        jax.block_until_ready(function())
        taken.append(time.perf_counter() - begin)
    return float(np.median(taken[1:]))


def run(config: ml_collections.ConfigDict, key: Array, shared: dict[str, Any]) -> dict[str, Any]:
    """Maps of the test pictures by one reading, and how well they find what is wrong."""
    if config.reading not in READINGS:
        raise ValueError(f"reading must be one of {', '.join(READINGS)}, got {config.reading!r}")
    given, masks = shared[config.resolution], np.asarray(shared["masks"], bool)
    kept = round(config.memory_share * given["train"]["early"][..., 0].size)
    memory = remembered(given["train"], key, kept)
    scored = functools.partial(maps, config.reading, given["students"], memory, given["test"])
    found = np.asarray(scored())
    whole = vision.top_fraction_mean(found)
    overlap = metrics.per_region_overlap_area(found, masks, limits=(0.3, 0.05))
    small = metrics.per_region_overlap_area(found, masks, limits=(0.3, 0.05), size_range=(0, smallest_quartile(masks)))
    return {
        "region_overlap": overlap[0],
        "small_region_overlap": small[0],
        "region_overlap_at_0.05": overlap[1],
        "small_region_overlap_at_0.05": small[1],
        "pixel_auroc": roc_auc_score(masks.reshape(-1), found.reshape(-1)),
        "image_auroc": roc_auc_score(masks.any(axis=(1, 2)), np.asarray(whole)),
        "milliseconds_per_picture": 1e3 * median_seconds(scored) / len(found),
        "teacher_loss": shared["teacher_loss"],
    }
