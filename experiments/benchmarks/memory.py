"""How much memory a call takes at its most, as the operating system counts it."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def can_measure() -> bool:
    """On Linux, where the process may reset its own high-water mark."""
    try:
        RESET.write_text("5")
    except OSError:
        return False
    return STATUS.is_file()


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
