"""Speed of objectives inside networks: value with gradient against PyTorch, a scan against its loop, search, memory."""

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from experiments.benchmarks import memory
from experiments.benchmarks.consistency import NO_TORCH
from experiments.benchmarks.timing import Call, by_threads, in_turns, ratios, rounds_within, seconds_in_turns
from experiments.papers import training_free_search as search
from mlfuncs import architecture_search, attention, distillation, early_exit, masked_modeling, representation

SECONDS = 6.0  # a comparison, about
ROUNDS = (3, 41)  # at least and at most
AGREEMENT = 1e-3  # of values and gradients of the two sides, relative to the largest gradient
SCALE = 1  # what batches are divided by, for a test
LENGTHS = (256, 4096)  # of the selective scan
RELATION_EXAMPLES = 256  # whose memory is measured, at 197 tokens and 12 heads
INITIALISATIONS, IMAGES = 8, 64  # of one candidate of the search


class Case(NamedTuple):
    """An objective (moving, fixed) -> values, differentiated in all that moves, and what it is given."""

    objective: Callable[..., Array]
    moving: tuple[np.ndarray, ...]
    fixed: tuple[np.ndarray, ...] = ()


def _normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32)


def _probabilities(*shape: int, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng([seed, *shape]).random(shape, np.float32)
    return drawn / drawn.sum(-1, keepdims=True)


def _labels(count: int, classes: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, classes, count).astype(np.int32)


def _patch_error(prediction: Array, images: Array, mask: Array) -> Array:
    return masked_modeling.patch_error(prediction, images, mask, patch_size=16).sum(-1) / mask.sum(-1)


def _pondering(losses: Array, halting: Array) -> Array:
    exits = early_exit.exit_distribution(jax.nn.sigmoid(halting))
    return early_exit.pondering(losses, exits, early_exit.geometric_prior(halting.shape[1]))


def _relation(*projections: Array) -> Array:
    return distillation.self_attention_relation(projections[:3], projections[3:])


def _scan(x: Array, delta: Array, b: Array, c: Array, gate: Array, a: Array) -> Array:
    return jnp.asarray(attention.selective_scan(x, delta, a, b, c, gate=gate))


def cases() -> dict[str, Case]:
    """Sizes of a ViT-B or ResNet on ImageNet, where an objective belongs to one."""
    batch = lambda size: max(2, size // SCALE)  # noqa: E731
    stages = [(batch(32), side, side, width) for side, width in ((32, 64), (16, 128), (8, 256))]
    tokens = (batch(32), 196, 384)
    logits, masked = (batch(1024), 1000), np.arange(196) % 4 != 0
    drawn = {
        "normalized_feature": Case(
            lambda *x: distillation.normalized_feature(list(x[:3]), list(x[3:])),
            tuple(_normal(*shape) for shape in stages),
            tuple(_normal(*shape, seed=1) for shape in stages),
        ),
        "layer_transfer": Case(
            distillation.layer_transfer,
            (_normal(*tokens), _normal(*tokens, seed=1)),
            (_normal(*tokens, seed=2), _normal(*tokens, seed=3)),
        ),
        "similarity_preserving": Case(
            distillation.similarity_preserving, (_normal(batch(512), 1024),), (_normal(batch(512), 2048),)
        ),
        "channel_correlation": Case(
            distillation.channel_correlation, (_normal(batch(64), 14, 14, 256),), (_normal(batch(64), 7, 7, 256),)
        ),
        "self_attention_relation": Case(
            _relation,
            tuple(_normal(batch(8), 197, 384, seed=i) for i in range(3)),
            tuple(_normal(batch(8), 197, 768, seed=i) for i in range(3)),
        ),
        "mutual": Case(distillation.mutual, (_normal(3, *logits),)),
        "hard_soft": Case(
            distillation.hard_soft, (_normal(*logits),), (_normal(*logits, seed=1), _labels(logits[0], 1000))
        ),
        "routed_teachers": Case(
            distillation.routed_teachers, (_normal(*logits),), (_normal(4, *logits), _probabilities(logits[0], 4))
        ),
        "blended_teachers": Case(
            lambda student, gate, teachers: distillation.blended_teachers(student, teachers, gate),
            (_normal(*logits), _probabilities(logits[0], 4)),
            (_normal(4, *logits),),
        ),
        "patch_error": Case(
            _patch_error,
            (_normal(batch(32), 196, 768),),
            (_normal(batch(32), 224, 224, 3), np.tile(masked, (batch(32), 1))),
        ),
        "relative_difficulty": Case(
            masked_modeling.relative_difficulty, (_normal(batch(256), 196),), (_normal(batch(256), 196, seed=1),)
        ),
        "pondering": Case(_pondering, (_normal(batch(8192), 12) ** 2, _normal(batch(8192), 12, seed=1))),
        "leave_one_out_neighbours": Case(
            representation.leave_one_out_neighbours,
            (_normal(batch(256), 128),),
            (_labels(batch(256), 100), _normal(batch(16384), 128, seed=1), _labels(batch(16384), 100)),
        ),
        "embedding_dynamics": Case(
            representation.embedding_dynamics,
            (_normal(2, batch(1024), 256),),
            (_normal(2, batch(1024), 256, seed=1), _normal(batch(1024), 256)),
        ),
    }
    for length in LENGTHS:
        wide, states = (2, max(8, length // SCALE), 64), (2, max(8, length // SCALE), 16)
        inputs = (*(_normal(*wide, seed=i) for i in range(2)), *(_normal(*states, seed=i) for i in range(2)))
        rates = -np.tile(np.arange(1, 17, dtype=np.float32), (64, 1))
        drawn[f"selective_scan {length}"] = Case(_scan, (*inputs, _normal(*wide, seed=2)), (rates,))
    return drawn


def _compiled(case: Case) -> Callable[..., Any]:
    """The mean of an objective and its gradients."""

    def mean(moving: tuple[Array, ...], fixed: tuple[Array, ...]) -> Array:
        return jnp.mean(case.objective(*moving, *fixed))

    return jax.jit(jax.value_and_grad(mean))


def ours(case: Case) -> Call:
    """A call of the compiled objective, that waits for its result."""
    compiled, arguments = _compiled(case), jax.device_put((case.moving, case.fixed))
    return lambda: jax.block_until_ready(compiled(*arguments))


def theirs(name: str, case: Case) -> Call:
    from experiments.benchmarks import torch_features

    return torch_features.call(name.split()[0], case.moving, case.fixed)


def check_same(name: str, here: Call, there: Call) -> None:
    """Both sides give one value and the same gradients."""
    (value, gradients), (their_value, their_gradients) = here(), there()
    pairs = [
        (np.asarray(ours), np.asarray(theirs.cpu())) for ours, theirs in zip(gradients, their_gradients, strict=True)
    ]
    largest = max(float(np.max(np.abs(theirs))) for _, theirs in pairs)
    apart = max(float(np.max(np.abs(ours - theirs))) for ours, theirs in pairs)
    if not (np.isclose(value, float(their_value), rtol=AGREEMENT) and apart <= AGREEMENT * largest):
        raise AssertionError(
            f"the two sides of {name} differ: value {float(value)} here, {float(their_value)} in PyTorch; gradients by "
            f"{apart}, the largest is {largest}"
        )


def _record(name: str, case: Case, with_torch: bool) -> dict[str, Any]:
    calls = {"ours": ours(case)}
    if with_torch:
        other = theirs(name, case)
        check_same(name, calls["ours"], other)
        calls |= by_threads({"PyTorch": other})
    rounds = rounds_within(SECONDS, calls["ours"], least=ROUNDS[0], most=ROUNDS[1])
    return {"what": name, **ratios(seconds_in_turns(calls, rounds=rounds))}


def _relation_memory(with_torch: bool) -> dict[str, Any]:
    """Peak memory of token relations of a ViT-B, and what their scores alone would take on one side."""
    case = Case(
        _relation,
        tuple(_normal(RELATION_EXAMPLES, 197, 384, seed=i) for i in range(3)),
        tuple(_normal(RELATION_EXAMPLES, 197, 768, seed=i) for i in range(3)),
    )
    record: dict[str, Any] = {"what": f"memory of self_attention_relation, {RELATION_EXAMPLES} examples"}
    if memory.can_measure():
        record["ours MiB"] = memory.of_ours(_compiled(case), *jax.device_put((case.moving, case.fixed))) / 2**20
        if with_torch:
            record["PyTorch MiB"] = memory.of_theirs(theirs("self_attention_relation", case)) / 2**20
    return record


def _candidates() -> dict[str, Any]:
    """Candidates a second, each scored at some initialisations: all in one mapped call, and one call each."""
    x, y = jnp.asarray(_normal(IMAGES, 8, 8, 1)), jnp.asarray(_labels(IMAGES, 10))
    keys = jax.random.split(jax.random.key(0), INITIALISATIONS)
    views = search.teacher_views(keys, x, y)
    architectures = [jnp.asarray(search.SPACE[index]) for index in range(0, len(search.SPACE), 16)]

    def score(key: Array, architecture: Array, views: tuple[Array, Array]) -> Array:
        own = search.random_views(search.student(search.first_student(key, 1), x, architecture, IMAGES), y)
        return architecture_search.training_free_student_score(views[0], own[0], views[1], own[1])

    together = jax.jit(jax.vmap(score, in_axes=(0, None, 0)))
    alone = jax.jit(score)
    parts = [(keys[i], tuple(view[i] for view in views)) for i in range(INITIALISATIONS)]
    calls: dict[str, Call] = {
        "mapped": lambda: jax.block_until_ready([together(keys, a, views) for a in architectures]),
        "one by one": lambda: jax.block_until_ready([alone(k, a, v) for a in architectures for k, v in parts]),
    }
    seconds = in_turns(calls, rounds=ROUNDS[0])
    rates = {f"candidates/s, {name}": len(architectures) / value for name, value in seconds.items()}
    return {"what": f"search, {INITIALISATIONS} initialisations", **rates}


def run() -> list[dict[str, Any]]:
    """A row an objective: milliseconds of both sides, quartiles of PyTorch's over ours; then memory and search."""
    with_torch = importlib.util.find_spec("torch") is not None
    if not with_torch:
        print(NO_TORCH)
    # As PyTorch multiplies by default; a CPU knows nothing else.
    with jax.default_matmul_precision("highest"):
        records = [_record(name, case, with_torch) for name, case in cases().items()]
        if with_torch:
            records.append({"what": "median", "over ours": float(np.median([r["over ours"] for r in records]))})
        return [*records, _relation_memory(with_torch), _candidates()]
