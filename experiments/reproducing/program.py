"""One paper from config to verdict."""

import sys
from pathlib import Path
from typing import Any

import ml_collections
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column

from experiments import runs
from experiments.engine.logs import CONSOLE
from experiments.reproducing import catalogue, rules, running, showing
from experiments.reproducing.results import FILE, Results

TABLE, FIGURE = "table.md", "figure.png"


def run(name: str, config: ml_collections.ConfigDict, workdir: Path, *, smoke: bool) -> dict[str, Any]:
    """The same as `measure`, of a config that is checked first, in a folder that is this process's alone."""
    catalogue.check(config)
    runs.use_compilation_cache(config)
    with runs.locked(workdir, wait=False):
        return measure(name, config, workdir, smoke=smoke)


def measure(name: str, config: ml_collections.ConfigDict, workdir: Path, *, smoke: bool) -> dict[str, Any]:
    """Runs what is missing, writes results, table and picture, prints them, and gives the tree of results."""
    seeds = 1 if smoke else config.seeds
    results = Results(workdir, name, config, smoke=smoke)
    arms = catalogue.smoke_arms(config) if smoke else list(catalogue.arms(config))
    with Bar(name, arms, seeds) as bar:
        try:
            running.run(config, results, arms, seeds, smoke=smoke, advance=bar.advance)
        except KeyboardInterrupt:
            bar.say(f"stopped; what is done is in {workdir / FILE}, and the same command goes on from there")
            raise
    numbers = results.numbers(arms, seeds)
    outcomes = None if smoke else rules.judge(config, numbers)
    if outcomes is not None:
        checks, side = ([outcome._asdict() for outcome in found] for found in outcomes)
        results.tell(verdict=rules.verdict(outcomes[0]), checks=checks, side=side)
    (workdir / TABLE).write_text(showing.to_markdown(config, numbers, outcomes, results.tree))
    showing.to_picture(workdir / FIGURE, config, numbers)
    showing.to_terminal(config, numbers, outcomes, seeds)
    print(f"results {workdir / FILE}, {workdir / TABLE}; picture {workdir / FIGURE}", flush=True)
    return results.tree


class Bar:
    """A progress bar over arms times seeds on a terminal, a line for each arm elsewhere."""

    def __init__(self, name: str, arms: list[str], seeds: int):
        self.name, self.arms, self.seeds = name, arms, seeds
        self._progress: Progress | None = None
        if sys.stdout.isatty():
            # Names of arms are long: they and the bar share what the numbers leave, however narrow the terminal is.
            self._progress = Progress(
                TextColumn("{task.description}", table_column=Column(ratio=2, no_wrap=True, overflow="ellipsis")),
                BarColumn(bar_width=None, table_column=Column(ratio=1)),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                console=CONSOLE,
                transient=True,
                expand=True,
            )
            self._task = self._progress.add_task(name, total=len(arms) * seeds)

    def __enter__(self) -> "Bar":
        if self._progress:
            self._progress.start()
        return self

    def __exit__(self, *raised: object) -> None:
        if self._progress:
            self._progress.stop()

    def advance(self, arm: str, done: int, seeds: int) -> None:
        """Some seeds of an arm are done; the arms before it are finished."""
        place = self.arms.index(arm)
        if self._progress:
            self._progress.update(self._task, completed=place * seeds + done, description=f"{self.name}: {arm}")
        elif done == seeds:
            print(f"{self.name}  arm {place + 1}/{len(self.arms)}  {arm}", flush=True)

    def say(self, text: str) -> None:
        CONSOLE.print(text, markup=False, highlight=False, soft_wrap=True)
