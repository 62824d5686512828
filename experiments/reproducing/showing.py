"""A paper's result for people: a table for the terminal and in Markdown, a picture, and the verdict."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.engine import pictures
from experiments.reproducing import rules
from experiments.reproducing.catalogue import several
from experiments.reproducing.rules import Numbers, Outcome

ELSEWHERE = "the paper, at another scale"
MARKS = {True: "✓", False: "✗"}


def shown_metrics(config: ml_collections.ConfigDict, numbers: Numbers) -> list[str]:
    """Metrics that a rule looks at, in its order; the others stand in the file."""
    asked = [
        name
        for rule in (*config.checks, *config.side)
        for field in ("metric", "against_metric")
        for name in several(rule[field])
    ]
    return [name for name in dict.fromkeys(asked) if any(name in metrics for metrics in numbers.values())]


def rows(numbers: Numbers, metrics: Sequence[str]) -> list[list[str]]:
    """Mean over seeds and half of its 95 % interval, for every arm."""
    return [[arm, *(_cell(found.get(name)) for name in metrics)] for arm, found in numbers.items()]


def _cell(values: Sequence[float] | None) -> str:
    if values is None:
        return ""
    low, high = rules.interval(values)
    mean = f"{np.mean(values):.4g}"
    return mean if np.isnan(low) else f"{mean} ± {(high - low) / 2:.2g}"


def to_terminal(
    config: ml_collections.ConfigDict,
    numbers: Numbers,
    outcomes: tuple[list[Outcome], list[Outcome]] | None,
    seeds: int,
) -> None:
    """Prints the table, and under it every check and the verdict; without outcomes the table alone."""
    console = Console()
    metrics = shown_metrics(config, numbers)
    table = Table(title=f"{config.title} ({_seeds(seeds)})")
    table.add_column("arm")
    for name in metrics:
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows(numbers, metrics):
        table.add_row(*row)
    console.print(table)
    if outcomes is None:
        return
    for title, found in (("", outcomes[0]), ("beside the verdict:", outcomes[1])):
        if title and found:
            console.print(title)
        for each in found:
            style = "green" if each.holds else "red"
            line = Text.assemble((MARKS[each.holds], style), f" {each.says}: {each.measured}; needed: {each.needed}")
            console.print(line)
    console.print(f"{ELSEWHERE}: {config.headline}", markup=False, highlight=False)
    if config.remarks:
        console.print(config.remarks, markup=False, highlight=False)
    console.print(f"verdict: {rules.verdict(outcomes[0])}", style="bold", highlight=False)


def to_markdown(
    config: ml_collections.ConfigDict,
    numbers: Numbers,
    outcomes: tuple[list[Outcome], list[Outcome]] | None,
    made: Mapping[str, Any],
    *,
    level: int = 1,
) -> str:
    """All of it as a page, or a section of one."""
    seeds = len(next(iter(next(iter(numbers.values())).values())))
    metrics = shown_metrics(config, numbers)
    lines = [
        f"{'#' * level} {config.title}",
        "",
        f"[arXiv:{config.arxiv}](https://arxiv.org/abs/{config.arxiv}). {config.claim}",
        "",
        f"What you call: {', '.join(f'`{function}`' for function in config.functions)}.",
        "",
    ]
    if outcomes is not None:
        told = rules.verdict(outcomes[0]).capitalize()
        where = f"{made['device']}, {made['date']}, JAX {made['versions']['jax']}"
        lines += [f"**{told}** in miniature: {_seeds(seeds)}, {where}.", ""]
    titles = ["arm", *(name.replace("_", " ") for name in metrics)]
    lines += [_row(titles), _row(["---", *["---:"] * len(metrics)]), *map(_row, rows(numbers, metrics)), ""]
    if outcomes is not None:
        for title, found in (("", outcomes[0]), ("Beside the verdict:", outcomes[1])):
            if not found:
                continue
            lines += [title, ""] if title else []
            lines += [_row(["", "check", "measured", "needed"]), _row(["---"] * 4)]
            lines += [_row([MARKS[each.holds], *each[:3]]) for each in found] + [""]
    lines.append(f"{ELSEWHERE[0].upper()}{ELSEWHERE[1:]}: {config.headline}.".replace("..", "."))
    if config.remarks:
        lines += ["", config.remarks]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _seeds(seeds: int) -> str:
    return f"{seeds} seed{'s' * (seeds > 1)}"


def to_picture(path: Path, config: ml_collections.ConfigDict, numbers: Numbers) -> None:
    """A panel for each metric of the rules: every seed a point, and the mean with its 95 % interval."""
    panels = {
        name: {arm: found[name] for arm, found in numbers.items() if name in found}
        for name in shown_metrics(config, numbers)
    }
    pictures.write_points(path, config.title, panels, rules.interval)
