"""Blocks taken out of a denoiser in one shot by what each removal changes, and features that all weigh alike afterwards."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax import Array

from experiments.papers import training
from mlfuncs import architecture_search, diffusion, distillation

VECTORISED = False  # sets of blocks are chosen on the host

SIGMA_DATA = 0.75  # of pixels in [-1, 1]
FREQUENCIES = 8  # of the noise level
STAGES = 4  # blocks in a row whose last state is a feature
LOUD, GAIN = 2, 30.0  # this stage states its features in a unit 30 times as small as the others do


def initial(key: Array, *, width: int, hidden: tuple[int, ...]) -> dict[str, Any]:
    """A residual network in which block i has hidden[i] units, so that blocks differ in size."""
    make = jax.nn.initializers.lecun_normal()
    keys = jax.random.split(key, 3 * len(hidden) + 2)
    blocks = [
        {
            "first": make(keys[3 * i], (width, units)),
            "level": make(keys[3 * i + 1], (2 * FREQUENCIES, units)),
            "bias": jnp.zeros(units),
            "second": make(keys[3 * i + 2], (units, width)),
        }
        for i, units in enumerate(hidden)
    ]
    return {
        "first": make(keys[-2], (training.PIXELS, width)),
        "blocks": {f"block_{i}": block for i, block in enumerate(blocks)},
        "last": 0.1 * make(keys[-1], (width, training.PIXELS)),
    }


def network(params: Any, x: Array, sigma: Array, keep: Array) -> tuple[Array, list[Array]]:
    """What EDM's network says of noisy images [B, 64], and the features of stages; block i adds keep[i] of itself."""
    coefficients = diffusion.edm_coefficients(sigma, sigma_data=SIGMA_DATA)
    angles = coefficients["noise"][:, None] * (2.0 ** jnp.arange(FREQUENCIES))
    level = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    h, features = (coefficients["in"][:, None] * x) @ params["first"], []
    blocks, number = params["blocks"], len(params["blocks"])
    for i in range(number):
        block = blocks[f"block_{i}"]
        inner = jax.nn.silu(_normalised(h) @ block["first"] + level @ block["level"] + block["bias"])
        h = h + keep[i] * (inner @ block["second"])
        stage = i * STAGES // number
        if (i + 1) * STAGES // number > stage:
            features.append(h * (GAIN if stage == LOUD else 1.0))
    return _normalised(h) @ params["last"], features


def task_loss(output: Array, images: Array, noise: Array, sigma: Array) -> Array:
    """EDM's weighted denoising error [B], as it is for the network itself: all levels weigh alike."""
    skip, out, _, _ = diffusion.edm_coefficients(sigma, sigma_data=SIGMA_DATA).values()
    wanted = (images - skip[:, None] * (images + sigma[:, None] * noise)) / out[:, None]
    return jnp.mean((output - wanted) ** 2, axis=1)


def sizes(params: Any) -> np.ndarray:
    """Parameters of every block."""
    return np.array([sum(leaf.size for leaf in jax.tree.leaves(block)) for block in _blocks(params)], np.float64)


def noisy(key: Array, size: int) -> tuple[Array, Array]:
    """Noise [size, 64] and its levels [size]."""
    noise_key, level_key = jax.random.split(key)
    levels = diffusion.sample_training_sigmas(level_key, (size,))
    return jax.random.normal(noise_key, (size, training.PIXELS)), levels


@functools.partial(jax.jit, static_argnames="peak")
def trained(params: Any, images: Array, rows: Array, key: Array, keep: Array, teach: Any, *, peak: float) -> Any:
    """Trains what is kept; `teach` is None, or the whole network's parameters with the exponent of the feature terms."""

    def loss(params: Any, rows: Array, key: Array) -> Array:
        noise, sigma = noisy(key, rows.shape[0])
        x = images[rows]
        seen = x + sigma[:, None] * noise
        output, features = network(params, seen, sigma, keep)
        error = task_loss(output, x, noise, sigma)
        if teach is None:
            return jnp.mean(error)
        teacher, exponent = teach
        told, shown = network(teacher, seen, sigma, jnp.ones_like(keep))
        return jnp.mean(distillation.feature_and_output(output, told, features, shown, error, exponent=exponent))

    optimizer = optax.adam(optax.cosine_decay_schedule(peak, rows.shape[0]))
    return training.fit(loss, params, optimizer, rows, key)[0]


@jax.jit
def changes(params: Any, images: Array, key: Array, removed: Array) -> Array:
    """[n]: what taking out each of n sets, bool [n, m], changes in the output, on the same noisy images for all."""
    noise, sigma = noisy(key, images.shape[0])
    output = lambda keep: network(params, images + sigma[:, None] * noise, sigma, keep)[0]  # noqa: E731
    full = output(jnp.ones(removed.shape[1]))
    change = lambda gone: architecture_search.output_change(full, output(1.0 - gone)[None])[0]  # noqa: E731
    return jax.lax.map(change, removed)


def prepare(config: ml_collections.ConfigDict, key: Array) -> dict[str, Any]:
    """The whole network of a seed."""
    data_key, init_key, order_key, step_key = jax.random.split(key, 4)
    images = splits(data_key, config)[0]
    params = initial(init_key, width=config.width, hidden=tuple(config.hidden))
    rows = training.batches(order_key, config.train, config.batch, config.steps)
    keep = jnp.ones(len(config.hidden))
    return {"full": trained(params, images, rows, step_key, keep, None, peak=config.learning_rate)}


def splits(key: Array, config: ml_collections.ConfigDict) -> tuple[Array, ...]:
    """Training and test images, in [-1, 1]."""
    return tuple(2 * part.x - 1 for part in training.digit_splits(key, (config.train, config.test)))


def random_sets(generator: np.random.Generator, size: np.ndarray, target: float, number: int) -> np.ndarray:
    """Sets of blocks, each drawn in a random order until enough is removed."""
    return np.array([_until(generator.permutation(len(size)), size, target) for _ in range(number)])


CHOICES: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray, float], np.ndarray]] = {
    # (output changes, sizes, squared weights, size to remove) -> bool [m]
    "knapsack": lambda cost, size, weight, target: architecture_search.knapsack_removal(cost, size, target_size=target),
    "greedy": lambda cost, size, weight, target: _until(np.argsort(cost / size, kind="stable"), size, target),
    "innermost": lambda cost, size, weight, target: _until(
        np.argsort(np.abs(np.arange(len(size)) - (len(size) - 1) / 2), kind="stable"), size, target
    ),
    "magnitude": lambda cost, size, weight, target: architecture_search.knapsack_removal(
        weight, size, target_size=target
    ),
}


def run(config: ml_collections.ConfigDict, key: Array, shared: dict[str, Any]) -> dict[str, Any]:
    """Removes blocks by `config.choice`, at random several times, and trains what is left again."""
    data_key, *_ = jax.random.split(key, 4)  # as in `prepare`
    noise_key, set_key, order_key, step_key, test_key = jax.random.split(jax.random.fold_in(key, 0), 5)
    images, test = splits(data_key, config.shared)
    full, size = shared["full"], sizes(shared["full"])
    calibration = images[: config.calibration]
    cost = np.asarray(changes(full, calibration, noise_key, jnp.eye(len(size), dtype=bool)), np.float64)
    generator = np.random.default_rng(np.asarray(jax.random.key_data(set_key)))
    drawn = _some(generator, len(size), config.checked_sets)
    joint = changes(full, calibration, noise_key, drawn)

    target = config.ratio * size.sum()
    if config.choice == "random":
        removed = random_sets(generator, size, target, config.random_sets)
    else:
        weight = np.array([float(optax.tree.norm(block, squared=True)) for block in _blocks(full)])
        removed = CHOICES[config.choice](cost, size, weight, target)[None]
    losses = []
    for gone in removed[: config.retrained_sets]:
        rows = training.batches(order_key, len(images), config.batch, config.steps)
        keep = jnp.asarray(~gone, jnp.float32)
        teach = (full, jnp.float32(config.exponent))
        student = trained(full, images, rows, step_key, keep, teach, peak=config.learning_rate)
        losses.append(denoising_loss(student, test, test_key, keep))
    return {
        "one_shot_change": jnp.mean(changes(full, calibration, noise_key, jnp.asarray(removed))),
        "denoising_loss": jnp.mean(jnp.stack(losses)),
        "whole_denoising_loss": denoising_loss(full, test, test_key, jnp.ones(len(size))),
        "additivity": architecture_search.additivity(cost, joint, drawn),
        "removed_share": np.mean(removed @ size) / size.sum(),
        "blocks_removed": np.mean(removed.sum(1)),
    }


@jax.jit
def denoising_loss(params: Any, images: Array, key: Array, keep: Array) -> Array:
    """On images, at ten noise levels each."""

    def one(key: Array) -> Array:
        noise, sigma = noisy(key, images.shape[0])
        output, _ = network(params, images + sigma[:, None] * noise, sigma, keep)
        return jnp.mean(task_loss(output, images, noise, sigma))

    return jnp.mean(jax.lax.map(one, jax.random.split(key, 10)))


def _some(generator: np.random.Generator, blocks: int, number: int) -> np.ndarray:
    """Random sets of 2 to 5 blocks."""
    sets = np.zeros((number, blocks), bool)
    for row in sets:
        row[generator.permutation(blocks)[: generator.integers(2, min(5, blocks) + 1)]] = True
    return sets


def _until(order: np.ndarray, size: np.ndarray, target: float) -> np.ndarray:
    """The first of an order, as few as reach the target."""
    enough = int(np.searchsorted(np.cumsum(size[order]), target * (1 - 1e-12))) + 1
    gone = np.zeros(len(size), bool)
    gone[order[:enough]] = True
    return gone


def _blocks(params: Any) -> list[Any]:
    """In their order, which is not that of their names once there are more than ten."""
    return [params["blocks"][f"block_{i}"] for i in range(len(params["blocks"]))]


def _normalised(h: Array) -> Array:
    centred = h - jnp.mean(h, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + 1e-5)
