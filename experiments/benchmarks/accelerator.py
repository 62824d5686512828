"""Training of the CIFAR-10 network on a GPU: steps a second, memory and use of its arithmetic, beside compiled PyTorch.

Each precision runs in a process of its own, so that the peak of memory is its own.
"""

import importlib.util
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.benchmarks import apart, consistency
from experiments.benchmarks.timing import over_ours, seconds_in_turns
from experiments.planning import flops

BATCH = 128  # what each of eight devices takes of the config's batch
UPDATES, ROUNDS = 20, 7
PRECISIONS = ("bfloat16", "float32")  # float32 multiplies in TF32 on both sides, JAX's default on such GPUs
# Dense FLOPs a second by NVIDIA's data sheets of the SXM parts; float32 in TF32.
PEAKS = {
    "A100": {"bfloat16": 312e12, "float32": 156e12},
    "H100": {"bfloat16": 989.4e12, "float32": 494.7e12},
    "H200": {"bfloat16": 989.4e12, "float32": 494.7e12},
}


def run() -> list[dict[str, Any]]:
    """Records of every precision; none where there is no GPU."""
    records: list[dict[str, Any]] = []
    for precision in PRECISIONS:
        found = apart.records("experiments.benchmarks.accelerator", precision)
        if not found:
            break
        records += found
    return records


def subject(precision: str) -> consistency.Subject:
    """The network and schedule of the cifar10 config, on random images."""
    return consistency.prepared("cifar10 U-Net", "cifar10", (32, 32, 3), BATCH, UPDATES, ROUNDS, dtype=precision)


def measured(subject: consistency.Subject, precision: str) -> list[dict[str, Any]]:
    """Of one precision, on the device that JAX has."""
    label = f"{subject.label}, batch {subject.config.batch_size}, {precision}"
    arithmetic = _arithmetic(subject)
    calls: dict[str, Callable[[], Any]] = {"ours": consistency.looped(subject, subject.updates)}
    if importlib.util.find_spec("torch") is None:
        print(consistency.NO_TORCH, file=sys.stderr)
    else:
        calls["PyTorch"] = _theirs(subject, precision)
    first = {side: _first(f"{label}, {side}", call, subject.updates) for side, call in calls.items()}
    seconds = seconds_in_turns(calls, rounds=subject.rounds)
    records = []
    for side, values in seconds.items():
        rate = subject.updates / float(np.median(values))
        told = {
            "steps a second": (rate, "1/s"),
            "memory at most": (_memory(side) / 2**30, "GiB"),
            "of the arithmetic of the device": (100 * rate * arithmetic / _peak(precision), "%"),
            "first call, with compilation": (first[side], "s"),
        }
        records += [
            {"quantity": f"{label}: {side}, {what}", "value": value, "unit": unit}
            for what, (value, unit) in told.items()
            if np.isfinite(value)
        ]
    if len(seconds) > 1:
        quartiles = over_ours(seconds)[1]
        records += [
            {"quantity": f"{label}: PyTorch {name}", "value": value, "unit": "x"} for name, value in quartiles.items()
        ]
    return records


def _first(label: str, call: Callable[[], Any], updates: int) -> float:
    """Seconds of a call that compiles, minutes on either side; the next one's are told, for whom the rest takes too long."""
    print(f"{label} compiles ...", file=sys.stderr, flush=True)
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    rate = updates / seconds[1]
    print(f"{label} compiled in {seconds[0]:.0f} s, then {rate:.3g} steps a second", file=sys.stderr, flush=True)
    return seconds[0]


def _arithmetic(subject: consistency.Subject) -> float:
    """FLOPs of the matrix products and convolutions of an update."""
    task, size = subject.task, subject.config.batch_size
    state = jax.eval_shape(task.init, jax.random.key(0))
    batch = {**subject.world.train.read(np.arange(size)), "index": np.arange(size, dtype=np.int32)}
    return float(flops.count(jax.make_jaxpr(task.update)(state, batch, jax.random.key(0)).jaxpr))


def _theirs(subject: consistency.Subject, precision: str) -> Callable[[], float]:
    """The updates in PyTorch with the loss compiled, in channels last, as its guides advise for convolutions."""
    import torch

    from experiments.benchmarks import torch_device, torch_networks

    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    device, half = torch_device.device(), precision == "bfloat16"

    def loss(*given: Any) -> Any:
        with torch.autocast(device, torch.bfloat16, enabled=half):
            return torch_networks.consistency_loss(*given)

    step = consistency.peer(subject).trainer(
        channels_last=True,
        device=device,
        dropout=subject.config.model.dropout,
        optimizer=subject.config.optimizer.name,
        loss=torch.compile(loss),
    )
    return lambda: consistency.repeated(step, subject.updates)


def _memory(side: str) -> float:
    """Bytes that a side's allocator has given out at most; nan where it does not count."""
    if side == "ours":
        return float((jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", np.nan))
    import torch

    return float(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else np.nan


def _peak(precision: str) -> float:
    kind = jax.devices()[0].device_kind
    return next((peaks[precision] for name, peaks in PEAKS.items() if name in kind), np.nan)


if __name__ == "__main__":
    target, chosen = sys.argv[1:]
    found = measured(subject(chosen), chosen) if jax.default_backend() == "gpu" else []
    Path(target).write_text(json.dumps(found))
