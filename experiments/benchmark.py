"""Measures speed: what is compared runs in turns in one process.

usage: python -m experiments.benchmark SUBJECT [SUBJECT ...] [--out=FILE.json]

subjects: consistency, distillation, dropout, features, few_step, scale
"""

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.engine import command_line
from experiments.engine.errors import UserError, unknown

WIDTH = 160  # of a table that goes to a file
SUBJECTS = ("consistency", "distillation", "dropout", "features", "few_step", "scale")


def main() -> None:
    # PyTorch needs its share of a GPU.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    options = [argument for argument in sys.argv[1:] if argument.startswith("-")]
    subjects = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    out = None
    for option in options:
        name, _, value = option.lstrip("-").partition("=")
        if name != "out" or not value:
            raise UserError(f"unexpected argument {option!r}; the only option is --out=FILE.json")
        out = Path(value)
        if out.exists():
            raise UserError(f"{out} exists; choose another --out")
    if not subjects:
        raise UserError(f"name a subject: {', '.join(SUBJECTS)}")
    for subject in subjects:
        if subject not in SUBJECTS:
            raise unknown("subject", subject, SUBJECTS)
    results = {}
    for subject in subjects:
        results[subject] = importlib.import_module(f"experiments.benchmarks.{subject}").run()
        _show(subject, results[subject])
    if out:
        out.write_text(json.dumps({"device": _device(), "results": results}, indent=2) + "\n")
        print(f"written to {out}")


def _device() -> str:
    import jax

    return f"{jax.device_count()} x {jax.devices()[0].device_kind}, jax {jax.__version__}"


def _show(subject: str, records: list[dict[str, Any]]) -> None:
    """Records in columns beside each other, or in rows where there are more of them than quantities."""
    names = list(dict.fromkeys(name for record in records for name in record))
    lines = [names, *([record.get(name, "") for name in names] for record in records)]
    if len(records) < len(names):
        lines = [list(line) for line in zip(*lines, strict=True)]
    table = Table(title=f"{subject} on {_device()}")
    for index, title in enumerate(lines[0]):
        table.add_column(str(title), justify="right" if index else "left")
    for line in lines[1:]:
        table.add_row(*map(_text, line))
    console = Console()
    # A file has no width of its own: there columns are as wide as they need.
    (console if console.is_terminal else Console(width=WIDTH)).print(table)


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    command_line.run(main, positional=True)
