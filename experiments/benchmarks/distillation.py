"""Speed and memory of distillation objectives: value with gradient against PyTorch, in one run."""

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from experiments.benchmarks import memory
from experiments.benchmarks.consistency import NO_TORCH
from experiments.benchmarks.timing import Call, by_threads, ratios, rounds_within, seconds_in_turns
from mlfuncs import distillation

SIZES = ((1024, 1000), (4096, 100), (2048, 32000))  # rows, classes
VOCABULARY = 10_000  # classes from which on the rows are tokens
SEQUENCES = 16  # that the tokens belong to
SECONDS = 6.0  # a comparison, about
ROUNDS = (5, 41)  # at least and at most
VALUE_AGREEMENT, GRADIENT_AGREEMENT = 1e-4, 1e-3  # of the two sides, relative; of the gradient to its largest value
CHANCE = 1e-5  # share of the gradient's entries that may differ by more
Objective = Callable[[Array, Array, Array], Array]  # (student [B, C], teacher, labels [B]) -> values, averaged here


def _mixup(student: Array, teacher: Array, labels: Array) -> Array:
    return distillation.mixup_objective(student, teacher, jax.nn.one_hot(labels, student.shape[-1]))


def _multi_teacher(student: Array, teacher: Array, labels: Array) -> Array:
    return distillation.multi_teacher(student, teacher, labels // 50, np.arange(student.shape[-1]) // 50)


def _sequences(student: Array, teacher: Array, labels: Array) -> Array:
    s, t = (x.reshape(SEQUENCES, -1, x.shape[-1]) for x in (student, teacher))
    return distillation.sequence_divergence(s, t, jnp.ones(s.shape[:2], bool))


def _without_labels(objective: Callable[..., Array], **settings: Any) -> Objective:
    return lambda student, teacher, labels: objective(student, teacher, **settings)


OBJECTIVES: dict[str, Objective] = {
    "kullback_leibler": _without_labels(distillation.kullback_leibler, temperature=4.0),
    "reverse_kullback_leibler": _without_labels(distillation.reverse_kullback_leibler, temperature=2.0),
    "jensen_shannon": _without_labels(distillation.jensen_shannon, temperature=2.0),
    "total_variation": _without_labels(distillation.total_variation, temperature=2.0),
    "soft_cross_entropy": _without_labels(distillation.soft_cross_entropy),
    "knowledge_distillation": distillation.knowledge_distillation,
    "sinkhorn": _without_labels(distillation.sinkhorn),
    "correlation": _without_labels(distillation.correlation),
    "plackett_luce": distillation.plackett_luce,
    "binary_kullback_leibler": _without_labels(distillation.binary_kullback_leibler),
    "binary_kullback_leibler_difference": _without_labels(distillation.binary_kullback_leibler_difference),
    "decoupled": distillation.decoupled,
    "scaled_by_deviation": _without_labels(distillation.scaled_by_deviation),
    "mixup_objective": _mixup,
    "enhanced_target_cross_entropy": lambda s, t, y: distillation.enhanced_target_cross_entropy(s, t, y, exponent=1.5),
    "multi_teacher": _multi_teacher,
    "sequence_divergence": _sequences,
}
# Distances between all pairs of tokens over a vocabulary take minutes on either side.
NOT_OF_TOKENS = ("sinkhorn",)
OF_TOKENS_ALONE = ("sequence_divergence",)


class Given(NamedTuple):
    student: np.ndarray  # [B, C] logits
    teacher: np.ndarray
    labels: np.ndarray  # [B]


def given(rows: int, classes: int) -> Given:
    """Logits of a teacher that knows the labels fairly well, and of a student between it and noise."""
    draw = np.random.default_rng(0)
    labels = draw.integers(0, classes, rows)
    teacher = draw.standard_normal((rows, classes), np.float32)
    teacher[np.arange(rows), labels] += 5
    student = (teacher + draw.standard_normal((rows, classes), np.float32)) / 2
    return Given(student, teacher, labels)


def _compiled(name: str) -> Callable[..., Any]:
    """The mean of an objective and its gradient in the student's logits."""

    def mean(student: Array, teacher: Array, labels: Array) -> Array:
        return jnp.mean(OBJECTIVES[name](student, teacher, labels))

    return jax.jit(jax.value_and_grad(mean))


def ours(name: str, at: Given) -> Call:
    """A call of the compiled objective, that waits for its result."""
    compiled, arguments = _compiled(name), jax.device_put(at)
    return lambda: jax.block_until_ready(compiled(*arguments))


def theirs(name: str, at: Given) -> Call:
    from experiments.benchmarks import torch_distillation

    return torch_distillation.call(name, *at)


def check_same(name: str, here: Call, there: Call) -> None:
    """Both sides give one value and one gradient."""
    value, gradient = here()
    their_value, their_gradient = (np.asarray(x.cpu()) for x in there())
    gap, largest = np.abs(np.asarray(gradient) - their_gradient), np.max(np.abs(their_gradient))
    # Where two probabilities are equal but for rounding, their order and so the sign of a subgradient is chance.
    apart = np.quantile(gap, 1 - CHANCE)
    if not (np.isclose(value, their_value, rtol=VALUE_AGREEMENT) and apart <= GRADIENT_AGREEMENT * largest):
        raise AssertionError(
            f"the two sides of {name} differ: value {float(value)} here, {float(their_value)} in PyTorch; gradients by "
            f"{apart}, the largest is {largest}"
        )


def _names(classes: int) -> list[str]:
    left_out = NOT_OF_TOKENS if classes >= VOCABULARY else OF_TOKENS_ALONE
    return [name for name in OBJECTIVES if name not in left_out]


def _record(name: str, rows: int, classes: int, at: Given, with_torch: bool) -> dict[str, Any]:
    calls = {"ours": ours(name, at)}
    if with_torch:
        other = theirs(name, at)
        check_same(name, calls["ours"], other)
        calls |= by_threads({"PyTorch": other})
    rounds = rounds_within(SECONDS, calls["ours"], least=ROUNDS[0], most=ROUNDS[1])
    record: dict[str, Any] = {"what": name, "rows": rows, "classes": classes}
    record |= ratios(seconds_in_turns(calls, rounds=rounds))
    if memory.can_measure() and classes >= VOCABULARY:
        # In mebibytes above what stands before the call: inputs are there already, results are not.
        record["ours MiB"] = memory.of_ours(_compiled(name), *jax.device_put(at)) / 2**20
        if with_torch:
            record["PyTorch MiB"] = memory.of_theirs(other) / 2**20
        if record.get("PyTorch MiB"):
            record["share of memory"] = record["ours MiB"] / record["PyTorch MiB"]
    return record


def run() -> list[dict[str, Any]]:
    """A row an objective and size: milliseconds of both sides, quartiles of PyTorch's over ours, memory at a vocabulary."""
    with_torch = importlib.util.find_spec("torch") is not None
    if not with_torch:
        print(NO_TORCH)
    records = []
    # As PyTorch multiplies by default; a CPU knows nothing else.
    with jax.default_matmul_precision("highest"):
        for rows, classes in SIZES:
            at = given(rows, classes)
            records += [_record(name, rows, classes, at, with_torch) for name in _names(classes)]
    if with_torch:
        ratios = [record["over ours"] for record in records]
        records.append({"what": "median", "over ours": float(np.median(ratios))})
    return records
