"""PyTorch on the device that JAX has: a GPU where there is one, else the CPU."""

from collections.abc import Callable
from typing import Any

import jax
import torch


def device() -> str:
    """Where the other side's tensors live."""
    return "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"


def wait() -> None:
    """Until the device has done all that it was given."""
    if device() == "cuda":
        torch.cuda.synchronize()


def peak(call: Callable[[], Any]) -> int:
    """Bytes that PyTorch takes on the GPU during a call at most, above those before it."""
    call()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return torch.cuda.max_memory_allocated() - before
