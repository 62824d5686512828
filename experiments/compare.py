"""One table of several runs: what each measured at its last evaluation.

usage: python -m experiments.compare DIR [DIR ...]
"""

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from experiments import runs
from experiments.engine import command_line, logs
from experiments.engine.errors import UserError

LABELS = {"training": "original (training)"}


def main() -> None:
    workdirs = [Path(argument) for argument in sys.argv[1:]]
    if not workdirs:
        raise UserError("name at least one workdir: python -m experiments.compare DIR [DIR ...]")
    rows = []
    for workdir in workdirs:
        config = runs.load_config(workdir)
        evaluations = [r for r in logs.read(workdir / "metrics.jsonl") if "frechet_distance_floor" in r]
        if not evaluations:
            raise UserError(f"{workdir} holds no evaluation of samples yet")
        rows.append((config, evaluations[-1]))

    names = {name for _, record in rows for name in record if name.startswith("frechet_distance_")}
    steps = sorted(int(name.rsplit("_", 1)[1]) for name in names if name[-1].isdigit())
    table = Table(title="Fréchet distance to the data (lower is better)")
    table.add_column("method")
    table.add_column("training steps", justify="right")
    for step in steps:
        table.add_column(f"{step} step{'s' * (step > 1)}", justify="right")
    table.add_column("real vs real", justify="right")
    for config, record in rows:
        distances = [f"{record[name]:.3f}" if (name := f"frechet_distance_{step}") in record else "" for step in steps]
        name = config.method if "method" in config else config.task
        label = LABELS.get(name, name.replace("_", " "))
        floor = f"{record['frechet_distance_floor']:.3f}"
        table.add_row(label, f"{record['step']:,}", *distances, floor)
    Console().print(table)
    last = rows[0][1]["step"]
    print(f"pictures: {workdirs[0] / f'samples_{last}.png'}  checkpoint: {workdirs[0] / 'checkpoints' / str(last)}")


if __name__ == "__main__":
    command_line.run(main, required=(), positional=True)
