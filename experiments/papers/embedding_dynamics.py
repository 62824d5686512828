"""Self-supervised embeddings as particles: attraction of views, random kicks, and equal singular values against collapse."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax import Array

from experiments.papers import probes, training
from mlfuncs import metrics, representation

VECTORISED = False  # so that arms share what is compiled, which takes longer here than to run it

SIDE = 8  # of the digits, in pixels
HOLE = 3  # side of what an occlusion hides


def view(key: Array, image: Array, *, shift: float, degrees: float, noise: float) -> Array:
    """An image [64] rotated and shifted at random, with a square hidden and noise on it."""
    turn_key, shift_key, hole_key, noise_key = jax.random.split(key, 4)
    angle = jnp.deg2rad(jax.random.uniform(turn_key, (), minval=-degrees, maxval=degrees))
    centre = (SIDE - 1) / 2
    rows, columns = jnp.meshgrid(jnp.arange(SIDE), jnp.arange(SIDE), indexing="ij")
    moved = jax.random.uniform(shift_key, (2,), minval=-shift, maxval=shift)
    down, right = rows - centre, columns - centre
    where = [
        jnp.cos(angle) * down - jnp.sin(angle) * right + centre + moved[0],
        jnp.sin(angle) * down + jnp.cos(angle) * right + centre + moved[1],
    ]
    seen = jax.scipy.ndimage.map_coordinates(image.reshape(SIDE, SIDE), where, order=1)
    top, left = jax.random.randint(hole_key, (2,), 0, SIDE - HOLE + 1)
    hidden = (rows >= top) & (rows < top + HOLE) & (columns >= left) & (columns < left + HOLE)
    return (jnp.where(hidden, 0.0, seen) + noise * jax.random.normal(noise_key, (SIDE, SIDE))).reshape(-1)


def views(key: Array, images: Array, number: int, **given: Any) -> Array:
    """[V, B, 64] of images [B, 64]."""
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
    network = training.perceptron(widths, classes=dimension, norm="scaling")
    steps = rows.shape[0]
    optimizer = optax.adam(optax.cosine_decay_schedule(rates["learning_rate"], steps))

    def step(carry: Any, given: Any) -> Any:
        params, target, state = carry
        index, chosen = given
        view_key, kick_key = jax.random.split(jax.random.fold_in(key, index))
        seen = views(view_key, images[chosen], number, **changes)
        kicks = representation.random_directions(kick_key, chosen.shape[0], dimension)

        def embed(params: Any) -> Array:
            flat = network.apply(params, seen.reshape(-1, training.PIXELS))["logits"]
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
    train, test = training.digit_splits(data_key, (config.train, config.test))
    widths = tuple(config.widths)
    network = training.perceptron(widths, classes=config.dimension, norm="scaling")
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
    return measured(network.apply(params, train.x), network.apply(params, test.x), train.y, test.y)
