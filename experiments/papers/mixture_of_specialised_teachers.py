"""A digit that the student sees badly and its teachers hear: does it learn more from whom a gate picks for each example?"""

import functools
import math
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
from mlfuncs import attention, distillation

VECTORISED = False  # so that arms share what is compiled

HEARD = 64  # values of a spectrogram
FUSION, OTHER, OWN = range(3)  # networks: of both modalities, of the one that the student lacks, of the student's
TEACHERS = (FUSION, OTHER)
HALVED, EASED = 30, 10  # epochs after which the weight of distillation is halved, and that of even use a tenth less


class Views(NamedTuple):
    """Examples [3, N, D] as the three networks get them, with zeros for what they lack, and labels [N]."""

    x: Array
    y: Array


class Noise(NamedTuple):
    """How unclear each modality is."""

    image: float  # deviation, of pixels in [0, 1]
    alike: float  # what two classes share in sound: 1 is all
    speaker: float
    spectrogram: float


def glimpsed(key: Array, images: Array, noise: Array | float) -> Array:
    """Images [N, H, W, C] flat, with noise, and a quarter of each, at a random place, hidden."""
    count, height, width, _ = images.shape
    place_key, noise_key = jax.random.split(key)
    corners = jax.random.uniform(place_key, (2, count, 1))

    def within(corner: Array, size: int) -> Array:
        first = jnp.floor(corner * (size - size // 2 + 1))
        return (jnp.arange(size) >= first) & (jnp.arange(size) < first + size // 2)

    hidden = within(corners[0], height)[:, :, None] & within(corners[1], width)[:, None, :]
    left = jnp.where(hidden[..., None], 0.0, images)
    return (left + noise * jax.random.normal(noise_key, images.shape)).reshape(count, -1)


def spoken(key: Array, labels: Array, noise: Noise) -> Array:
    """Spectrograms [N, 64] of digits: that of its class, which two classes nearly share, of a speaker, and noise."""
    class_key, speaker_key = jax.random.split(jax.random.key(0))  # the same language whatever the seed
    pairs, own = jax.random.normal(class_key, (2, training.CLASSES, HEARD)) / math.sqrt(HEARD)
    sounds = pairs[jnp.arange(training.CLASSES) // 2] + (1 - noise.alike) * own
    voices = jax.random.normal(speaker_key, (4, HEARD)) / math.sqrt(HEARD)
    voice_key, noise_key = jax.random.split(key)
    voice = jax.random.normal(voice_key, (len(labels), len(voices))) @ voices
    heard = sounds[labels] + noise.speaker * voice
    return heard + noise.spectrogram * jax.random.normal(noise_key, heard.shape) / math.sqrt(HEARD)


def splits(key: Array, shared: ml_collections.ConfigDict) -> tuple[Views, Views, Views]:
    """Training, validation and test examples."""
    image_key, view_key = jax.random.split(key)
    sizes = (shared.train + shared.validation, shared.test)
    images, of_test = training.image_splits(shared.data, image_key, sizes)
    return dealt(view_key, images, of_test, Noise(**shared.noise), train=shared.train)


@functools.partial(jax.jit, static_argnames="train")
def dealt(
    key: Array, images: training.Labelled, of_test: training.Labelled, noise: Noise, *, train: int
) -> tuple[Views, Views, Views]:
    """The first images for training, and the others for validation."""
    pool_key, test_key = jax.random.split(key)
    pool = viewed(pool_key, images, noise)
    first, others = (Views(pool.x[:, part], pool.y[part]) for part in (slice(train), slice(train, None)))
    return first, others, viewed(test_key, of_test, noise)


def viewed(key: Array, examples: training.Labelled, noise: Noise) -> Views:
    """Images with spectrograms of their labels."""
    seen_key, heard_key = jax.random.split(key)
    seen = glimpsed(seen_key, examples.x, noise.image)
    heard = spoken(heard_key, examples.y, noise)
    both = [(seen, heard), (jnp.zeros_like(seen), heard), (seen, jnp.zeros_like(heard))]
    return Views(jnp.stack([jnp.concatenate(pair, axis=1) for pair in both]), examples.y)


@functools.cache
def network(widths: tuple[int, ...], inputs: int) -> models.Model:
    config = ml_collections.ConfigDict({"name": "perceptron", "widths": widths})
    return models.build(config, example_shape=(inputs,), num_classes=training.CLASSES)


@functools.partial(jax.jit, static_argnames=("widths", "batch", "epochs"))
def together(
    key: Array, train: Views, exchange: float, peak: float, *, widths: tuple[int, ...], batch: int, epochs: int
) -> Any:
    """Parameters [3, ...] of all networks, which learn from labels, and from each other times `exchange`."""
    made = network(widths, train.x.shape[-1])
    init_key, order_key = jax.random.split(key)

    def loss(params: Any, rows: Array, key: Array) -> Array:
        del key
        logits = jax.vmap(lambda params, x: made.apply(params, x)["logits"])(params, train.x[:, rows])
        right = jnp.sum(jax.vmap(training.cross_entropy, (0, None))(logits, train.y[rows]), axis=0)
        return jnp.mean(right + exchange * distillation.mutual(logits))

    rows = training.batches(order_key, len(train.y), batch, epochs * (len(train.y) // batch))
    return training.fit(loss, jax.vmap(made.init)(jax.random.split(init_key, 3)), optax.adam(peak), rows, key)[0]


def fit_best(
    loss: Callable[[Any, Array, Any], Array],
    missed: Callable[[Any], Array],
    params: Any,
    optimizer: optax.GradientTransformation,
    rows: Array,
    given: Any,
) -> tuple[Any, Array]:
    """Trains over `rows` [epochs, steps, B], each epoch with its entry of `given` -> the epoch that `missed` least."""

    def step(carry: Any, chosen: Array, now: Any) -> tuple[Any, None]:
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, chosen, now), state, params)
        return (optax.apply_updates(params, updates), state), None

    def epoch(carry: Any, each: Any) -> tuple[Any, None]:
        learner, best, least = carry
        rows, now = each
        learner, _ = jax.lax.scan(lambda carry, chosen: step(carry, chosen, now), learner, rows)
        value = missed(learner[0])
        best = jax.tree.map(lambda new, old: jnp.where(value < least, new, old), learner[0], best)
        return (learner, best, jnp.minimum(value, least)), None

    start = (params, optimizer.init(params)), params, jnp.asarray(jnp.inf)
    (_, best, least), _ = jax.lax.scan(epoch, start, (rows, given))
    return best, least


def gate_parameters(key: Array, features: int, heads: int) -> dict[str, Any]:
    """First parameters of a mask of features, at the paper's width."""
    width = max(features // (2 * heads), 1) * heads
    shapes = {"embed": (features, features * width), "score": (width, 1)}
    shapes |= dict.fromkeys(("query", "key", "value", "out"), (width, width))
    keys = jax.random.split(key, len(shapes))
    return {name: dense(key, *shape) for key, (name, shape) in zip(keys, shapes.items(), strict=True)}


def dense(key: Array, inputs: int, outputs: int) -> dict[str, Array]:
    return {"kernel": jax.nn.initializers.lecun_normal()(key, (inputs, outputs)), "bias": jnp.zeros(outputs)}


@functools.partial(jax.jit, static_argnames=("widths", "heads", "batch", "epochs"))
def specialised(
    key: Array,
    params: Any,
    train: Views,
    validation: Views,
    test: Views,
    peak: float,
    *,
    widths: tuple[int, ...],
    heads: int,
    batch: int,
    epochs: int,
) -> dict[str, Array]:
    """Teachers with a mask of one layer that learns to let them say what the student says, two of each teacher.

    Returns:
      logits on the training set and on the test set [4, N, C], and how far from the student they are on the validation set
      with their masks and without.
    """
    made = network(widths, train.x.shape[-1])
    whose, layers = jnp.repeat(jnp.arange(2), len(widths)), jnp.tile(jnp.arange(len(widths)), 2)
    student = jax.tree.map(lambda leaf: leaf[OWN], params)
    init_key, order_key = jax.random.split(key)
    rows = training.batches(order_key, len(train.y), batch, epochs * (len(train.y) // batch))
    rows = rows.reshape(epochs, -1, batch)

    def masked(gate: Any, teacher: Any, layer: Array, x: Array) -> Array:
        hidden = jnp.stack(made.apply(teacher, x)["hidden"])
        mask = attention.feature_gate(gate, hidden[layer], heads=heads)
        masks = [jnp.where(layer == index, mask, 1.0) for index in range(len(widths))]
        return made.apply(teacher, x, masks=masks)["logits"]

    def one(key: Array, whose: Array, layer: Array) -> dict[str, Array]:
        teacher = jax.tree.map(lambda leaf: leaf[whose], params)

        def apart(say: Callable[[Array], Array], examples: Views, rows: Any) -> Array:
            wanted = made.apply(student, examples.x[OWN][rows])["logits"]
            return jnp.mean(distillation.kullback_leibler(say(examples.x[whose][rows]), wanted))

        gate, least = fit_best(
            lambda gate, rows, _: apart(lambda x: masked(gate, teacher, layer, x), train, rows),
            lambda gate: apart(lambda x: masked(gate, teacher, layer, x), validation, slice(None)),
            gate_parameters(key, widths[0], heads),
            optax.adam(peak),
            rows,
            jnp.zeros(epochs),
        )
        both = jnp.concatenate([train.x[whose], test.x[whose]])
        logits = training.in_parts(lambda x: masked(gate, teacher, layer, x), both)
        return {
            "logits": logits[: len(train.y)],
            "tested": logits[len(train.y) :],
            "apart": least,
            "apart_before": apart(lambda x: made.apply(teacher, x)["logits"], validation, slice(None)),
        }

    return jax.vmap(one)(jax.random.split(init_key, len(whose)), whose, layers)


def prepare(config: ml_collections.ConfigDict, key: Array) -> dict[str, Any]:
    """Teachers that learned alone, together with a student, and with masks: logits for the student, accuracies.

    "student" are the parameters of the one that learned together with them.
    """
    data_key, fit_key, mask_key = jax.random.split(key, 3)
    return trained_teachers(
        fit_key,
        mask_key,
        *splits(data_key, config),
        config.learning_rate,
        widths=tuple(config.widths),
        heads=config.heads,
        batch=config.batch,
        epochs=config.epochs,
        mask_epochs=config.mask_epochs,
    )


@functools.partial(jax.jit, static_argnames=("widths", "heads", "batch", "epochs", "mask_epochs"))
def trained_teachers(
    fit_key: Array,
    mask_key: Array,
    train: Views,
    validation: Views,
    test: Views,
    peak: float,
    *,
    widths: tuple[int, ...],
    heads: int,
    batch: int,
    epochs: int,
    mask_epochs: int,
) -> dict[str, Any]:
    """What `prepare` gives."""
    given = {"widths": widths, "batch": batch}
    both = jax.vmap(lambda exchange: together(fit_key, train, exchange, peak, epochs=epochs, **given))(jnp.arange(2.0))
    everything = jnp.concatenate([train.x, test.x], axis=1)
    logits = jax.vmap(lambda params: said(params, everything, widths=widths))(both)
    found: dict[str, Any] = {
        name: {"logits": each[: len(TEACHERS), : len(train.y)], "accuracy": accuracies(each[:, len(train.y) :], test.y)}
        for name, each in zip(("alone", "together"), logits, strict=True)
    }
    params = jax.tree.map(lambda leaf: leaf[1], both)  # of those that learned together
    masked = specialised(mask_key, params, train, validation, test, peak, heads=heads, epochs=mask_epochs, **given)
    found["specialised"] = {"logits": masked["logits"], "accuracy": accuracies(masked["tested"], test.y)}
    found["apart"] = {"with": jnp.mean(masked["apart"]), "without": jnp.mean(masked["apart_before"])}
    found["student"] = jax.tree.map(lambda leaf: leaf[OWN], params)
    return found


@functools.partial(jax.jit, static_argnames="widths")
def said(params: Any, x: Array, *, widths: tuple[int, ...]) -> Array:
    """Logits [3, N, C] of all networks."""
    made = network(widths, x.shape[-1])
    return jax.vmap(lambda params, x: made.apply(params, x)["logits"])(params, x)


def accuracies(logits: Array, labels: Array) -> Array:
    """Of several networks."""
    return jnp.mean(jnp.argmax(logits, axis=-1) == labels, axis=-1)


class Taught(NamedTuple):
    """How a student learns, beside its labels: static."""

    k: int
    weighted: bool
    detached: bool  # whether the gate reads the student's logits without moving them


def emphasis(epochs: int, first: int) -> np.ndarray:
    """Weights [epochs, 2] of distillation and of even use, as the official code lowers them after `first` epochs."""
    late = np.maximum(np.arange(epochs) - first, 0)
    return np.stack([0.5 ** np.ceil(late / HALVED), 0.9 ** np.ceil(late / EASED)], axis=1).astype(np.float32)


def gate(params: Any, logits: Array) -> Array:
    """Probabilities [B, M] of teachers, by two layers with nothing between them."""
    for name in ("first", "second"):
        logits = logits @ params[name]["kernel"] + params[name]["bias"]
    return jax.nn.softmax(logits)


@functools.partial(jax.jit, static_argnames=("widths", "taught", "batch"))
def student(
    key: Array,
    start: Any | None,
    train: tuple[Array, Array],
    validation: tuple[Array, Array],
    test_x: Array,
    teachers: Array,
    weights: np.ndarray,
    peak: float,
    *,
    widths: tuple[int, ...],
    taught: Taught,
    batch: int,
) -> tuple[Array, Array]:
    """A student of teachers with logits [M, N, C], from `start` or anew, with `weights` [epochs, 2] as `emphasis` gives.

    Returns:
      its logits on the test set, and the gate [N, M] on the training set.
    """
    (x, y), made, epochs = train, network(widths, test_x.shape[-1]), len(weights)
    init_key, first_key, second_key, order_key = jax.random.split(key, 4)
    classes, count = training.CLASSES, len(teachers)
    gates = {"first": dense(first_key, classes, 2 * classes), "second": dense(second_key, 2 * classes, count)}

    def loss(params: Any, rows: Array, now: Array) -> Array:
        logits = made.apply(params["student"], x[rows])["logits"]
        shares = gate(params["gate"], jax.lax.stop_gradient(logits) if taught.detached else logits)
        told = distillation.routed_teachers(logits, teachers[:, rows], shares, k=taught.k, weighted=taught.weighted)
        right = training.cross_entropy(logits, y[rows])
        return jnp.mean(right + now[0] * told) + now[1] * distillation.load_balance(shares)

    def missed(params: Any) -> Array:
        return 1 - training.accuracy(made.apply(params["student"], validation[0])["logits"], validation[1])

    rows = training.batches(order_key, len(y), batch, epochs * (len(y) // batch)).reshape(epochs, -1, batch)
    first = {"student": made.init(init_key) if start is None else start, "gate": gates}
    best, _ = fit_best(loss, missed, first, optax.adam(peak), rows, jnp.asarray(weights))
    logits = [made.apply(best["student"], part)["logits"] for part in (test_x, x)]
    return logits[0], gate(best["gate"], logits[1])


def run(config: ml_collections.ConfigDict, key: Array, shared: dict[str, Any]) -> dict[str, Any]:
    """A student on its own modality, which goes on from co-training where its teachers do, or begins anew."""
    data_key, *_ = jax.random.split(key, 3)  # as in `prepare`
    given, anew = config.shared, config.teachers == "alone"
    train, validation, test = splits(data_key, given)
    # Who begins anew has the epochs of co-training too.
    weights = emphasis(config.epochs + given.epochs * anew, given.epochs * anew)
    tested, shares = student(
        jax.random.fold_in(key, 0),
        None if anew else shared["student"],
        (train.x[OWN], train.y),
        (validation.x[OWN], validation.y),
        test.x[OWN],
        np.asarray(shared[config.teachers]["logits"])[list(config.of)],
        weights * np.array([config.distilled, 1], np.float32),
        config.learning_rate,
        widths=tuple(given.widths),
        taught=Taught(config.k, config.weighted, config.detached),
        batch=config.batch,
    )
    return measured(tested, shares, test.y, {name: shared[name] for name in shared if name != "student"})


@jax.jit
def measured(tested: Array, shares: Array, labels: Array, shared: dict[str, Any]) -> dict[str, Array]:
    """Of a student's logits, of the gate [N, M] at its end, and of its teachers."""
    used = jnp.mean(jax.nn.one_hot(jnp.argmax(shares, axis=1), shares.shape[1]), axis=0)
    names = ("fusion", "other", "own")
    return {
        "test_accuracy": training.accuracy(tested, labels),
        "most_used_share": jnp.max(used),
        "routing_entropy": jnp.sum(jax.scipy.special.entr(used)),
        "gate_entropy": jnp.mean(jnp.sum(jax.scipy.special.entr(shares), axis=1)),
        **{f"{name}_accuracy": shared["alone"]["accuracy"][place] for place, name in enumerate(names)},
        **{f"{name}_together_accuracy": shared["together"]["accuracy"][place] for place, name in enumerate(names)},
        "specialised_accuracy": jnp.mean(shared["specialised"]["accuracy"]),
        "apart": shared["apart"]["with"],
        "apart_without_masks": shared["apart"]["without"],
    }
