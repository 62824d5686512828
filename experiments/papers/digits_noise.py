"""The miniature that studies of distillation share: a wide teacher of digits, and a narrow student with few noisy ones.

`prepare` trains the teacher of a seed on the whole training set, the same 1,200 digits for all seeds. The student, of
`config.widths`, learns from the first `config.examples` of them. Every step adds fresh noise to its inputs, on which the
teacher answers too. A study gives what is specific to it, a loss of a `Batch`; or an objective by name.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax import Array

from experiments import models
from experiments.papers import training
from experiments.tasks.distillation import objectives
from mlfuncs import vision

SPLIT_SEED = 0
CENTRE = 0.5  # of pixels in [0, 1]


class Batch(NamedTuple):
    """What a student learns from in one step."""

    x: Array  # [B, 64], noisy and mixed as the setting says: what the teacher sees too
    y: Array  # int [B] as the student is told, or floats [B, C] under mixup
    teacher: dict[str, Any]  # outputs of the frozen teacher on x: "logits", "features", "hidden"


Loss = Callable[[Any, Batch, Array], Array]  # (params, batch, key) -> scalar


class Setting(NamedTuple):
    """Data and networks of one seed."""

    train: training.Labelled  # what the student is given
    test: training.Labelled
    student: models.Model
    teach: Callable[[Array], dict[str, Any]]


@functools.cache
def splits(train: int, test: int, classes: int) -> tuple[training.Labelled, training.Labelled]:
    """The fixed training and test set, pixels in [-0.5, 0.5], of the first `classes` digits."""
    with jax.ensure_compile_time_eval():
        parts = training.digit_splits(jax.random.key(SPLIT_SEED), (train, test))
        parts = tuple(part.take(np.flatnonzero(np.asarray(part.y) < classes)) for part in parts)
        first, second = (training.Labelled(part.x - CENTRE, part.y) for part in parts)
    return first, second


def replace_labels(key: Array, labels: Array, *, rate: float, classes: int) -> Array:
    """Labels of which a share `rate`, rounded down, is drawn anew from all classes, the right one included."""
    chosen_key, draw_key = jax.random.split(key)
    chosen = jax.random.permutation(chosen_key, labels.shape[0]) < int(rate * labels.shape[0] + 1e-6)
    return jnp.where(chosen, jax.random.randint(draw_key, labels.shape, 0, classes), labels)


def teacher_network(shared: ml_collections.ConfigDict) -> models.Model:
    return training.perceptron(shared.teacher_widths, classes=shared.classes)


def prepare(config: ml_collections.ConfigDict, key: Array) -> dict[str, Any]:
    """Parameters of the teacher: `settings.shared` decides it."""
    train, _ = splits(config.train, config.test, config.classes)
    init_key, order_key, mix_key = jax.random.split(key, 3)
    network = teacher_network(config)

    def loss(params: Any, rows: Array, key: Array) -> Array:
        x, y = mixed(key, *train.take(rows), fraction=config.teacher_mixup, classes=config.classes)
        return jnp.mean(objectives.cross_entropy(network.apply(params, x)["logits"], y))

    optimizer = optax.adam(config.teacher_learning_rate)
    rows = training.batches(order_key, len(train.y), config.teacher_batch, config.teacher_steps)
    return {"teacher": training.fit(loss, network.init(init_key), optimizer, rows, mix_key)[0]}


def setting(config: ml_collections.ConfigDict, key: Array, shared: dict[str, Any]) -> Setting:
    """What a seed's arms have in common."""
    train, test = splits(config.shared.train, config.shared.test, config.shared.classes)
    if not 1 <= config.examples <= len(train.y):
        raise ValueError(f"examples must be in [1, {len(train.y)}], the training set, got {config.examples}")
    x, y = train.take(slice(config.examples))
    told = replace_labels(jax.random.fold_in(key, 0), y, rate=config.wrong_labels, classes=config.shared.classes)
    network = teacher_network(config.shared)

    def teach(x: Array) -> dict[str, Any]:
        outputs: dict[str, Any] = jax.lax.stop_gradient(network.apply(shared["teacher"], x))
        return outputs

    student = training.perceptron(config.widths, classes=config.shared.classes)
    return Setting(training.Labelled(x, told), test, student, teach)


def first_params(given: Setting, key: Array) -> Any:
    """Parameters that the students of a seed start from."""
    return given.student.init(_keys(key)[0])


def _keys(key: Array) -> Array:
    """Of first parameters, of the order of examples, and of steps."""
    return jax.random.split(jax.random.fold_in(key, 1), 3)


def distil(
    config: ml_collections.ConfigDict,
    key: Array,
    given: Setting,
    loss: Loss,
    *,
    initial: Any = None,
    probe: Callable[[Any], Any] | None = None,
) -> tuple[Any, Any]:
    """Trains a student -> (params, what `probe(params)` gave after every step).

    `initial` are parameters of another form than the student's, of a second head for example.
    """
    _, order_key, step_key = _keys(key)
    params = first_params(given, key) if initial is None else initial
    rows = training.batches(order_key, config.examples, config.batch, config.steps)

    def of_rows(params: Any, rows: Array, key: Array) -> Array:
        batch_key, loss_key = jax.random.split(key)
        return loss(params, batch(config, given, rows, batch_key), loss_key)

    schedule = optax.cosine_decay_schedule(config.learning_rate, config.steps)
    params, _, probed = training.fit(of_rows, params, optax.adam(schedule), rows, step_key, probe=probe)
    return params, probed


def batch(config: ml_collections.ConfigDict, given: Setting, rows: Array, key: Array) -> Batch:
    """Examples with fresh noise, mixed where the setting says so, and the teacher's answers."""
    noise_key, mix_key = jax.random.split(key)
    x, y = given.train.take(rows)
    if config.noise:
        x = x + config.noise * jax.random.normal(noise_key, x.shape)
    x, y = mixed(mix_key, x, y, fraction=config.mixup, classes=config.shared.classes)
    return Batch(x, y, given.teach(x))


def mixed(key: Array, x: Array, y: Array, *, fraction: float, classes: int) -> tuple[Array, Array]:
    """A share of a batch mixed with others of it, labels too, which then are floats [B, C]; 0: as it is."""
    if not fraction:
        return x, y
    pair_key, coefficient_key = jax.random.split(key)
    partner = jax.random.permutation(pair_key, len(y))
    coefficients = vision.mixup_coefficients(coefficient_key, len(y), mixed_fraction=fraction)
    shares = jax.nn.one_hot(y, classes)
    return vision.mixup(x, x[partner], coefficients), vision.mixup(shares, shares[partner], coefficients)


def objective_loss(given: Setting, objective: str) -> Loss:
    """The loss of an objective by name, such as "0.1 * cross_entropy + 0.9 * kullback_leibler(temperature=2)"."""
    terms = objectives.parse(objective)

    def loss(params: Any, batch: Batch, key: Array) -> Array:
        del key
        logits = given.student.apply(params, batch.x)["logits"]
        return objectives.value(terms, logits, batch.teacher["logits"], batch.y)

    return loss


def measured(given: Setting, logits: Callable[[Array], Array]) -> dict[str, Array]:
    """Accuracies of a student and its teacher on clean test images with right labels."""
    taught = given.teach(given.test.x)["logits"]
    return {
        "test_accuracy": training.accuracy(logits(given.test.x), given.test.y),
        "teacher_accuracy": training.accuracy(taught, given.test.y),
        "agreement": training.accuracy(logits(given.test.x), jnp.argmax(taught, -1)),
    }


def run(config: ml_collections.ConfigDict, key: Array, shared: dict[str, Any]) -> dict[str, Array]:
    """A student of `config.objective`."""
    given = setting(config, key, shared)
    params, _ = distil(config, key, given, objective_loss(given, config.objective))
    return measured(given, lambda x: given.student.apply(params, x)["logits"])
