"""All that a run tells, by one process alone: records, the display, pictures."""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from experiments.engine import hosts, pictures
from experiments.engine.logs import Display, Records
from experiments.engine.task import Shown


def newest_samples(workdir: Path) -> Path | None:
    """The picture or text of the latest evaluation; others that somebody has put beside it do not count."""
    paths = [path for ending in ("png", "txt") for path in workdir.glob(f"samples_*.{ending}")]
    steps = {path: path.stem.rpartition("_")[2] for path in paths}
    return max(
        (path for path, step in steps.items() if step.isdigit()), key=lambda path: int(steps[path]), default=None
    )


class Report:
    """Says nothing in the processes other than the first."""

    def __init__(self, workdir: Path, steps: int, first_step: int, label: str):
        self.workdir, self.label = workdir, label
        self._records = Records(workdir, first_step) if hosts.first() else None
        self._display = Display(steps, first_step, label) if hosts.first() else None
        if first_step:
            self.say(f"resuming {workdir} at step {first_step}")

    def __enter__(self) -> "Report":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._display and self._records:
            self._display.close()
            self._records.close()

    def say(self, text: str) -> None:
        if self._display:
            self._display.say(text)

    def advance(self, step: int, loss: float, rate: float) -> None:
        """Moves the progress bar."""
        if self._display:
            self._display.advance(step, loss, rate)

    def line(self, step: int, loss: float, rate: float) -> None:
        """The line of a log interval, where there is no bar."""
        if self._display:
            self._display.line(step, loss, rate)

    def evaluated(self, step: int, measured: Mapping[str, float], shown: Mapping[str, Shown]) -> None:
        """The summary line of an evaluation, and its pictures or texts."""
        if self._display:
            for name, drawn in shown.items():
                pictures.write(self.workdir / f"{name}_{step}{pictures.ending(drawn)}", drawn)
            told = "  ".join(f"{name} {value:.4g}" for name, value in measured.items())
            self._display.say(f"{self.label}  step {step}  {told}")

    def record(self, record: Mapping[str, float]) -> None:
        """A line of metrics.jsonl."""
        if self._records:
            self._records.write(record)

    def curves(self) -> None:
        """The picture of all records so far."""
        if self._records:
            pictures.write_curves(self.workdir / "curves.png", self._records.lines)
