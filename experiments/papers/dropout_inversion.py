"""Dropout inversion: images read from a shared gradient although dropout masks, unknown to the reader, were at work."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax import Array

from experiments.papers import training
from mlfuncs import dropout, privacy

VECTORISED = False  # arms differ in values alone: they share two compiled programs a batch size
SIDE = 8  # pixels of a digit's edge
ATTACKS = ("plain", "inversion", "informed")
VALUES = ("rate", "attack", "shuffled")  # settings that need no program of their own


def run(config: ml_collections.ConfigDict, key: Array) -> dict[str, Array]:
    """One client with a random network shares the gradient of one batch; an attack reconstructs the batch."""
    if config.attack not in ATTACKS:
        raise ValueError(f"attack must be one of {', '.join(ATTACKS)}, got {config.attack!r}")
    shape = ml_collections.FrozenConfigDict({name: value for name, value in config.items() if name not in VALUES})
    finds_masks = config.attack == "inversion" and config.rate > 0
    return _attack(
        key, float(config.rate), config.attack == "informed", config.shuffled, config=shape, finds_masks=finds_masks
    )


@functools.partial(jax.jit, static_argnames=("config", "finds_masks"))
def _attack(
    key: Array,
    rate: Array,
    informed: Array,
    shuffled: Array,
    *,
    config: ml_collections.FrozenConfigDict,
    finds_masks: bool,
) -> dict[str, Array]:
    data_key, init_key, mask_key, shuffle_key, attack_key = jax.random.split(key, 5)
    client, others = training.digit_splits(data_key, (config.batch, config.others))
    network = training.perceptron(config.widths, activation="gelu", hidden_bias=False, head_bias=False)
    params = network.init(init_key)

    def apply(params: Any, inputs: Array, masks: Any) -> Array:
        return network.apply(params, inputs, masks=[mask / (1 - rate) for mask in masks])["logits"]

    shapes = tuple((config.batch, width) for width in config.widths)
    keys = jax.random.split(mask_key, len(shapes))
    # The sampled masks, not "activation is not 0", are what an attack has to find.
    masks = tuple(
        dropout.bernoulli_mask(key, shape, rate=rate, dtype=jnp.float32)
        for key, shape in zip(keys, shapes, strict=True)
    )
    # Masks of 1 - rate, which the network's 1 / (1 - rate) makes 1, ignore the dropout.
    known = tuple(jnp.where(informed, mask, 1 - rate) for mask in masks)

    def client_loss(params: Any) -> Array:
        return jnp.mean(training.cross_entropy(apply(params, client.x, masks), client.y))

    gradients = jax.grad(client_loss)(params)
    mixed = shuffle_values(shuffle_key, gradients)
    gradients = jax.tree.map(lambda mix, own: jnp.where(shuffled, mix, own), mixed, gradients)
    found = privacy.invert_gradients(
        attack_key,
        apply,
        params,
        gradients,
        client.y,
        input_shape=(config.batch, SIDE, SIDE, 1),
        mask_shapes=shapes,
        rate=rate,
        num_steps=config.steps,
        learning_rate=optax.piecewise_constant_schedule(
            config.learning_rate, {int(part * config.steps): 0.1 for part in config.cuts}
        ),
        patience=config.steps,  # the schedule alone cuts the learning rate
        optimize_masks=finds_masks,
        masks=None if finds_masks else known,
        tv_weight=config.tv_weight,
        mask_weight=config.mask_weight,
        history=1,
    )
    error, order = matched_error(found["inputs"].reshape(config.batch, -1), client.x)
    # At one half, the masks of the plain attack at the highest rate here, a unit counts as kept.
    right = [
        jnp.mean((ours[order] >= 0.5) == (theirs >= 0.5)) for ours, theirs in zip(found["masks"], masks, strict=True)
    ]
    return {
        "error": error,
        "masks_recovered": sum(right) / len(right),
        "objective": found["objective"],
        "error_of_the_mean_digit": jnp.mean((jnp.mean(others.x, axis=0) - client.x) ** 2),
    }


def shuffle_values(key: Array, tree: Any) -> Any:
    """A tree with the values of each leaf in random order: same norm, no information on where they belong."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    mixed = [
        jax.random.permutation(k, leaf.reshape(-1)).reshape(leaf.shape) for k, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, mixed)


def matched_error(found: Array, true: Array) -> tuple[Array, Array]:
    """Mean squared error of the best one-to-one assignment, and which row of `found` [B, D] goes to each of `true`.

    Gradients do not know the order of a batch, so images of one class may come back in another.
    """
    if np.shape(found) != np.shape(true):
        raise ValueError(f"found and true must have one shape, got {np.shape(found)} and {np.shape(true)}")
    costs = jnp.mean((true[:, None] - found[None]) ** 2, axis=-1)
    rows, columns = optax.assignment.hungarian_algorithm(costs)
    order = jnp.zeros(len(true), int).at[rows].set(columns)
    return jnp.mean(costs[rows, columns]), order
