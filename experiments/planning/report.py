"""A plan as a table for people and as plain data for programs."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.planning.chips import GIB
from experiments.planning.estimate import Change, Estimate

ENDS = ("parameters", "needed", "step at best")  # rows with a line below
UNKNOWN = "not compiled"


def plain(found: Estimate, steps: int) -> dict[str, Any]:
    """The numbers of a plan; what the compiler could not say is null."""
    seconds = found.step_seconds if found.compiled else None
    total = None if seconds is None else steps * seconds
    return {
        "topology": found.topology.name,
        "chips": found.devices,
        "parameters": found.parameters,
        "fits": found.fits,
        "memory_per_chip": int(found.chip.memory),
        "bytes_per_chip": int(found.needed),
        "argument_bytes": int(found.arguments),
        "temporary_bytes": int(found.temporaries),
        "output_bytes": int(found.output),
        "waiting_bytes": int(found.waiting),
        "program_bytes": int(found.code),
        "flops_per_chip": found.flops,
        "memory_traffic_bytes": found.accessed if found.compiled else None,
        "collective_bytes": found.collectives if found.compiled else None,
        "compute_seconds": found.compute_seconds,
        "memory_seconds": found.memory_seconds if found.compiled else None,
        "collective_seconds": found.collective_seconds if found.compiled else None,
        "step_seconds": seconds,
        "steps": steps,
        "total_seconds": total,
        "chip_hours": None if total is None else total * found.devices / 3600,
    }


def show(found: Estimate, changed: tuple[Change, Estimate] | None, steps: int) -> None:
    """Prints the table and, below it, the verdict."""
    columns = [found] + ([changed[1]] if changed else [])
    table = Table(title=f"One step on one of {found.devices} chips, {found.topology.name}")
    table.add_column("")
    table.add_column("as configured", justify="right")
    if changed:
        table.add_column(f"with {changed[0].flags}", justify="right")
    kinds = sorted({kind for column in columns for kind in column.collectives})
    rows = [_rows(column, kinds, steps) for column in columns]
    for name in rows[0]:
        table.add_row(name, *(cells[name] for cells in rows), end_section=name in ENDS)
    Console().print(table)
    print(verdict(found, changed))


def _rows(found: Estimate, kinds: Sequence[str], steps: int) -> dict[str, str]:
    hours = steps * found.step_seconds / 3600

    def known(text: str) -> str:
        return text if found.compiled else UNKNOWN

    return {
        "parameters": f"{found.parameters:,}",
        "arguments": _bytes(found.arguments),
        "temporaries": _bytes(found.temporaries),
        "output beside the state": known(_bytes(found.output)),
        "batches that wait": _bytes(found.waiting),
        "program": known(_bytes(found.code)),
        "needed": f"{_bytes(found.needed)} of {_bytes(found.chip.memory)}",
        "FLOPs": f"{found.flops:.3e}",
        "memory traffic": known(_bytes(found.accessed)),
        **{f"{kind} bytes": known(_bytes(found.collectives.get(kind, 0))) for kind in kinds},
        "compute": _seconds(found.compute_seconds),
        "memory": known(_seconds(found.memory_seconds)),
        "communication": known(_seconds(found.collective_seconds)),
        "step at best": known(_seconds(found.step_seconds)),
        f"{steps:,} steps at best": known(f"{hours:,.1f} h"),
        "chip-hours at best": known(f"{hours * found.devices:,.1f}"),
    }


def verdict(found: Estimate, changed: tuple[Change, Estimate] | None) -> str:
    """One line."""
    share = f"{_bytes(found.needed)} of {_bytes(found.chip.memory)} a chip"
    if found.fits:
        return f"fits: {share}"
    if changed is None:
        return f"does not fit: {share}; nothing that was tried makes it fit"
    return f"does not fit: {share}; the smallest change that does: {changed[0].flags}"


def _bytes(size: float) -> str:
    for unit, name in ((GIB, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            return f"{size / unit:,.2f} {name}"
    return f"{size:.0f} B"


def _seconds(seconds: float) -> str:
    for unit, name in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= unit:
            return f"{seconds / unit:,.2f} {name}"
    return f"{seconds * 1e6:,.2f} µs" if seconds else "0 s"
