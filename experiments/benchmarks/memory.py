"""How much memory a call takes at its most, as the operating system counts it, on a GPU the compiler or allocator."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def on_gpu() -> bool:
    return jax.default_backend() == "gpu"


def can_measure() -> bool:
    """On a GPU, and on Linux where the process may reset its own high-water mark."""
    if on_gpu():
        return True
    try:
        RESET.write_text("5")
    except OSError:
        return False
    return STATUS.is_file()


def of_ours(compiled: Callable[..., Any], *arguments: Any) -> int:
    """Bytes of a jitted call's results and of what it holds between, without its arguments."""
    if not on_gpu():
        return peak(lambda: jax.block_until_ready(compiled(*arguments)))
    program: Any = compiled
    needs = program.lower(*arguments).compile().memory_analysis()
    return needs.temp_size_in_bytes + needs.output_size_in_bytes


def of_theirs(call: Callable[[], Any]) -> int:
    """Bytes of a call of PyTorch, its results with them."""
    if not on_gpu():
        return peak(call)
    from experiments.benchmarks import torch_device

    return torch_device.peak(call)


def peak(call: Callable[[], Any]) -> int:
    """Bytes that the process holds during a call at most, above those before it. Results are dropped."""
    call()  # what is made once, such as threads and compiled programs, is there before
    gc.collect()
    RESET.write_text("5")
    before = _bytes("VmRSS")
    call()
    return max(0, _bytes("VmHWM") - before)


def _bytes(field: str) -> int:
    for line in STATUS.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return 1024 * int(value.split()[0])
    raise RuntimeError(f"{STATUS} has no {field}")
