"""What the devices of this machine can do, by a short measurement."""

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from experiments.planning.chips import LOCAL, Chip

SECONDS = 0.3  # of each measurement
SIDE = {"cpu": 1024}  # of the matrices that are multiplied
LARGE_SIDE = 8192
COPIED = {"cpu": 2**24}  # values that are copied, and reduced over devices
LARGE_COPIED = 2**28


def chip(devices: Sequence[Any]) -> Chip:
    """The first of the devices, on a CPU with its share of what all of them have in common."""
    first = devices[0]
    sharing = len(devices) if first.platform == "cpu" else 1
    side, copied = SIDE.get(first.platform, LARGE_SIDE), COPIED.get(first.platform, LARGE_COPIED)
    dtype = jnp.float32 if first.platform == "cpu" else jnp.bfloat16
    matrix = jax.device_put(jnp.ones((side, side), dtype), first)
    values = jax.device_put(jnp.ones(copied, jnp.float32), first)
    return Chip(
        LOCAL,
        memory=_memory(first) / sharing,
        bandwidth=2 * values.nbytes / _seconds(jax.jit(lambda x: x + 1), values) / sharing,
        flops=2 * side**3 / _seconds(jax.jit(jnp.matmul), matrix, matrix) / sharing,
        interconnect=_reduced(devices, copied // len(devices)) if len(devices) > 1 else 0.0,
    )


def _memory(device: Any) -> float:
    if device.platform == "cpu":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return float((device.memory_stats() or {}).get("bytes_limit", 0))


def _reduced(devices: Sequence[Any], size: int) -> float:
    """Bytes a second of an all-reduce, counted by its result."""
    values = jnp.ones((len(devices), size), jnp.float32)
    summed = jax.pmap(lambda x: jax.lax.psum(x, "devices"), axis_name="devices", devices=devices)
    return 4 * size / _seconds(summed, values)


def _seconds(function: Callable[..., Array], *arguments: Array) -> float:
    """The shortest of some calls."""
    jax.block_until_ready(function(*arguments))
    best, end = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        began = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        best = min(best, time.perf_counter() - began)
    return best
