"""Timing in turns."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


def in_turns(calls: Mapping[str, Callable[[], Any]], *, rounds: int) -> dict[str, float]:
    """Median seconds of each call; every round makes each call once, so that slow phases of a machine hit all alike.

    A call must wait for its own result. One round before the first is not counted.
    """
    return {name: float(np.median(values)) for name, values in seconds_in_turns(calls, rounds=rounds).items()}


def seconds_in_turns(calls: Mapping[str, Callable[[], Any]], *, rounds: int) -> dict[str, list[float]]:
    """Like `in_turns`: the seconds of every round."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return seconds
