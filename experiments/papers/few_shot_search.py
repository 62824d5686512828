"""Students of many sizes inside one network of shared weights: one network for all sizes, or one for each range of them."""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import scipy.stats
from jax import Array

from experiments import worlds
from experiments.papers import probes, training
from mlfuncs import architecture_search, distillation, sparsity

VECTORISED = False  # students are chosen on the host

BUDGETS = (0.5, 0.75, 1.0)  # quantiles of the sizes of a range
PEERS = 0.8  # of a budget: students at least this large stand beside the one that was chosen for it
MATRICES = ("query", "key", "value", "output", "first", "second")


class Form(NamedTuple):
    """What the loss needs to know of networks."""

    head_width: int
    relation_heads: int
    divergence: str


class Network(NamedTuple):
    """What holds all students of some ranges: the most heads, hidden and inner units, and layers of the teacher."""

    heads: int
    hidden: int
    inner: int
    layers: tuple[int, ...]


class Masks(NamedTuple):
    """What students use of a shared network; arrays, each with a first axis of students."""

    hidden: Any  # [S, H]
    columns: Any  # [S, D] of queries, keys and values
    inner: Any  # [S, M]
    layers: Any  # [S, K]
    last: Any  # int [S], the place of the last layer in use
    order: Any  # int [S, A d]: columns as relation heads take them, with room for the widest student's
    gain: Any  # [S, A d]: of these columns, 0 in what a narrower student leaves free


def sizes(students: np.ndarray, heads: int) -> np.ndarray:
    """Parameters without embeddings, as the paper counts them."""
    options = {"max_heads": heads, "embeddings": 0, "classes": 0}
    return np.asarray(architecture_search.transformer_parameter_count(*students.T, **options))


def students_of(choices: ml_collections.ConfigDict, heads: int) -> np.ndarray:
    """[S, 4]: layers, heads, hidden width and ratio of all combinations, the smallest student first."""
    found = np.array(
        list(itertools.product(choices.layers, choices.heads, choices.hidden, choices.ratio)), dtype=np.float64
    )
    return found[np.argsort(sizes(found, heads), kind="stable")]


def layers_of(count: int, depth: int) -> list[int]:
    """Evenly spread over those of the teacher, the first among them."""
    return [place * depth // count for place in range(count)]


def network_of(students: np.ndarray, depth: int) -> Network:
    """The smallest that holds all of some students."""
    layers = {place for count in students[:, 0] for place in layers_of(int(count), depth)}
    inner = int(np.max(np.floor(students[:, 2] * students[:, 3])))
    return Network(int(students[:, 1].max()), int(students[:, 2].max()), inner, tuple(sorted(layers)))


def masks(students: np.ndarray, network: Network, depth: int, form: Form) -> Masks:
    columns = students[:, 1] * form.head_width
    most = network.heads * form.head_width
    used = [layers_of(int(count), depth) for count in students[:, 0]]
    layers = np.array([[layer in each for layer in network.layers] for each in used])
    # Zeros in a relation head change no product, but the root of its width that products are divided by.
    own, room = columns[:, None, None] // form.relation_heads, most // form.relation_heads
    head, column = np.arange(form.relation_heads)[:, None], np.arange(room)
    order = np.where(column < own, head * own + column, 0).astype(int)
    gain = np.broadcast_to(np.where(column < own, (room / own) ** 0.25, 0.0), order.shape)
    return Masks(
        leading(students[:, 2], network.hidden),
        leading(columns, most),
        leading(np.floor(students[:, 2] * students[:, 3]), network.inner),
        layers.astype(np.float32),
        np.array([network.layers.index(each[-1]) for each in used]),
        order.reshape(len(order), -1),
        gain.reshape(len(gain), -1).astype(np.float32),
    )


def leading(count: np.ndarray, most: int) -> np.ndarray:
    """[S, most]: 1 in the first places of each."""
    return (np.arange(most) < count[:, None]).astype(np.float32)


def some(used: Masks, index: Any) -> Masks:
    """Of one student, or of several."""
    return jax.tree.map(lambda mask: mask[index], used)


def teacher_masks(config: ml_collections.FrozenConfigDict, form: Form) -> Masks:
    """Of the teacher, which uses all that it has."""
    whole = np.array([[config.depth, config.heads, config.width, config.expansion]], np.float64)
    return some(masks(whole, network_of(whole, config.depth), config.depth, form), 0)


def initial(key: Array, words: int, config: ml_collections.FrozenConfigDict) -> dict[str, Any]:
    """The teacher's first parameters."""
    make = jax.nn.initializers.lecun_normal()
    width, inner = config.width, config.expansion * config.width
    shapes = dict.fromkeys(MATRICES, (width, width)) | {"first": (width, inner), "second": (inner, width)}

    def block(key: Array) -> dict[str, Any]:
        keys = jax.random.split(key, len(shapes))
        matrices = {name: make(each, shape) for each, (name, shape) in zip(keys, shapes.items(), strict=True)}
        return {**matrices, "bias": jnp.zeros(inner), "attention_norm": jnp.ones(width), "dense_norm": jnp.ones(width)}

    keys = jax.random.split(key, config.depth + 2)
    return {
        "words": 0.3 * jax.random.normal(keys[-1], (words, width)),
        "places": 0.3 * jax.random.normal(keys[-2], (config.length, width)),
        "blocks": {f"block_{place}": block(keys[place]) for place in range(config.depth)},
        "norm": jnp.ones(width),
    }


def normalised(h: Array, gain: Array, used: Array) -> Array:
    """Layer norm over the units in use."""
    number = jnp.sum(used)
    centred = (h - jnp.sum(h * used, axis=-1, keepdims=True) / number) * used
    return centred * jax.lax.rsqrt(jnp.sum(centred**2, axis=-1, keepdims=True) / number + 1e-5) * gain


def apply(params: Any, tokens: Array, used: Masks, head_width: int) -> tuple[Array, Array]:
    """Tokens [B, L] -> states [B, L, H] after the last norm; queries, keys and values [3, B, L, D] of the last layer in use.

    `used` is of one student; units that it does not use hold zeros.
    """
    h = (params["words"][tokens] + params["places"][: tokens.shape[1]]) * used.hidden
    seen = []
    for place in range(len(params["blocks"])):
        block = params["blocks"][f"block_{place}"]
        x = normalised(h, block["attention_norm"], used.hidden)
        projections = [x @ block[name] * used.columns for name in ("query", "key", "value")]
        by_head = [each.reshape(*each.shape[:2], -1, head_width) for each in projections]
        attended = jax.nn.dot_product_attention(*by_head, is_causal=True).reshape(projections[0].shape)
        added = attended @ block["output"] * used.hidden
        x = normalised(h + added, block["dense_norm"], used.hidden)
        inner = jax.nn.gelu(x @ block["first"] + block["bias"]) * used.inner
        h = h + used.layers[place] * (added + inner @ block["second"] * used.hidden)
        seen.append(jnp.stack(projections))
    return normalised(h, params["norm"], used.hidden), jnp.stack(seen)[used.last]


class Texts(NamedTuple):
    """Rows of tokens [N, L + 1] to learn from, and such as were held out."""

    train: np.ndarray
    test: np.ndarray
    words: int


@functools.cache
def texts(file: str, length: int, stride: int, held_out: float) -> Texts:
    """A text file, or the passages of the package. A row has one token more, which the one before it predicts."""
    data = {"name": "text", "file": file, "data_dir": "", "length": length + 1, "stride": stride}
    world = worlds.build(ml_collections.ConfigDict(data | {"test_fraction": held_out}))
    train, test = (part.read(np.arange(len(part)))["tokens"] for part in (world.train, world.test))
    return Texts(train, test, world.num_classes)


def prepare(config: ml_collections.ConfigDict, key: Array) -> dict[str, Any]:
    """The teacher, a language model."""
    given = texts(config.file, config.length, config.stride, config.held_out)
    return taught(key, given.train, given.test, words=given.words, config=ml_collections.FrozenConfigDict(config))


@functools.partial(jax.jit, static_argnames=("words", "config"))
def taught(
    key: Array, train: Array, test: Array, *, words: int, config: ml_collections.FrozenConfigDict
) -> dict[str, Any]:
    """A language model, its last training losses, and how often it tells the next token of what was held out."""
    init_key, order_key = jax.random.split(key)
    used, head_width = teacher_masks(config, form_of(config)), config.width // config.heads

    def logits(params: Any, tokens: Array) -> Array:
        return apply(params, tokens[:, :-1], used, head_width)[0] @ params["words"].T

    def loss(params: Any, rows: Array, key: Array) -> Array:
        del key
        return jnp.mean(training.cross_entropy(logits(params, train[rows]), train[rows, 1:]))

    rows = training.batches(order_key, len(train), config.batch, config.steps)
    optimizer = optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.steps))
    params, losses, _ = training.fit(loss, initial(init_key, words, config), optimizer, rows, order_key)
    accuracy = training.accuracy(logits(params, test), test[:, 1:])
    return {"teacher": params, "train_loss": jnp.mean(losses[-20:]), "test_accuracy": accuracy}


def form_of(shared: ml_collections.FrozenConfigDict, divergence: str = "kl") -> Form:
    return Form(shared.width // shared.heads, shared.relation_heads, divergence)


@functools.partial(jax.jit, static_argnames=("network", "head_width"))
def inherited(teacher: Any, network: Network, head_width: int) -> Any:
    """The shared network as it starts: the leading units of those layers of the teacher that some student takes."""
    hidden, inner, columns = network.hidden, network.inner, network.heads * head_width
    block = {
        **dict.fromkeys(("query", "key", "value"), (hidden, columns)),
        "output": (columns, hidden),
        "first": (hidden, inner),
        "second": (inner, hidden),
        "bias": (inner,),
        "attention_norm": (hidden,),
        "dense_norm": (hidden,),
    }
    blocks = {f"block_{place}": teacher["blocks"][f"block_{layer}"] for place, layer in enumerate(network.layers)}
    shapes = {
        **{name: (teacher[name].shape[0], hidden) for name in ("words", "places")},
        "blocks": dict.fromkeys(blocks, block),
        "norm": (hidden,),
    }
    return sparsity.leading_slice({**teacher, "blocks": blocks}, shapes)


def relation_loss(params: Any, tokens: Array, wanted: Array, used: Masks, form: Form) -> Array:
    """Of one student, from the teacher's last queries, keys and values [3, B, L, D]."""
    _, projections = apply(params, tokens, used, form.head_width)
    own = projections[..., used.order] * used.gain
    each = distillation.self_attention_relation(
        tuple(own), tuple(wanted), relation_heads=form.relation_heads, divergence=form.divergence
    )
    return jnp.mean(each)


def optimizer_of(steps: int, peak: float) -> optax.GradientTransformation:
    """The paper's, but for the learning rate."""
    schedule = lambda count: peak * (1 - count / steps)  # noqa: E731
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.01))


@functools.partial(jax.jit, static_argnames=("form", "batch", "steps"))
def trained_together(
    key: Array,
    params: Any,
    tokens: Array,
    wanted: Array,
    used: Masks,
    peak: float,
    *,
    form: Form,
    batch: int,
    steps: int,
) -> Any:
    """The shared network; in every step the largest, the smallest and two other students add up their gradients."""

    def loss(params: Any, rows: Array, key: Array) -> Array:
        members = some(used, architecture_search.sandwich(key, len(used.hidden)))
        one = lambda member: relation_loss(params, tokens[rows], wanted[:, rows], member, form)  # noqa: E731
        return jnp.sum(jax.vmap(one)(members))

    order_key, step_key = jax.random.split(key)
    rows = training.batches(order_key, len(tokens), batch, steps)
    return training.fit(loss, params, optimizer_of(steps, peak), rows, step_key)[0]


@functools.partial(jax.jit, static_argnames=("form", "batch", "steps"))
def trained_alone(
    key: Array,
    params: Any,
    tokens: Array,
    wanted: Array,
    used: Masks,
    peak: float,
    *,
    form: Form,
    batch: int,
    steps: int,
) -> Any:
    """Every student for itself from the shared network on: parameters with a first axis of students."""
    rows = training.batches(key, len(tokens), batch, steps)

    def one(member: Masks) -> Any:
        def loss(params: Any, rows: Array, key: Array) -> Array:
            del key
            return relation_loss(params, tokens[rows], wanted[:, rows], member, form)

        return training.fit(loss, params, optimizer_of(steps, peak), rows, key)[0]

    return jax.vmap(one)(used)


@functools.partial(jax.jit, static_argnames=("form", "alone"))
def losses_of(params: Any, tokens: Array, wanted: Array, used: Masks, *, form: Form, alone: bool) -> Array:
    """[S]: of all students, which share their parameters or are `alone`, each with its own."""
    one = lambda params, member: relation_loss(params, tokens, wanted, member, form)  # noqa: E731
    return jax.vmap(one, in_axes=(0 if alone else None, 0))(params, used)


@functools.partial(jax.jit, static_argnames=("words", "head_width"))
def probe_accuracies(params: Any, train: Array, test: Array, used: Masks, *, words: int, head_width: int) -> Array:
    """[S]: of a linear probe for the next token on the states of every student."""

    def one(member: Masks) -> Array:
        states = (apply(params, part[:, :-1], member, head_width)[0] for part in (train, test))
        parts = zip(states, (train, test), strict=True)
        seen, unseen = (training.Labelled(h.reshape(-1, h.shape[-1]), part[:, 1:].reshape(-1)) for h, part in parts)
        return probes.linear_accuracy(seen, unseen, classes=words)

    return jax.lax.map(one, used)


@functools.partial(jax.jit, static_argnames="head_width")
def answers(params: Any, tokens: Array, used: Masks, *, head_width: int) -> Array:
    """The teacher's last queries, keys and values [3, N, L, D] of all rows, once."""
    return apply(params, tokens, used, head_width)[1]


def run(config: ml_collections.ConfigDict, key: Array, shared: dict[str, Any]) -> dict[str, Any]:
    """Trains a network for each range of sizes, or one for all, and measures the students of every range."""
    common, form = config.shared, form_of(config.shared, config.divergence)
    measure = form._replace(divergence="kl")
    given = texts(common.file, common.length, common.stride, common.held_out)
    train, test = given.train[:, :-1], given.test[:, :-1]
    whole = teacher_masks(common, form)
    seen, unseen = (answers(shared["teacher"], part, whole, head_width=form.head_width) for part in (train, test))
    names = sorted(config.ranges)
    ranges = [students_of(config.ranges[name], common.heads) for name in names]
    together_key, alone_key = jax.random.split(jax.random.fold_in(key, 1))

    def trained(students: np.ndarray, steps: int) -> tuple[Network, Any]:
        network = network_of(students, common.depth)
        params = inherited(shared["teacher"], network, form.head_width)
        if steps:
            used = masks(students, network, common.depth, form)
            told = (together_key, params, train, seen, used, config.learning_rate)
            params = trained_together(*told, form=form, batch=config.batch, steps=steps)
        return network, params

    if config.together:
        everyone = np.concatenate(ranges)
        everyone = everyone[np.argsort(sizes(everyone, common.heads), kind="stable")]
        networks = [trained(everyone, len(ranges) * config.steps)] * len(ranges)
    else:
        networks = [trained(students, config.steps) for students in ranges]

    found: list[dict[str, Any]] = []
    for students, (network, params) in zip(ranges, networks, strict=True):
        used = masks(students, network, common.depth, form)
        losses = np.asarray(losses_of(params, test, unseen, used, form=measure, alone=False))
        sample = some(used, np.linspace(0, len(students) - 1, config.probed).astype(int))
        options = {"words": given.words, "head_width": form.head_width}
        right = probe_accuracies(params, given.train[:: config.probe_every], given.test, sample, **options)
        told = {"relation_loss": np.mean(losses), "probe_accuracy": np.mean(right)}
        if config.extra_steps:
            start = (alone_key, params, train, seen, used, config.extra_learning_rate)
            own = trained_alone(*start, form=form, batch=config.batch, steps=config.extra_steps)
            after = np.asarray(losses_of(own, test, unseen, used, form=measure, alone=True))
            told |= chosen(sizes(students, common.heads), losses, after)
        found.append(told)
    means = {name: np.mean([told[name] for told in found]) for name in found[0]}
    by_range = {f"relation_loss_{name}": told["relation_loss"] for name, told in zip(names, found, strict=True)}
    return {**means, **by_range, "teacher_accuracy": shared["test_accuracy"]}


@jax.jit
def choices(size: Array, losses: Array, budgets: Array) -> tuple[Array, Array]:
    """The student of the lowest loss within each budget, and how many students are on the front of size and loss."""
    best = jax.vmap(lambda budget: architecture_search.best_under_budget(size, losses, budget=budget))(budgets)
    return best, jnp.sum(architecture_search.pareto_front(size, losses))


def chosen(size: np.ndarray, before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    """What losses in the shared network say of those after training alone, and what a choice by them is worth.

    For every budget the student of the lowest loss that fits is compared, after training alone, with the others that fit
    and are about as large.
    """
    budgets = np.quantile(size, BUDGETS, method="lower")
    best, front = choices(size, before, budgets)
    pairs = []
    for one, budget in zip(np.asarray(best), budgets, strict=True):
        peers = np.flatnonzero((size <= budget) & (size >= PEERS * budget) & (np.arange(len(size)) != one))
        if len(peers):
            pairs.append((after[one], np.mean(after[peers])))
    picked, random = np.mean(pairs, axis=0) if pairs else (np.nan, np.nan)
    return {
        "rank_correlation": scipy.stats.spearmanr(before, after).statistic,
        "rank_correlation_of_size": scipy.stats.spearmanr(-size, after).statistic,
        "on_front": float(front),
        "chosen_loss": picked,
        "random_loss": random,
        "loss_after_alone": np.mean(after),
    }
