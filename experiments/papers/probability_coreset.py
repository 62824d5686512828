"""Active learning of a student with a biased teacher: which digits to annotate next, round by round."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax import Array

from experiments import models
from experiments.papers import digits_noise, training
from mlfuncs import distillation, selection

VECTORISED = False  # all arms share one compiled program
RULES = ("random", "entropy", "feature_coreset", "probability_coreset")
LATER = 2  # the rounds from here on are those that a rule has had time to shape


class Answers(NamedTuple):
    """What a student says of examples."""

    label: Array  # [N, C] logits of the head for labels
    distilled: Array  # [N, C] logits of the head for the teacher
    features: Array  # [N, width], below both heads


def prepare(config: ml_collections.ConfigDict, key: Array) -> dict[str, Any]:
    """What a teacher says of pool and test: trained on `teacher_counts` examples of each class, drawn from the pool."""
    return _prepare(key, config=ml_collections.FrozenConfigDict(config))


@functools.partial(jax.jit, static_argnames="config")
def _prepare(key: Array, *, config: ml_collections.FrozenConfigDict) -> dict[str, Any]:
    pool, test = digits_noise.splits(config.train, config.test, config.classes)
    draw_key, init_key, order_key = jax.random.split(key, 3)
    examples = pool.take(of_classes(draw_key, pool.y, config.teacher_counts))
    network = training.perceptron(config.teacher_widths, classes=config.classes)

    def loss(params: Any, rows: Array, key: Array) -> Array:
        del key
        x, y = examples.take(rows)
        return jnp.mean(training.cross_entropy(network.apply(params, x)["logits"], y))

    rows = training.batches(order_key, len(examples.y), config.teacher_batch, config.teacher_steps)
    optimizer = optax.adam(config.teacher_learning_rate)
    params = training.fit(loss, network.init(init_key), optimizer, rows, order_key)[0]
    return {"pool": network.apply(params, pool.x)["logits"], "test": network.apply(params, test.x)["logits"]}


def run(config: ml_collections.ConfigDict, key: Array, shared: dict[str, Any]) -> dict[str, Array]:
    """Trains from scratch, measures, annotates as many examples as there are classes, and again, `config.rounds` times."""
    if config.rule not in RULES:
        raise ValueError(f"rule must be one of {', '.join(RULES)}, got {config.rule!r}")
    _, test = digits_noise.splits(config.shared.train, config.shared.test, config.shared.classes)
    fields = ("rounds", "widths", "steps", "batch", "unlabelled_batch", "learning_rate", "temperature")
    settings = {name: config[name] for name in fields} | {
        name: config.shared[name] for name in ("train", "test", "classes")
    }
    accuracies, gaps, labelled = rounds(
        key,
        shared["pool"],
        RULES.index(config.rule),
        0.5 if config.distil else 0.0,
        config=ml_collections.FrozenConfigDict(settings),
    )
    found = {f"test_accuracy_{index}": accuracies[index] for index in range(config.rounds)}
    found |= {f"gap_{index}": gaps[index] for index in range(config.rounds)}
    return found | {
        "test_accuracy": jnp.mean(accuracies[LATER:]),
        "test_accuracy_first": jnp.mean(accuracies[:LATER]),
        "teacher_accuracy": training.accuracy(shared["test"], test.y),
        "different_rows": jnp.asarray(len(set(labelled.tolist())) / len(labelled)),
    }


@functools.partial(jax.jit, static_argnames="config")
def rounds(
    key: Array, taught: Array, rule: Array, mix: Array, *, config: ml_collections.FrozenConfigDict
) -> tuple[Array, Array, Array]:
    """Accuracies, widest gaps after each round's picks, and all rows labelled in the end; `mix` 0: without the teacher."""
    pool, test = digits_noise.splits(config.train, config.test, config.classes)
    # Both heads side by side in the last layer: the first half of its logits is for labels.
    student = training.perceptron(config.widths, classes=2 * config.classes)
    slots = config.classes * (config.rounds + 1)
    first = first_labelled(jax.random.fold_in(key, 0), pool.y, config.classes, slots)

    def of_round(labelled: Array, index: Array) -> tuple[Array, tuple[Array, Array]]:
        round_key = jax.random.fold_in(jax.random.fold_in(key, 1), index)
        count = config.classes * (index + 1)
        params = train(config, round_key, student, pool, taught, labelled, count, mix)
        found = training.accuracy(probabilities(answers(student, params, test.x), mix), test.y)
        seen = answers(student, params, pool.x)
        picks = select(rule, jax.random.fold_in(round_key, 3), seen, labelled, config.classes, mix)
        labelled = jax.lax.dynamic_update_slice(labelled, picks, (count,))
        return labelled, (found, widest_gap(probabilities(seen, mix), labelled))

    labelled, (accuracies, gaps) = jax.lax.scan(of_round, first, jnp.arange(config.rounds))
    return accuracies, gaps, labelled


def of_classes(key: Array, labels: Array, counts: tuple[int, ...]) -> Array:
    """Rows of random examples, so many of each class, class by class."""
    drawn = jax.random.uniform(key, labels.shape)
    return jnp.concatenate(
        [jax.lax.top_k(jnp.where(labels == label, drawn, -1.0), count)[1] for label, count in enumerate(counts)]
    )


def first_labelled(key: Array, labels: Array, classes: int, slots: int) -> Array:
    """One example of each class, and the first of them again in the slots that later rounds fill."""
    rows = of_classes(key, labels, (1,) * classes)
    return jnp.concatenate([rows, jnp.full(slots - classes, rows[0])])


def answers(student: models.Model, params: Any, x: Array) -> Answers:
    seen = student.apply(params, x)
    label, distilled = jnp.split(seen["logits"], 2, axis=-1)
    return Answers(label, distilled, seen["features"])


def probabilities(seen: Answers, mix: Array | float) -> Array:
    """Predictions of both heads."""
    return distillation.dual_head_probabilities(seen.label, seen.distilled, mix=mix)


def train(
    config: ml_collections.FrozenConfigDict,
    key: Array,
    student: models.Model,
    pool: training.Labelled,
    taught: Array,
    labelled: Array,
    count: Array,
    soft_weight: Array,
) -> Any:
    """A new student, on the first `count` of the labelled rows and on unlabelled ones that the teacher answers."""
    init_key, labelled_key, other_key = jax.random.split(key, 3)
    size = len(pool.y)
    # The unlabelled first.
    others = jnp.argsort(jnp.zeros(size, bool).at[labelled].set(True), stable=True)
    own = jax.random.randint(labelled_key, (config.steps, config.batch), 0, count)
    other = jax.random.randint(other_key, (config.steps, config.unlabelled_batch), 0, size - count)

    def loss(params: Any, rows: Array, key: Array) -> Array:
        del key
        seen = answers(student, params, pool.x[rows])
        return distillation.dual_head_objective(
            seen.label[: config.batch],
            seen.distilled[: config.batch],
            taught[rows[: config.batch]],
            pool.y[rows[: config.batch]],
            seen.distilled[config.batch :],
            taught[rows[config.batch :]],
            temperature=config.temperature,
            soft_weight=soft_weight,
        )

    rows = jnp.concatenate([labelled[own], others[other]], axis=1)
    return training.fit(loss, student.init(init_key), optax.adam(config.learning_rate), rows, key)[0]


def select(rule: Array | int, key: Array, seen: Answers, labelled: Array, count: int, mix: Array | float) -> Array:
    """Rows of the pool to annotate next. Labelled rows stay in it: at distance 0, or sure of themselves, they never win."""
    size = len(seen.label)
    known = jnp.zeros(size, bool).at[labelled].set(True)
    label, distilled = seen.label, seen.distilled

    def at_random() -> Array:
        return jax.lax.top_k(jnp.where(known, -1.0, jax.random.uniform(key, (size,))), count)[1]

    def by_entropy() -> Array:
        certain = jax.nn.one_hot(0, label.shape[1])
        return selection.highest_entropy(jnp.where(known[:, None], certain, probabilities(seen, mix)), count=count)

    def by_features() -> Array:
        return selection.farthest_first(seen.features, seen.features[labelled], count=count, metric="cosine")

    def by_probabilities() -> Array:
        return selection.probability_coreset(
            label, distilled, label[labelled], distilled[labelled], count=count, mix=mix
        )

    return jax.lax.switch(rule, (at_random, by_entropy, by_features, by_probabilities))  # in the order of RULES


def widest_gap(points: Array, labelled: Array) -> Array:
    """The largest distance of a prediction [N, C] to its nearest labelled one."""

    def nearer(nearest: Array, row: Array) -> tuple[Array, None]:
        return jnp.minimum(nearest, jnp.sum((points - points[row]) ** 2, axis=1)), None

    nearest, _ = jax.lax.scan(nearer, jnp.full(len(points), jnp.inf), labelled)
    return jnp.sqrt(jnp.max(nearest))
