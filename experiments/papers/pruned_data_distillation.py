"""Data pruning with a teacher of all the data: which examples to keep, and how far to trust the teacher."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax import Array

from experiments.papers import digits_noise, training
from mlfuncs import distillation, selection

VECTORISED = False  # arms differ in the rows that are kept, and share one compiled program
RANDOM, SCORES = "random", ("error_norm", "forgetting")


def prepare(config: ml_collections.ConfigDict, key: Array) -> dict[str, Any]:
    """The teacher's logits, and how hard each training example is by both scores [N]."""
    return _prepare(key, config=ml_collections.FrozenConfigDict(config))


@functools.partial(jax.jit, static_argnames="config")
def _prepare(key: Array, *, config: ml_collections.FrozenConfigDict) -> dict[str, Any]:
    brief_key, long_key = jax.random.split(jax.random.fold_in(key, 1))
    train, test = digits_noise.splits(config.train, config.test, config.classes)
    teacher = digits_noise.prepare(config, key)["teacher"]
    network = digits_noise.teacher_network(config)
    return {
        "taught": network.apply(teacher, train.x)["logits"],
        "taught_test": network.apply(teacher, test.x)["logits"],
        "error_norm": error_norms(config, brief_key, train),
        "forgetting": forgetting(config, long_key, train),
    }


def error_norms(config: ml_collections.ConfigDict, key: Array, train: training.Labelled) -> Array:
    """Mean over several briefly trained networks."""

    def of_one(key: Array) -> Array:
        params, _ = _scorer(config, key, train, config.score_steps)
        return selection.error_norm(_score_network(config).apply(params, train.x)["logits"], train.y)

    return jnp.mean(jax.vmap(of_one)(jax.random.split(key, config.score_networks)), axis=0)


def forgetting(config: ml_collections.ConfigDict, key: Array, train: training.Labelled) -> Array:
    """How often a network in training loses an example again, asked after every epoch."""
    network = _score_network(config)

    def right(params: Any) -> Array:
        return jnp.argmax(network.apply(params, train.x)["logits"], -1) == train.y

    each = len(train.y) // config.teacher_batch
    _, correct = _scorer(config, key, train, config.forgetting_steps, probe=right)
    return selection.forgetting_count(correct[each - 1 :: each])


def _score_network(config: ml_collections.ConfigDict) -> Any:
    return training.perceptron(config.score_widths, classes=config.classes)


def _scorer(
    config: ml_collections.ConfigDict, key: Array, train: training.Labelled, steps: int, probe: Any = None
) -> tuple[Any, Any]:
    init_key, order_key, step_key = jax.random.split(key, 3)
    network = _score_network(config)

    def loss(params: Any, rows: Array, key: Array) -> Array:
        del key
        x, y = train.take(rows)
        return jnp.mean(training.cross_entropy(network.apply(params, x)["logits"], y))

    rows = training.batches(order_key, len(train.y), config.teacher_batch, steps)
    optimizer = optax.adam(config.teacher_learning_rate)
    params, _, probed = training.fit(loss, network.init(init_key), optimizer, rows, step_key, probe=probe)
    return params, probed


def run(config: ml_collections.ConfigDict, key: Array, shared: dict[str, Any]) -> dict[str, Array]:
    """Students on the `config.examples` that a rule keeps, one for each of `config.soft_weights`, from the same start."""
    train, test = digits_noise.splits(config.shared.train, config.shared.test, config.shared.classes)
    size = len(train.y)
    if not 1 <= config.examples <= size:
        raise ValueError(f"examples must be in [1, {size}], the training set, got {config.examples}")
    fraction = config.examples / size
    rows = kept(config.rule, jax.random.fold_in(key, 3), shared, size, fraction)
    settings = {name: config[name] for name in ("widths", "steps", "batch", "learning_rate", "temperature")}
    accuracies = students(
        jax.random.fold_in(key, 1),
        train,
        test,
        shared["taught"],
        jnp.resize(rows, (size,)),
        config.examples,
        jnp.asarray(config.soft_weights),
        config=ml_collections.FrozenConfigDict({"classes": config.shared.classes, **settings}),
    )
    found = {f"test_accuracy_at_{weight:g}": accuracies[i] for i, weight in enumerate(config.soft_weights)}
    found["best_weight"] = best(jnp.asarray(config.soft_weights), accuracies)
    found["teacher_accuracy"] = training.accuracy(shared["taught_test"], test.y)
    found["classes_kept"] = jnp.sum(jnp.bincount(train.y[rows], length=config.shared.classes) > 0)
    if config.rule == RANDOM and fraction < 1:
        errors = ridge_errors(config, jax.random.fold_in(key, 4), fraction)
        found |= {f"ridge_error_at_{weight:g}": errors[i] for i, weight in enumerate(config.soft_weights)}
    return found


@functools.partial(jax.jit, static_argnames="config")
def students(
    key: Array,
    train: training.Labelled,
    test: training.Labelled,
    taught: Array,
    rows: Array,
    count: Array,
    weights: Array,
    *,
    config: ml_collections.FrozenConfigDict,
) -> Array:
    """Accuracy for every weight, of a student that sees batches, drawn with replacement, of the first `count` of `rows`."""
    init_key, order_key = jax.random.split(key)
    network = training.perceptron(config.widths, classes=config.classes)
    drawn = rows[jax.random.randint(order_key, (config.steps, config.batch), 0, count)]

    def accuracy(weight: Array) -> Array:
        def loss(params: Any, rows: Array, key: Array) -> Array:
            del key
            x, y = train.take(rows)
            return objective(network.apply(params, x)["logits"], taught[rows], y, weight, config.temperature)

        optimizer = optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.steps))
        params, _, _ = training.fit(loss, network.init(init_key), optimizer, drawn, order_key)
        return training.accuracy(network.apply(params, test.x)["logits"], test.y)

    return jax.vmap(accuracy)(weights)


def kept(rule: str, key: Array, shared: dict[str, Any], size: int, fraction: float) -> Array:
    """Rows of the examples that a rule keeps: random ones, or the hardest by a score."""
    if rule == RANDOM:
        return selection.keep_random(key, size, fraction=fraction)
    if rule not in SCORES:
        raise ValueError(f"rule must be one of {', '.join((RANDOM, *SCORES))}, got {rule!r}")
    return selection.keep_highest(shared[rule], fraction=fraction)


def objective(logits: Array, taught: Array, labels: Array, weight: Array, temperature: float) -> Array:
    """The mean loss of a student that trusts its teacher by `weight`."""
    return jnp.mean(
        distillation.knowledge_distillation(logits, taught, labels, soft_weight=weight, temperature=temperature)
    )


def best(weights: Array, accuracies: Array) -> Array:
    """The weight of the highest accuracy, of several the mean."""
    highest = accuracies == jnp.max(accuracies)
    return jnp.sum(weights * highest) / jnp.sum(highest)


def ridge_errors(config: ml_collections.ConfigDict, key: Array, fraction: float) -> Array:
    """Squared error of the coefficients of a pruned ridge regression with unit noise, for every soft weight."""
    true_key, input_key, noise_key, kept_key = jax.random.split(key, 4)
    size, width = config.ridge.examples, config.ridge.width
    truth = jax.random.normal(true_key, (width,))
    x = jax.random.normal(input_key, (size, width))
    y = x @ truth + jax.random.normal(noise_key, (size,))
    rows = selection.keep_random(kept_key, size, fraction=fraction)

    def solved(weight: float) -> Array:
        return distillation.self_distilled_ridge(
            x, y, rows, soft_weight=weight, regularization=config.ridge.regularization
        )

    return jnp.stack([jnp.sum((solved(weight) - truth) ** 2) for weight in config.soft_weights])
