"""Timing in turns."""

import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

Call = Callable[[], Any]


def in_turns(calls: Mapping[str, Call], *, rounds: int) -> dict[str, float]:
    """Median seconds of each call; every round makes each call once, so that slow phases of a machine hit all alike.

    A call must wait for its own result. One round before the first is not counted.
    """
    return {name: float(np.median(values)) for name, values in seconds_in_turns(calls, rounds=rounds).items()}


def seconds_in_turns(calls: Mapping[str, Call], *, rounds: int) -> dict[str, list[float]]:
    """Like `in_turns`: the seconds of every round."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def rounds_within(seconds: float, call: Call, *, least: int, most: int) -> int:
    """How many rounds of three sides as slow as `call` take about that many seconds."""
    call()
    began = time.perf_counter()
    call()
    return int(np.clip(seconds / 3 / (time.perf_counter() - began), least, most))


def over_ours(seconds: Mapping[str, list[float]]) -> tuple[str, dict[str, float]]:
    """The fastest side but "ours", and quartiles of its time over ours in the same rounds."""
    fastest = min((side for side in seconds if side != "ours"), key=lambda side: float(np.median(seconds[side])))
    low, middle, high = np.quantile(np.array(seconds[fastest]) / np.array(seconds["ours"]), (0.25, 0.5, 0.75))
    return fastest, {"over ours": float(middle), "lower quartile": float(low), "upper": float(high)}


def ratios(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """Median milliseconds of "ours" and of the fastest other side, whatever its threads, and `over_ours`."""
    record = {"ours ms": 1000 * float(np.median(seconds["ours"]))}
    if len(seconds) > 1:
        fastest, quartiles = over_ours(seconds)
        record |= {f"{fastest.split(',')[0]} ms": 1000 * float(np.median(seconds[fastest])), **quartiles}
    return record


def by_threads(calls: Mapping[str, Call]) -> dict[str, Call]:
    """PyTorch with a thread for every core given to us and with one, which is faster where others use the cores.

    On a GPU the calls as they are.
    """
    import torch

    from experiments.benchmarks import torch_device

    if torch_device.device() != "cpu":
        return dict(calls)

    def at(threads: int, call: Call) -> None:
        torch.set_num_threads(threads)
        call()

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    counts = sorted({1, cores}, reverse=True)
    return {
        f"{name}, {count} thread{'s' * (count > 1)}": partial(at, count, call)
        for count in counts
        for name, call in calls.items()
    }
