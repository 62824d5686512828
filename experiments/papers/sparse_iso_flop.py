"""Wide sparse layers at the cost of narrow dense ones: more units, the same number of weights."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax import Array

from experiments.papers import training
from mlfuncs import architecture_search, sparsity

VECTORISED = True


def layer_sparsities(config: ml_collections.ConfigDict, width: int) -> dict[str, float]:
    """Sparsity of the kernels of a network with two hidden layers of `width` in place of `config.base_width`.

    Between the hidden layers it is the config's. The outer layers grow on one side alone: dense, as in the paper, they
    cost more than before; `config.sparse_outer_layers` takes as many of their weights as they had.
    """
    outer = 1 - config.base_width / width if config.sparse_outer_layers else 0.0
    chosen = {"layer_0": outer, "layer_1": config.sparsity, "last": outer}
    return dict.fromkeys(chosen, 0.0) if config.masks == "none" else chosen


def network_flops(shapes: dict[str, tuple[int, ...]], sparsities: dict[str, float]) -> int:
    """Multiply-adds of a forward pass of one example, without biases."""
    return sum(architecture_search.layer_flops(shape, 1, 1 - sparsities[name]) for name, shape in shapes.items())


def kernel_shapes(width: int) -> dict[str, tuple[int, ...]]:
    return {
        "layer_0": (training.PIXELS, width),
        "layer_1": (width, width),
        "last": (width, training.CLASSES),
    }


def masked(params: Any, masks: dict[str, Array]) -> Any:
    """Parameters as the forward pass sees them: kernels w * m, and the dense biases."""
    return {name: {**layer, "kernel": layer["kernel"] * masks[name]} for name, layer in params.items()}


def step(
    params: Any, state: Any, masks: dict[str, Array], gradients: Any, optimizer: optax.GradientTransformation
) -> tuple[Any, Any]:
    """One update from the dense gradients with respect to w * m; masked weights stay 0."""
    everywhere = {name: {leaf: masks[name] if leaf == "kernel" else True for leaf in params[name]} for name in params}
    updates, state = optimizer.update(masked(gradients, masks), state, params)
    link = sparsity.masked_update(everywhere)
    updates, _ = link.update(updates, link.init(params), params)
    return optax.apply_updates(params, updates), state


def rewire(
    params: Any, state: Any, masks: dict[str, Array], gradients: Any, drop_fraction: Array
) -> tuple[Any, Any, dict[str, Array]]:
    """RigL: new masks of equal counts, layer by layer; what is dropped or grown, and its moments, start from 0."""
    renewed, untouched = {}, {}
    for name, mask in masks.items():
        weight, gradient = params[name]["kernel"], gradients[name]["kernel"]
        renewed[name] = sparsity.prune_and_regrow(weight, gradient, mask, drop_fraction=drop_fraction)
        # A dropped weight may be grown again at once, and then starts from 0 too. With growth outside the mask alone,
        # what is left within it are the weights that were not dropped.
        elsewhere = sparsity.prune_and_regrow(weight, ~mask, mask, drop_fraction=drop_fraction)
        untouched[name] = elsewhere & mask

    decay, momentum, scale = state
    momentum = momentum._replace(trace=masked(momentum.trace, untouched))
    return masked(params, untouched), (decay, momentum, scale), renewed


def outside(params: Any, state: Any, masks: dict[str, Array]) -> Array:
    """The largest magnitude of a weight or a momentum that its mask excludes."""
    trees = (params, state[1].trace)
    return jnp.max(
        jnp.stack([jnp.max(jnp.abs(tree[name]["kernel"]) * ~mask) for tree in trees for name, mask in masks.items()])
    )


def prepare(config: ml_collections.ConfigDict, key: Array) -> dict[str, Any]:
    """Data, batches, and the initial parameters of the widest network, of which the others take a corner."""
    data_key, init_key, order_key = jax.random.split(key, 3)
    train, test = training.digit_splits(data_key, (config.train, config.test))
    return {
        "train": train._asdict(),
        "test": test._asdict(),
        "initial": training.perceptron((config.widest, config.widest)).init(init_key),
        "rows": training.batches(order_key, config.train, config.batch, config.steps),
    }


def corner(layer: dict[str, Array], shape: tuple[int, ...]) -> dict[str, Array]:
    """The layer with its first inputs and outputs alone, its kernel scaled for their number."""
    scale = jnp.sqrt(layer["kernel"].shape[0] / shape[0])
    return {"kernel": layer["kernel"][: shape[0], : shape[1]] * scale, "bias": layer["bias"][: shape[1]]}


def run(config: ml_collections.ConfigDict, key: Array, shared: dict[str, Any]) -> dict[str, Any]:
    """Trains one network; its masks change on the way, stay, or are not there."""
    train, test = training.Labelled(**shared["train"]), training.Labelled(**shared["test"])
    mask_key = jax.random.split(key, 4)[3]  # the first three are those of `prepare`
    base, steps = config.base_width, config.shared.steps
    width = sparsity.iso_flop_width(
        family="wide", in_features=base, out_features=base, sparsity=config.sparsity, kernel_size=1
    )
    shapes, chosen = kernel_shapes(width), layer_sparsities(config, width)
    network = training.perceptron((width, width))
    masks = {
        name: sparsity.random_mask(jax.random.fold_in(mask_key, index), shape, sparsity=chosen[name])
        for index, (name, shape) in enumerate(shapes.items())
    }
    params = masked({name: corner(layer, shapes[name]) for name, layer in shared["initial"].items()}, masks)
    if config.rescale:  # as the variance of a sparse layer's output is less by its density
        gains = {name: (1 - chosen[name]) ** -0.5 for name in shapes}
        params = {name: {**layer, "kernel": layer["kernel"] * gains[name]} for name, layer in params.items()}
    optimizer = optax.chain(
        optax.add_decayed_weights(config.weight_decay),
        optax.trace(0.9),
        optax.scale_by_learning_rate(optax.piecewise_constant_schedule(config.learning_rate, {config.decay_at: 0.1})),
    )
    end_step = int(config.update_until * steps)

    def loss(params: Any, examples: training.Labelled) -> Array:
        return jnp.mean(training.cross_entropy(network.apply(params, examples.x)["logits"], examples.y))

    def advance(carry: Any, given: Any) -> Any:
        params, state, masks = carry
        index, rows = given
        gradients = jax.grad(loss)(masked(params, masks), train.take(rows))  # dense: with respect to w * m
        params, state = step(params, state, masks, gradients, optimizer)
        if config.masks == "rigl":
            fraction = sparsity.cosine_drop_fraction(index, end_step=end_step, initial=config.drop_fraction)
            due = (index > 0) & (index < end_step) & (index % config.update_every == 0)
            params, state, masks = jax.lax.cond(
                due, lambda: rewire(params, state, masks, gradients, fraction), lambda: (params, state, masks)
            )
        return (params, state, masks), outside(params, state, masks)

    before = masks
    start = (params, optimizer.init(params), masks)
    (params, _, masks), leaked = jax.lax.scan(advance, start, (jnp.arange(steps), shared["rows"]))

    flops = network_flops(shapes, chosen)
    narrow = kernel_shapes(base)
    dense = network_flops(narrow, dict.fromkeys(narrow, 0.0))
    active = sum(jnp.sum(mask) for mask in masks.values())
    tested = training.accuracy(network.apply(masked(params, masks), test.x)["logits"], test.y)
    error = jnp.sqrt(tested * (1 - tested) / test.y.shape[0])
    return {
        "test_accuracy": tested,
        "test_accuracy_less_error": tested - error,
        "train_loss": loss(masked(params, masks), train),
        "flops_ratio": flops / dense,
        "executed_flops_ratio": network_flops(shapes, dict.fromkeys(shapes, 0.0)) / dense,
        "active_weights_over_flops": active / flops,
        "largest_outside_mask": jnp.max(leaked),
        "weights_replaced": sum(jnp.sum(mask & ~before[name]) for name, mask in masks.items()) / active,
    }
