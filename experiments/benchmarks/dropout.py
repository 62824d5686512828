"""Speed of multi-sample dropout: the loss with its gradient against PyTorch, and seeds of a study in one call."""

import importlib.util
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax import Array

from configs.papers import multi_sample_dropout as paper
from experiments.benchmarks.consistency import NO_TORCH
from experiments.benchmarks.timing import Call, by_threads, rounds_within, seconds_in_turns
from experiments.papers import multi_sample_dropout as study
from mlfuncs import dropout

HEADS = ((256, 512, 10), (1024, 1024, 100))  # batch, features, classes
SAMPLES = (1, 8, 32)
RATE = 0.5
SECONDS = 6.0  # a comparison, about
ROUNDS = (5, 41)  # at least and at most
SEEDS, SEED_ROUNDS = 8, 5
STUDY: dict[str, Any] = {"num_samples": 8, "widths": (128, 128), "steps": 200, "redraws": 64}


class Problem(NamedTuple):
    features: np.ndarray  # [B, D]
    kernel: np.ndarray  # [D, C]
    bias: np.ndarray  # [C]
    labels: np.ndarray  # [B]


def problem(batch: int, width: int, classes: int) -> Problem:
    draw = np.random.default_rng(0)
    return Problem(
        draw.standard_normal((batch, width), np.float32),
        draw.standard_normal((width, classes), np.float32) / np.float32(np.sqrt(width)),
        np.zeros(classes, np.float32),
        draw.integers(0, classes, batch),
    )


def ours(given: Problem, samples: int, rate: float) -> Callable[[Array], Any]:
    """Compiled: key -> loss, gradients of features, kernel and bias."""

    def loss(features: Array, kernel: Array, bias: Array, key: Array) -> Array:
        losses = dropout.multi_sample_dropout_loss(
            key,
            lambda h: h @ kernel + bias,
            features,
            given.labels,
            optax.losses.softmax_cross_entropy_with_integer_labels,
            num_samples=samples,
            rate=rate,
        )
        return jnp.mean(losses)

    compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
    arrays = tuple(map(jnp.asarray, given[:3]))
    return lambda key: jax.block_until_ready(compiled(*arrays, key))


def theirs(given: Problem, samples: int, rate: float) -> dict[str, Callable[[], Any]]:
    """The same in PyTorch: a loop over samples, as public ports have it, and all samples in one batch."""
    import torch
    import torch.nn.functional as F

    features, kernel, bias = (torch.from_numpy(np.array(value)) for value in given[:3])
    leaves: Any = (features, kernel.T.contiguous(), bias)
    for leaf in leaves:
        leaf.requires_grad_()
    labels = torch.from_numpy(given.labels)
    repeated = labels.repeat(samples)

    def result(loss: Any) -> Any:
        for leaf in leaves:
            leaf.grad = None
        loss.backward()
        return loss.detach(), (leaves[0].grad, leaves[1].grad.T, leaves[2].grad)

    def loop() -> Any:
        losses = [F.cross_entropy(F.linear(F.dropout(leaves[0], rate), *leaves[1:]), labels) for _ in range(samples)]
        return result(sum(losses) / samples)

    def stacked() -> Any:
        dropped = F.dropout(leaves[0].expand(samples, *leaves[0].shape), rate)
        return result(F.cross_entropy(F.linear(dropped, *leaves[1:]).flatten(0, 1), repeated))

    return {"PyTorch, loop": loop, "PyTorch, stacked": stacked}


def check_same(given: Problem, samples: int) -> None:
    """Both sides compute the same where nothing is dropped: loss and gradients."""
    expected = jax.tree.leaves(ours(given, samples, 0.0)(jax.random.key(0)))
    for name, call in theirs(given, samples, 0.0).items():
        loss, gradients = call()
        for here, there in zip(expected, (loss, *gradients), strict=True):
            if not np.allclose(here, there, rtol=1e-3, atol=1e-6):
                raise AssertionError(f"{name} differs: {np.asarray(there)}, here {np.asarray(here)}")


def _fresh(call: Callable[[Array], Any]) -> Call:
    """A call with a new key each time."""
    state = {"key": jax.random.key(1)}

    def again() -> None:
        state["key"], key = jax.random.split(state["key"])
        call(key)

    return again


def _records(what: str, seconds: dict[str, list[float]]) -> list[dict[str, Any]]:
    """A row for each side; the first is ours, which the others are compared with."""
    first = float(np.median(next(iter(seconds.values()))))
    rows = []
    for side, values in seconds.items():
        low, middle, high = (1000 * float(q) for q in np.quantile(values, (0.25, 0.5, 0.75)))
        over = middle / 1000 / first
        rows.append({"what": what, "side": side, "ms": middle, "lower quartile": low, "upper": high, "over ours": over})
    return rows


def _losses(with_torch: bool) -> list[dict[str, Any]]:
    records = []
    for batch, width, classes in HEADS:
        given = problem(batch, width, classes)
        for samples in SAMPLES:
            calls: dict[str, Call] = {"ours": _fresh(ours(given, samples, RATE))}
            if with_torch:
                check_same(given, samples)
                calls |= by_threads(theirs(given, samples, RATE))
            rounds = rounds_within(SECONDS, calls["ours"], least=ROUNDS[0], most=ROUNDS[1])
            seconds = seconds_in_turns(calls, rounds=rounds)
            what = f"head {width} to {classes}, batch {batch}, {samples} sample{'s' * (samples > 1)}"
            records += _records(what, seconds)
    return records


def _seeds() -> list[dict[str, Any]]:
    """All seeds of a study in one call, and one after the other; compilation apart."""
    config = ml_collections.ConfigDict({**paper.get_config().settings, **STUDY})
    keys = jax.vmap(jax.random.key)(jnp.arange(SEEDS))
    run = partial(study.run, config)
    compiled, compilation = [], {}
    for name, function, example in (("in one call", jax.vmap(run), keys), ("one by one", run, keys[0])):
        began = time.perf_counter()
        compiled.append(jax.jit(function).lower(example).compile())
        compilation[name] = [time.perf_counter() - began]
    together, alone = compiled

    def one_by_one() -> None:
        for key in keys:
            jax.block_until_ready(alone(key))

    seconds = seconds_in_turns(
        {"in one call": lambda: jax.block_until_ready(together(keys)), "one by one": one_by_one}, rounds=SEED_ROUNDS
    )
    return [*_records(f"study, {SEEDS} seeds", seconds), *_records("compilation of the study", compilation)]


def run() -> list[dict[str, Any]]:
    """A row for each side of each comparison: median milliseconds and quartiles, and how many times ours that is."""
    with_torch = importlib.util.find_spec("torch") is not None
    if not with_torch:
        print(NO_TORCH)
    return [*_losses(with_torch), *_seeds()]
