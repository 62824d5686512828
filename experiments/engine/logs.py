"""What a run tells: `metrics.jsonl`, TensorBoard files, and a progress bar or plain lines."""

import contextlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

# One for the whole program: bars within bars are drawn together.
CONSOLE = Console()


class Records:
    """`metrics.jsonl`, one object a line, and the same numbers for TensorBoard."""

    def __init__(self, workdir: Path, first_step: int):
        """Keeps the lines up to `first_step`; later ones come again when the run goes on from there."""
        self.path = workdir / "metrics.jsonl"
        self.lines = [record for record in read(self.path) if record["step"] <= first_step]
        partial = self.path.with_name("metrics.jsonl.partial")
        partial.write_text("".join(json.dumps(record) + "\n" for record in self.lines))
        os.replace(partial, self.path)
        self._file = self.path.open("a")
        self._folder, self._purge = workdir / "tensorboard", first_step + 1
        self._board: Any = None

    def write(self, record: Mapping[str, float]) -> None:
        self.lines.append(dict(record))
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        if self._board is None:
            self._board = _summary_writer()(str(self._folder), purge_step=self._purge)
        for name, value in record.items():
            if name != "step":
                self._board.add_scalar(name, value, int(record["step"]))

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def _summary_writer() -> Any:
    """TensorBoard's writer, imported here so that the first step does not wait for it."""
    lacking = "torch" not in sys.modules
    if lacking:
        sys.modules["torch"] = None  # type: ignore[assignment]  # it would import PyTorch for seconds and not use it
    try:
        from tensorboardX import SummaryWriter
    finally:
        if lacking:
            del sys.modules["torch"]
    return SummaryWriter


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl`; a line that is none, such as one cut short by a kill, is left out."""
    records: list[dict[str, Any]] = []
    if path.exists():
        for line in path.read_text(errors="replace").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                record = json.loads(line)
                if isinstance(record, dict) and "step" in record:
                    records.append(record)
    return records


class Display:
    """A progress bar on a terminal; a line for each log interval elsewhere."""

    def __init__(self, steps: int, first_step: int, label: str):
        self.steps, self.label = steps, label
        self.console = CONSOLE
        self._progress: Progress | None = None
        if sys.stdout.isatty():
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}  {task.fields[loss]}"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self._bar = self._progress.add_task(label, total=steps, completed=first_step, rate="", loss="compiling")
            self._progress.start()

    def advance(self, step: int, loss: float, rate: float) -> None:
        if self._progress is not None:
            self._progress.update(self._bar, completed=step, rate=f"{rate:.1f} steps/s", loss=f"loss {loss:.4g}")

    def line(self, step: int, loss: float, rate: float) -> None:
        """The plain line of a log interval."""
        if self._progress is None:
            left = (self.steps - step) / rate if rate > 0 else float("inf")
            print(
                f"{self.label}  step {step}/{self.steps}  loss {loss:.4g}  {rate:.1f} steps/s  {_clock(left)} left",
                flush=True,
            )

    def say(self, text: str) -> None:
        """A summary line, above the bar where there is one."""
        if self._progress is not None:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, flush=True)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()


def _clock(seconds: float) -> str:
    if seconds == float("inf"):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
