"""Pre-training on coarse labels: does a class that may stay in several parts serve the fine labels better?"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax import Array

from experiments.papers import probes, training
from mlfuncs import representation

VECTORISED = False  # so that arms share what is compiled, which takes longer here than to run it


def coarse(labels: Array, groups: int) -> Array:
    """Ten labels in groups of neighbours: 0 to 4 and 5 to 9, or pairs."""
    return labels * groups // training.CLASSES


def supervised_contrastive(
    queries: Array, query_labels: Array, bank: Array, bank_labels: Array, *, temperature: float, exclude: Array
) -> Array:
    """Khosla et al., 2020: the mean over all positives of -log softmax of the similarity; 0 without a positive."""
    similarity = _unit(queries) @ _unit(bank).T / temperature
    found = (bank_labels >= 0) & (jnp.arange(len(bank)) != exclude[:, None])
    scores = jnp.where(found, similarity, -1e9)
    positive = found & (bank_labels == query_labels[:, None])
    surprise = jax.nn.logsumexp(scores, axis=1, keepdims=True) - scores
    return jnp.sum(jnp.where(positive, surprise, 0.0), axis=1) / jnp.maximum(jnp.sum(positive, axis=1), 1)


def silhouette(features: Array, fine: Array, groups: Array) -> Array:
    """Mean silhouette of fine labels within their coarse class: near 1 for parts far from each other, 0 for one cluster."""
    unit = _unit(features)
    distance = jnp.sqrt(jnp.maximum(2 - 2 * unit @ unit.T, 0.0))
    member = jax.nn.one_hot(fine, training.CLASSES)
    own = member > 0
    others = jnp.sum(member, axis=0) - member  # of each class, without the example itself
    mean = distance @ member / jnp.maximum(others, 1)
    inside = jnp.sum(jnp.where(own, mean, 0.0), axis=1)
    # Other fine classes of the same coarse one.
    related = (member.T @ jax.nn.one_hot(groups, training.CLASSES)) > 0
    rival = related[:, groups].T & ~own
    outside = jnp.min(jnp.where(rival, mean, jnp.inf), axis=1)
    return jnp.mean((outside - inside) / jnp.maximum(jnp.maximum(outside, inside), 1e-6))


@functools.partial(jax.jit, static_argnames=("widths", "projection", "objective", "neighbours"))
def contrastive(
    params: Any,
    train: training.Labelled,
    rows: Array,
    temperature: float,
    learning_rate: float,
    *,
    widths: tuple[int, ...],
    projection: int,
    objective: str,
    neighbours: int,
) -> Any:
    """Trains by a loss between projections and a bank of all training images, each as it was when last seen."""
    network = training.perceptron(widths, classes=projection, pixels=train.x.shape[1])
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, rows.shape[0]))
    size = train.x.shape[0]

    def losses(features: Array, chosen: Array, bank: Array, labels: Array) -> Array:
        given = (features, train.y[chosen], bank, labels)
        if objective == "supervised_contrastive":
            return supervised_contrastive(*given, temperature=temperature, exclude=chosen)
        k = neighbours or size
        return representation.leave_one_out_neighbours(*given, k=k, temperature=temperature, exclude=chosen)

    def step(carry: Any, chosen: Array) -> Any:
        params, state, bank, labels = carry
        labels = labels.at[chosen].set(train.y[chosen])

        def loss(params: Any) -> tuple[Array, Array]:
            # The batch itself is compared with too, as it is now, and its gradient passes both ways.
            features = network.apply(params, train.x[chosen])["logits"]
            fresh = bank.at[chosen].set(features)
            return jnp.mean(losses(features, chosen, fresh, labels)), fresh

        gradients, bank = jax.grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state, bank, labels), ()

    start = params, optimizer.init(params), jnp.zeros((size, projection)), jnp.full(size, -1)
    return jax.lax.scan(step, start, rows)[0][0]


@functools.partial(jax.jit, static_argnames=("widths", "groups"))
def classified(
    params: Any, train: training.Labelled, rows: Array, learning_rate: float, *, widths: tuple[int, ...], groups: int
) -> Any:
    """Trains by cross-entropy."""
    network = training.perceptron(widths, classes=groups, pixels=train.x.shape[1])

    def loss(params: Any, rows: Array, key: Array) -> Array:
        del key
        examples = train.take(rows)
        return jnp.mean(training.cross_entropy(network.apply(params, examples.x)["logits"], examples.y))

    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, rows.shape[0]))
    return training.fit(loss, params, optimizer, rows, jax.random.key(0))[0]


@functools.partial(jax.jit, static_argnames="shots")
def measured(
    train: training.Labelled, test: training.Labelled, train_groups: Array, test_groups: Array, *, shots: int
) -> dict[str, Array]:
    """What features [N, D] of both sets know of fine and of coarse labels."""
    few = train._replace(y=probes.few_labels(train.y, shots))
    return {
        "few_shot_accuracy": probes.neighbour_accuracy(few, test),
        "linear_probe_accuracy": probes.linear_accuracy(train, test),
        "coarse_accuracy": probes.neighbour_accuracy(train._replace(y=train_groups), test._replace(y=test_groups)),
        "silhouette_within_coarse": silhouette(test.x, test.y, test_groups),
    }


def run(config: ml_collections.ConfigDict, key: Array) -> dict[str, Array]:
    """Pre-trains on coarse labels, then reads fine ones from the features below the projection."""
    data_key, init_key, order_key = jax.random.split(key, 3)
    train, test = training.flat_splits(config.data, data_key, (config.train, config.test))
    train_groups, test_groups = (coarse(part.y, config.groups) for part in (train, test))
    widths, by_label = tuple(config.widths), config.objective == "cross_entropy"
    outputs = config.groups if by_label else config.projection
    network = training.perceptron(widths, classes=outputs, pixels=train.x.shape[1])
    params = network.init(init_key)
    rows = training.batches(order_key, config.train, config.batch, config.steps)
    given = (params, training.Labelled(train.x, train_groups), rows)
    if by_label:
        params = classified(*given, config.learning_rate, widths=widths, groups=config.groups)
    elif config.objective != "none":
        params = contrastive(
            *given,
            config.temperature,
            config.learning_rate,
            widths=widths,
            projection=config.projection,
            objective=config.objective,
            neighbours=config.neighbours,
        )
    seen, unseen = (part._replace(x=network.apply(params, part.x)["features"]) for part in (train, test))
    return measured(seen, unseen, train_groups, test_groups, shots=config.shots)


def _unit(x: Array) -> Array:
    return x / jnp.sqrt(jnp.maximum(jnp.sum(x**2, axis=-1, keepdims=True), 1e-12))
