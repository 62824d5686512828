"""Students ranked before any of them is trained: how alike a random one and a random teacher relate images and channels."""

import functools
import itertools
import time
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import scipy.stats
from jax import Array

from experiments.models import convolution
from experiments.papers import training
from experiments.papers.training import Labelled
from mlfuncs import architecture_search, distillation

VECTORISED = False  # architectures are chosen on the host, and what each costs is timed

OPERATIONS = ("skip", "point", "wide", "pool")  # of a cell: nothing, 1x1 or 3x3 convolution, 3x3 average
SKIP, POINT, WIDE, POOL = range(4)
CELLS = 3
WIDTHS = (8, 16)  # channels
WIDEST = WIDTHS[-1]
TEACHER_CHANNELS = (16, 32, 32)
FEATURES = 32  # that the classifier of either gets
# Every architecture: the operations of all cells, and a place in WIDTHS.
SPACE = np.array(list(itertools.product(*[range(len(OPERATIONS))] * CELLS, range(len(WIDTHS)))))
TOP = 5
DISTILLED, LABELS = 0.9, 0.0  # weights of the teacher in what a student learns from


def parameters(architecture: np.ndarray, channels: int = 1) -> int:
    """How many a student for images of that many channels has."""
    width = WIDTHS[architecture[CELLS]]
    kernels = {SKIP: 0, POINT: 1, WIDE: 9, POOL: 0}
    cells = sum(kernels[o] * width**2 + 2 * width * (kernels[o] > 0) for o in architecture[:CELLS])
    return 9 * channels * width + 2 * width + cells + (width + 2) * FEATURES + (FEATURES + 1) * training.CLASSES


def block(layer: dict[str, Array], x: Array, seen: int) -> Array:
    """Convolution, batch norm with the statistics of the first `seen` images, ReLU."""
    h = convolution.convolve(x, layer["kernel"], 1)
    mean, variance = jnp.mean(h[:seen], axis=(0, 1, 2)), jnp.var(h[:seen], axis=(0, 1, 2))
    return jax.nn.relu((h - mean) * jax.lax.rsqrt(variance + 1e-5) * layer["scale"] + layer["shift"])


def pooled(x: Array) -> Array:
    """Means of 3 x 3 pixels, with zeros around."""
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return functools.reduce(jnp.add, (padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3))) / 9


def read(params: Any, h: Array) -> dict[str, Array]:
    """What the classifier gets, and what it says."""
    features = jnp.mean(h, axis=(1, 2))
    return {"features": features, "logits": features @ params["last"]["kernel"] + params["last"]["bias"]}


def student(params: Any, x: Array, architecture: Array, seen: int) -> dict[str, Array]:
    """One program for all architectures: a narrow one has zeros in the place of channels that it lacks."""
    channels = jnp.arange(WIDEST) < jnp.asarray(WIDTHS)[architecture[CELLS]]

    def cell(h: Array, given: tuple[Array, dict[str, Array]]) -> tuple[Array, None]:
        operation, wide = given
        point = {**wide, "kernel": wide["kernel"][1:2, 1:2]}
        operations = (
            lambda h: h,
            lambda h: block(point, h, seen) * channels,
            lambda h: block(wide, h, seen) * channels,
            pooled,
        )
        return jax.lax.switch(operation, operations, h), None

    h = block(params["stem"], x, seen) * channels
    h, _ = jax.lax.scan(cell, h, (architecture[:CELLS], params["cells"]))
    return read(params, block(params["head"], h, seen))


def teacher(params: Any, x: Array, seen: int) -> dict[str, Array]:
    for index in range(len(TEACHER_CHANNELS)):
        x = block(params[f"layer_{index}"], x, seen)
    return read(params, x)


def layer(key: Array, size: int, inputs: int, outputs: int) -> dict[str, Array]:
    """All weights from N(0, 1), as the score wants them."""
    kernel = jax.random.normal(key, (size, size, inputs, outputs))
    return {"kernel": kernel, "scale": jnp.ones(outputs), "shift": jnp.zeros(outputs)}


def first_student(key: Array, channels: int) -> dict[str, Any]:
    keys = jax.random.split(key, CELLS + 3)
    last = {"kernel": jax.random.normal(keys[-1], (FEATURES, training.CLASSES)), "bias": jnp.zeros(training.CLASSES)}
    cells = jax.vmap(lambda key: layer(key, 3, WIDEST, WIDEST))(keys[:CELLS])
    stem, head = layer(keys[-3], 3, channels, WIDEST), layer(keys[-2], 1, WIDEST, FEATURES)
    return {"stem": stem, "cells": cells, "head": head, "last": last}


def first_teacher(key: Array, channels: int) -> dict[str, Any]:
    keys = jax.random.split(key, len(TEACHER_CHANNELS) + 1)
    sizes = itertools.pairwise((channels, *TEACHER_CHANNELS))
    layers = {f"layer_{index}": layer(keys[index], 3, *pair) for index, pair in enumerate(sizes)}
    last = {"kernel": jax.random.normal(keys[-1], (FEATURES, training.CLASSES)), "bias": jnp.zeros(training.CLASSES)}
    return {**layers, "last": last}


def inputs(params: Any) -> dict[str, Any]:
    """How many numbers each output of a layer is a sum of."""
    return {name: np.prod(given["kernel"].shape[:-1]) for name, given in params.items()}


def student_inputs(params: Any, architecture: Array) -> dict[str, Any]:
    """The same for a student, of which an architecture uses a part."""
    width = jnp.asarray(WIDTHS)[architecture[CELLS]]
    window = jnp.where(architecture[:CELLS] == WIDE, 9, 1)
    return inputs(params) | {"cells": (window * width)[:, None, None, None, None], "head": width}


def scaled(params: Any, number: dict[str, Any]) -> Any:
    """The same draws with a variance of 1 over the number of inputs, from which networks are trained."""
    return {name: {**given, "kernel": given["kernel"] / number[name] ** 0.5} for name, given in params.items()}


@functools.partial(jax.jit, static_argnames=("batch", "steps", "peak"))
def taught(key: Array, train: Labelled, test: Labelled, *, batch: int, steps: int, peak: float) -> tuple[Array, Array]:
    """Trains the teacher -> what it answers to all training images [N, C], its test accuracy."""
    init_key, order_key = jax.random.split(key)
    start = first_teacher(init_key, train.x.shape[-1])
    start = scaled(start, inputs(start))

    def loss(params: Any, rows: Array, key: Array) -> Array:
        del key
        x, y = train.take(rows)
        return jnp.mean(training.cross_entropy(teacher(params, x, batch)["logits"], y))

    rows = training.batches(order_key, len(train.y), batch, steps)
    optimizer = optax.adam(optax.cosine_decay_schedule(peak, steps))
    params = training.fit(loss, start, optimizer, rows, key)[0]
    logits = teacher(params, jnp.concatenate([train.x, test.x]), len(train.y))["logits"]
    return logits[: len(train.y)], training.accuracy(logits[len(train.y) :], test.y)


@functools.partial(jax.jit, static_argnames=("batch", "steps", "peak", "temperature"))
def student_accuracy(
    key: Array,
    architecture: Array,
    soft_weight: float,
    train: Labelled,
    test: Labelled,
    answers: Array,
    *,
    batch: int,
    steps: int,
    peak: float,
    temperature: float,
) -> Array:
    """Trains a student on labels and the teacher's stored answers [N, C], and tests it."""
    init_key, order_key = jax.random.split(key)
    start = first_student(init_key, train.x.shape[-1])
    start = scaled(start, student_inputs(start, architecture))

    def loss(params: Any, rows: Array, key: Array) -> Array:
        del key
        x, y = train.take(rows)
        logits = student(params, x, architecture, batch)["logits"]
        options = {"soft_weight": soft_weight, "temperature": temperature}
        return jnp.mean(distillation.knowledge_distillation(logits, answers[rows], y, **options))

    rows = training.batches(order_key, len(train.y), batch, steps)
    optimizer = optax.adam(optax.cosine_decay_schedule(peak, steps))
    params = training.fit(loss, start, optimizer, rows, key)[0]
    everything = jnp.concatenate([train.x, test.x])  # batch norm goes by the training images
    logits = student(params, everything, architecture, len(train.y))["logits"][len(train.y) :]
    return training.accuracy(logits, test.y)


def random_views(outputs: dict[str, Array], y: Array) -> tuple[Array, Array]:
    """What the score looks at: features, and the gradient of the classifier's weight."""
    features, logits = outputs["features"], outputs["logits"]
    return features, architecture_search.classifier_weight_gradient(features, logits, y)


@jax.jit
def teacher_views(keys: Array, x: Array, y: Array) -> tuple[Array, Array]:
    """Of random teachers [n, B, 32], [n, C, 32], once for all students."""

    def one(key: Array) -> tuple[Array, Array]:
        return random_views(teacher(first_teacher(key, x.shape[-1]), x, len(y)), y)

    return jax.lax.map(one, keys)


@jax.jit
def scores(keys: Array, architecture: Array, x: Array, y: Array, views: tuple[Array, Array]) -> dict[str, Array]:
    """The paper's score and its two parts, means over random students and teachers."""

    def one(given: tuple[Array, tuple[Array, Array]]) -> dict[str, Array]:
        key, (features, gradient) = given
        own = random_views(student(first_student(key, x.shape[-1]), x, architecture, len(y)), y)
        return {
            "both": architecture_search.training_free_student_score(features, own[0], gradient, own[1]),
            "relations": architecture_search.relation_similarity(features, own[0]),
            "semantics": architecture_search.semantic_similarity(gradient, own[1]),
        }

    return {name: jnp.mean(each) for name, each in jax.lax.map(one, (keys, views)).items()}


@jax.jit
def gradient_norm(keys: Array, architecture: Array, x: Array, y: Array) -> Array:
    """Of the cross-entropy at the weights that training starts from: a score that knows of no teacher."""

    def one(key: Array) -> Array:
        params = first_student(key, x.shape[-1])
        params = scaled(params, student_inputs(params, architecture))
        loss = lambda params: jnp.mean(  # noqa: E731
            training.cross_entropy(student(params, x, architecture, len(y))["logits"], y)
        )
        return optax.tree.norm(jax.grad(loss)(params))

    return jnp.mean(jax.lax.map(one, keys))


def splits(key: Array, config: ml_collections.ConfigDict) -> tuple[Labelled, Labelled]:
    return training.image_splits(config.data, key, (config.train, config.test))


def mean_accuracy(
    config: ml_collections.ConfigDict,
    key: Array,
    architecture: np.ndarray,
    soft_weight: float,
    data: tuple[Labelled, Labelled],
    answers: Array,
) -> float:
    """Of a student over `config.runs` trainings."""
    settings = {name: config[name] for name in ("batch", "steps", "peak", "temperature")}
    given = (architecture, np.float32(soft_weight), *data, answers)
    keys = jax.random.split(key, config.runs)
    return float(np.mean([student_accuracy(each, *given, **settings) for each in keys]))


def prepare(config: ml_collections.ConfigDict, key: Array) -> dict[str, Any]:
    """Scores of all architectures, and what a sample of them reaches once trained, with the time that either takes."""
    data_key, teacher_key, sample_key, score_key, train_key = jax.random.split(key, 5)
    data = splits(data_key, config)
    options = {"batch": config.batch, "steps": config.teacher_steps, "peak": config.peak}
    answers, teacher_accuracy = taught(teacher_key, *data, **options)

    x, y = data[0].take(slice(config.score_batch))
    keys = jax.random.split(score_key, (2, config.inits))
    views = teacher_views(keys[0], x, y)
    clock = Clock()
    scored = [clock.timed(scores, keys[1], each, x, y, views) for each in SPACE]
    norms = [gradient_norm(keys[1], each, x, y) for each in SPACE]

    sample = np.asarray(jax.random.permutation(sample_key, len(SPACE))[: config.students])
    stopwatch, accuracy = Clock(), {}
    for name, weight in (("distilled", DISTILLED), ("labels", LABELS)):
        given = [(config, train_key, SPACE[index], weight, data, answers) for index in sample]
        accuracy[name] = np.array([stopwatch.timed(mean_accuracy, *each) for each in given])
    return {
        "answers": answers,
        "teacher_accuracy": teacher_accuracy,
        "scores": {
            **{name: np.array([each[name] for each in scored]) for name in scored[0]},
            "gradient_norm": np.array(norms),
            "parameters": np.array([parameters(each, x.shape[-1]) for each in SPACE], np.float64),
        },
        "sample": sample,
        **accuracy,
        "seconds": {"scored": np.float64(clock.mean()), "trained": np.float64(stopwatch.mean())},
    }


class Clock:
    """Processor seconds of calls, of which the first compiles and is left out."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def timed(self, function: Any, *given: Any) -> Any:
        began = time.process_time()
        found = jax.block_until_ready(function(*given))
        self.seconds.append(time.process_time() - began)
        return found

    def mean(self) -> float:
        return float(np.mean(self.seconds[1:]))


def search(
    key: Array, score: np.ndarray, size: np.ndarray, *, population_size: int, num_evaluations: int
) -> tuple[int, ...]:
    """The best-scored architecture among no larger ones than half of the space, that ageing evolution comes upon."""
    budget = np.median(size)
    place = {tuple(each): index for index, each in enumerate(SPACE.tolist())}

    def mutate(key: Array, architecture: tuple[int, ...]) -> tuple[int, ...]:
        generator = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        gene = generator.integers(CELLS + 1)
        values = len(OPERATIONS) if gene < CELLS else len(WIDTHS)
        changed = list(architecture)
        changed[gene] = int((changed[gene] + generator.integers(1, values)) % values)
        return tuple(changed)

    found: tuple[int, ...] = architecture_search.aging_evolution(
        key,
        lambda key: tuple(SPACE[int(jax.random.randint(key, (), 0, len(SPACE)))].tolist()),
        mutate,
        lambda architecture: score[place[architecture]],
        population_size=population_size,
        num_evaluations=num_evaluations,
        feasible=lambda architecture: size[place[architecture]] <= budget,
    )[0]
    return found


def run(config: ml_collections.ConfigDict, key: Array, shared: dict[str, Any]) -> dict[str, Any]:
    """How well `config.score` orders the students that were trained, and what a search by it finds."""
    data_key, _, _, _, train_key = jax.random.split(key, 5)  # as in `prepare`
    draw_key, search_key = jax.random.split(jax.random.fold_in(key, 0))
    sample, reached, size = (
        shared["sample"],
        np.asarray(shared["distilled"]),
        np.asarray(shared["scores"]["parameters"]),
    )
    told = {
        "spread_of_accuracy": np.std(reached),
        "best_accuracy": np.max(reached),
        "teacher_accuracy": shared["teacher_accuracy"],
        "seconds_scored": shared["seconds"]["scored"],
        "training_over_scoring": shared["seconds"]["trained"] / shared["seconds"]["scored"],
    }
    if config.score == "labels":
        return told | ranking(np.asarray(shared["labels"]), reached)
    draws = jax.random.uniform(draw_key, (len(SPACE),))
    score = np.asarray(draws if config.score == "random" else shared["scores"][config.score], np.float64)
    evolution = {"population_size": config.population, "num_evaluations": config.evaluations}
    found = search(search_key, score, size, **evolution)
    data = splits(data_key, config.shared)
    accuracy = mean_accuracy(config.shared, train_key, np.array(found), DISTILLED, data, shared["answers"])
    affordable = reached[size[sample] <= np.median(size)]
    return {
        **told,
        **ranking(score[sample], reached),
        "found_accuracy": accuracy,
        "found_over_median": accuracy - np.median(affordable) if len(affordable) else np.nan,
    }


def ranking(score: np.ndarray, reached: np.ndarray) -> dict[str, Any]:
    """How a score orders what was reached, and its best five beside the median of all."""
    best = np.argsort(-score, kind="stable")[:TOP]
    median = np.median(reached)
    return {
        "spearman": scipy.stats.spearmanr(score, reached).statistic,
        "top_five_accuracy": np.mean(reached[best]),
        "median_accuracy": median,
        "top_five_over_median": np.mean(reached[best]) - median,
    }
