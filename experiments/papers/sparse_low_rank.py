"""Which weights to fine-tune: the smallest against random ones, the largest and all, stopped at one adaptation loss."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax import Array
from jax.flatten_util import ravel_pytree

from experiments.papers import training
from mlfuncs import adapters

VECTORISED = True


def shifted(x: Array, pixels: int, contrast: float) -> Array:
    """Images [N, 64] moved right and down by so many pixels, fainter by a factor."""
    images = jnp.pad(x.reshape(-1, 8, 8), ((0, 0), (pixels, 0), (pixels, 0)))[:, :8, :8]
    return contrast * images.reshape(-1, training.PIXELS)


def prepare(config: ml_collections.ConfigDict, key: Array) -> dict[str, Any]:
    """What all arms start from: a network trained on digits as they are, and digits to adapt to and to test on."""
    data_key, init_key, order_key = jax.random.split(key, 3)
    old, new, test = training.digit_splits(data_key, (config.pretrain, config.adapt, config.test))
    network = training.perceptron(config.widths)

    def mean_loss(params: Any, examples: training.Labelled) -> Array:
        return jnp.mean(training.cross_entropy(network.apply(params, examples.x)["logits"], examples.y))

    def loss(params: Any, rows: Array, key: Array) -> Array:
        return mean_loss(params, old.take(rows))

    rows = training.batches(order_key, config.pretrain, config.batch, config.pretrain_steps)
    optimizer = optax.adamw(config.pretrain_learning_rate, weight_decay=config.weight_decay)
    params, _, _ = training.fit(loss, network.init(init_key), optimizer, rows, key)

    smallest = adapters.small_weight_mask(
        params, threshold=adapters.magnitude_threshold(params, fraction=config.zeroed)
    )
    without = jax.tree.map(lambda p, mask: jnp.where(mask, 0.0, p), params, smallest)
    before, after = mean_loss(params, test), mean_loss(without, test)
    return {
        "params": params,
        "new": new._asdict(),
        "test": test._asdict(),
        "zeroing": {"loss_before": before, "loss_after": after, "loss_change": jnp.abs(after - before) / before},
    }


def selected(key: Array, params: Any, select: str, share: float) -> Any:
    """Masks of the weights that may learn: the `share` of all weights that `select` names."""
    if select == "all":
        return jax.tree.map(lambda p: jnp.ones(p.shape, bool), params)
    if select == "smallest":
        ranked, share_below = params, share
    elif select == "largest":
        ranked, share_below = params, 1 - share
    elif select == "random":
        flat, unflatten = ravel_pytree(params)
        ranked, share_below = unflatten(jax.random.uniform(key, flat.shape)), share
    else:
        raise ValueError(f"select must be smallest, random, largest or all, got {select!r}")
    below = adapters.small_weight_mask(ranked, threshold=adapters.magnitude_threshold(ranked, fraction=share_below))
    return jax.tree.map(jnp.logical_not, below) if select == "largest" else below


class Adapting(NamedTuple):
    """Where fine-tuning stands."""

    params: Any
    masks: Any
    state: Any  # of the optimizer
    step: Array
    loss: Array  # of the task, at `params`, or at those before them while training goes on
    done: Array


def adapt(
    loss: Callable[[Any], Array],
    penalty: Callable[[Any, Any], Array] | None,
    params: Any,
    masks: Any,
    optimizer: optax.GradientTransformation,
    *,
    target: float,
    max_steps: int,
    reselect_at: int,
    threshold: Array,
) -> Adapting:
    """Trains the masked weights until `loss(params)` is below the target: the parameters returned are the first that are.

    At step `reselect_at` (0: never) weights that have left the threshold are frozen and the moments start afresh.
    """

    def step(now: Adapting) -> Adapting:
        value, gradients = jax.value_and_grad(loss)(now.params)
        if penalty is not None:
            gradients = jax.tree.map(jnp.add, gradients, jax.grad(penalty)(now.params, now.masks))
        done = value < target
        # The update is masked, not the gradient: decay and moments must not move frozen weights either.
        updates, state = optimizer.update(gradients, now.state, now.params)
        updates = jax.tree.map(lambda mask, u: jnp.where(mask & ~done, u, 0.0), now.masks, updates)
        masks = now.masks
        if reselect_at:
            fresh = now.step == reselect_at
            kept = adapters.reselect_mask(now.params, masks, threshold=threshold)
            pick = functools.partial(jnp.where, fresh)
            masks = jax.tree.map(pick, kept, masks)
            updates = jax.tree.map(lambda u: jnp.where(fresh, 0.0, u), updates)  # that step only selects
            state = jax.tree.map(pick, optimizer.init(now.params), state)
        return Adapting(
            optax.apply_updates(now.params, updates), masks, state, now.step + jnp.where(done, 0, 1), value, done
        )

    start = Adapting(params, masks, optimizer.init(params), jnp.int32(0), jnp.float32(jnp.inf), jnp.bool_(False))
    return jax.lax.while_loop(lambda now: ~now.done & (now.step < max_steps), step, start)


def run(config: ml_collections.ConfigDict, key: Array, shared: dict[str, Any]) -> dict[str, Array]:
    """Fine-tunes the selected weights on shifted, fainter digits; measures the old task and the new one."""
    network = training.perceptron(config.shared.widths)
    initial, test = shared["params"], training.Labelled(**shared["test"])
    move = functools.partial(shifted, pixels=config.pixels, contrast=config.contrast)
    new_x, new_y = move(shared["new"]["x"]), shared["new"]["y"]
    masks = selected(jax.random.fold_in(key, 1), initial, config.select, config.share)
    threshold = adapters.magnitude_threshold(initial, fraction=config.share)

    def loss(params: Any) -> Array:
        return jnp.mean(training.cross_entropy(network.apply(params, new_x)["logits"], new_y))

    def penalty(params: Any, masks: Any, weight: float = config.rank_penalty) -> Array:
        return adapters.sparse_nuclear_penalty(params, masks, weight=weight, min_dimension=config.min_dimension)

    end = adapt(
        loss,
        penalty if config.rank_penalty else None,
        initial,
        masks,
        optax.adam(config.learning_rate),
        target=config.target,
        max_steps=config.max_steps,
        reselect_at=config.reselect_at,
        threshold=threshold,
    )

    def accuracy(params: Any, x: Array) -> Array:
        return training.accuracy(network.apply(params, x)["logits"], test.y)

    total = sum(jnp.sum(mask) for mask in jax.tree.leaves(masks))
    grown = jax.tree.map(lambda p, mask: jnp.sum(mask & (jnp.abs(p) >= threshold)), end.params, masks)
    return {
        "old_accuracy": accuracy(end.params, test.x),
        "new_accuracy": accuracy(end.params, move(test.x)),
        "old_accuracy_before": accuracy(initial, test.x),
        "new_accuracy_before": accuracy(initial, move(test.x)),
        "steps": end.step,
        "adaptation_loss": loss(end.params),
        "trained_share": total / sum(mask.size for mask in jax.tree.leaves(masks)),
        "grown_share": sum(jax.tree.leaves(grown)) / total,
        "nuclear_norm": penalty(end.params, masks, weight=1.0),
        **shared["zeroing"],
    }
