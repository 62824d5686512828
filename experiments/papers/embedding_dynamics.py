"""Self-supervised embeddings as particles: attraction of views, random kicks, and equal singular values against collapse."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax import Array

from experiments import models
from experiments.papers import probes, training
from mlfuncs import metrics, representation

VECTORISED = False  # so that arms share what is compiled, which takes longer here than to run it

HOLE = 3 / 8  # of the side of an image: the side of what an occlusion hides


def view(key: Array, image: Array, *, shift: float, degrees: float, noise: float) -> Array:
    """An image [S, S, C] rotated and shifted at random, `shift` in eighths of S, with a square hidden and noise on it."""
    side, _, channels = image.shape
    hole = round(HOLE * side)
    turn_key, shift_key, hole_key, noise_key = jax.random.split(key, 4)
    angle = jnp.deg2rad(jax.random.uniform(turn_key, (), minval=-degrees, maxval=degrees))
    centre = (side - 1) / 2
    rows, columns = jnp.meshgrid(jnp.arange(side), jnp.arange(side), indexing="ij")
    moved = jax.random.uniform(shift_key, (2,), minval=-shift, maxval=shift) * (side / 8)
    down, right = rows - centre, columns - centre
    where = [
        jnp.cos(angle) * down - jnp.sin(angle) * right + centre + moved[0],
        jnp.sin(angle) * down + jnp.cos(angle) * right + centre + moved[1],
    ]
    move = lambda channel: jax.scipy.ndimage.map_coordinates(channel, where, order=1)  # noqa: E731
    seen = jax.vmap(move, in_axes=2, out_axes=2)(image)
    top, left = jax.random.randint(hole_key, (2,), 0, side - hole + 1)
    hidden = (rows >= top) & (rows < top + hole) & (columns >= left) & (columns < left + hole)
    return jnp.where(hidden[..., None], 0.0, seen) + noise * jax.random.normal(noise_key, (side, side, channels))


def views(key: Array, images: Array, number: int, **given: Any) -> Array:
    """[V, B, S, S, C] of images [B, S, S, C]."""
    keys = jax.random.split(key, (number, images.shape[0]))
    draw = lambda key, image: view(key, image, **given)  # noqa: E731
    return jax.vmap(jax.vmap(draw), in_axes=(0, None))(keys, images)


@functools.partial(jax.jit, static_argnames=("widths", "dimension", "number"))
def pretrain(
    params: Any,
    images: Array,
    rows: Array,
    key: Array,
    changes: dict[str, Any],
    weights: dict[str, Any],
    rates: dict[str, Any],
    *,
    widths: tuple[int, ...],
    dimension: int,
    number: int,
) -> Any:
    """Trains the online network against a target that is its moving average, on `number` views and without labels."""
    network = _network(widths, dimension, images)
    steps = rows.shape[0]
    optimizer = optax.adam(optax.cosine_decay_schedule(rates["learning_rate"], steps))

    def step(carry: Any, given: Any) -> Any:
        params, target, state = carry
        index, chosen = given
        view_key, kick_key = jax.random.split(jax.random.fold_in(key, index))
        seen = views(view_key, images[chosen], number, **changes)
        kicks = representation.random_directions(kick_key, chosen.shape[0], dimension)

        def embed(params: Any) -> Array:
            flat = network.apply(params, _rows(seen, axes=2))["logits"]
            return flat.reshape(*seen.shape[:2], -1)

        def loss(params: Any) -> Array:
            return jnp.mean(representation.embedding_dynamics(embed(params), embed(target), kicks, **weights))

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
        share = (1 - rates["decay"]) * (jnp.cos(jnp.pi * index / steps) + 1) / 2
        return (params, optax.incremental_update(params, target, share), state), ()

    start = params, params, optimizer.init(params)
    return jax.lax.scan(step, start, (jnp.arange(steps), rows))[0][0]


@jax.jit
def measured(
    seen: dict[str, Array], unseen: dict[str, Array], seen_labels: Array, unseen_labels: Array
) -> dict[str, Array]:
    """What embeddings, and the layer below, of training and test images know of labels, and how far they spread."""
    below, embedded = (
        (training.Labelled(seen[read], seen_labels), training.Labelled(unseen[read], unseen_labels))
        for read in ("features", "logits")
    )
    return {
        "effective_rank": metrics.effective_rank(unseen["logits"]),
        "embedding_probe": probes.linear_accuracy(*embedded),
        "backbone_probe": probes.linear_accuracy(*below),
        "neighbour_accuracy": probes.neighbour_accuracy(*embedded),
    }


def run(config: ml_collections.ConfigDict, key: Array) -> dict[str, Array]:
    """Pre-trains without labels, then reads them from the embeddings and from the layer below."""
    data_key, init_key, order_key, step_key = jax.random.split(key, 4)
    train, test = training.image_splits(config.data, data_key, (config.train, config.test))
    widths = tuple(config.widths)
    network = _network(widths, config.dimension, train.x)
    rows = training.batches(order_key, config.train, config.batch, config.steps)
    params = pretrain(
        network.init(init_key),
        train.x,
        rows,
        step_key,
        {name: config[name] for name in ("shift", "degrees", "noise")},
        {name: config[name] for name in ("singular_weight", "brownian_weight")},
        {name: config[name] for name in ("learning_rate", "decay")},
        widths=widths,
        dimension=config.dimension,
        number=config.views,
    )
    seen, unseen = (network.apply(params, _rows(part.x)) for part in (train, test))
    return measured(seen, unseen, train.y, test.y)


def _network(widths: tuple[int, ...], dimension: int, images: Array) -> models.Model:
    pixels = math.prod(images.shape[1:])
    return training.perceptron(widths, classes=dimension, pixels=pixels, norm="scaling")


def _rows(images: Array, axes: int = 1) -> Array:
    """[N, pixels] of images whose first `axes` axes count them."""
    return images.reshape(math.prod(images.shape[:axes]), -1)
