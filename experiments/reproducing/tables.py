"""Tables that several papers share: every arm that a config enters in one, in its row and column."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from experiments.engine import pictures
from experiments.engine.errors import UserError
from experiments.engine.logs import CONSOLE
from experiments.reproducing import catalogue, listing, results, rules, showing
from experiments.reproducing.rules import Numbers

Cells = dict[str, dict[str, Sequence[float]]]  # row, column, a value for each seed


def show(names: Sequence[str], workdir: Path) -> None:
    """Prints every table of some papers, and writes it and a picture beside their results.

    Raises:
      UserError: none of the papers has a table, or results of some are missing, after what is there has been shown.
    """
    entered = {name: config.entries for name in names if (config := catalogue.load(name)).get("entries", ())}
    if not entered:
        raise UserError(f"none of the papers {', '.join(names)} has entries in a table that papers share")
    found = {name: numbers(name, workdir) for name in entered}
    lacking = [name for name, measured in found.items() if measured is None]
    tables: dict[str, list[tuple[str, Any, Numbers]]] = {}
    for name, entries in entered.items():
        if (measured := found[name]) is not None:
            for entry in entries:
                tables.setdefault(entry["table"], []).append((name, entry, measured))
    for title, every in tables.items():
        _show_one(title, gather(every), sorted({name for name, _, _ in every}), workdir)
    if lacking:
        commands = "; ".join(f"python -m experiments.reproduce --config=configs/papers/{name}.py" for name in lacking)
        raise UserError(f"no finished results of {', '.join(lacking)} in {workdir} or {listing.KEPT}: {commands}")


def numbers(name: str, workdir: Path) -> Numbers | None:
    """A paper's results in a workdir, else the kept ones; None where there are none of its config as it stands."""
    config = catalogue.load(name)
    wanted, path = catalogue.fingerprint(config), workdir / name / results.FILE
    if path.exists() and results.read(path)["hash"] == wanted:
        done = results.Results(path.parent, name, config, smoke=False)
        arms = list(catalogue.arms(config))
        if not any(done.missing(arm, config.seeds) for arm in arms):
            return done.numbers(arms, config.seeds)
    kept = listing.kept(name)
    return listing.numbers(kept) if kept is not None and kept["hash"] == wanted else None


def gather(entries: Sequence[tuple[str, Any, Numbers]]) -> Cells:
    """Cells of a table, from (paper, entry, the paper's numbers).

    What two papers measured alike stands once; where their numbers differ, the second has a row under its own name.
    """
    cells: Cells = {}
    for name, entry, measured in entries:
        values = list(measured[entry["arm"]][entry["metric"]])
        row, column = entry["row"], entry["column"]
        if cells.get(row, {}).get(column, values) != values:
            row = f"{row} ({name})"
        cells.setdefault(row, {})[column] = values
    return cells


def _show_one(title: str, cells: Cells, papers: Sequence[str], workdir: Path) -> None:
    columns = list(dict.fromkeys(column for row in cells.values() for column in row))
    order = sorted(cells, key=lambda row: _place(cells[row], columns))
    rows = showing.rows({row: cells[row] for row in order}, columns)
    table = Table(title=f"{title}: mean over seeds ± half of its 95 % interval")
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row)
    CONSOLE.print(table)
    stem = "".join(letter if letter.isalnum() else "_" for letter in title)
    page, picture = workdir / f"{stem}.md", workdir / f"{stem}.png"
    workdir.mkdir(parents=True, exist_ok=True)
    page.write_text(_markdown(title, columns, rows, papers))
    panels = {column: {row: cells[row][column] for row in order if column in cells[row]} for column in columns}
    pictures.write_points(picture, title, panels, rules.interval, most_columns=len(panels))
    print(f"of {', '.join(papers)}; table {page}; picture {picture}", flush=True)


def _place(row: Mapping[str, Sequence[float]], columns: Sequence[str]) -> tuple[int, float]:
    """The largest mean of the first column stands first; rows that are measured only elsewhere follow, likewise."""
    first = next(index for index, column in enumerate(columns) if column in row)
    return first, -float(np.mean(row[columns[first]]))


def _markdown(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], papers: Sequence[str]) -> str:
    lines = [["", *columns], ["---", *["---:"] * len(columns)], *rows]
    table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return (
        f"# {title}\n\nMeans over seeds ± half of the 95 % interval (Student's t); of {', '.join(papers)}.\n\n{table}\n"
    )
