"""Papers one after the other, or smoke runs over worker processes; one that fails does not keep the others from running."""

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from experiments.engine import stopping, workers
from experiments.engine.errors import UserError, first_line

RAN, REFUSED, FAILED = "ran", "refused", "failed"


class Outcome(NamedTuple):
    """What became of a paper: one of the words above, and that in more words."""

    kind: str
    said: str


def attempt(name: str, workdir: Path, *, smoke: bool) -> Outcome:
    """Runs a paper as its config stands, in its folder of `workdir`."""
    from experiments.reproducing import catalogue, program

    try:
        tree = program.run(name, catalogue.load(name), workdir / name, smoke=smoke)
        return Outcome(RAN, tree.get("verdict", "ran"))
    except UserError as error:
        return Outcome(REFUSED, f"refused: {error}")
    except stopping.Stopped:
        raise
    except Exception as error:
        traceback.print_exc()
        return Outcome(FAILED, f"failed: {type(error).__name__}: {first_line(error)}")


def in_turn(names: Sequence[str], workdir: Path, *, smoke: bool) -> dict[str, Outcome]:
    """Outcomes of papers that run one after the other, in this process."""
    found = {}
    for name in names:
        began = time.perf_counter()
        outcome = attempt(name, workdir, smoke=smoke)
        found[name] = _timed(outcome, time.perf_counter() - began)
    return found


def at_once(names: Sequence[str], workdir: Path, number: int, arguments: Sequence[str]) -> dict[str, Outcome]:
    """Outcomes of smoke runs that `number` processes share; what each prints is shown whole when it ends.

    The processes parse the flags of `arguments`, a command line. A signal ends them at once, and raises `Stopped`.
    """
    from experiments.engine.logs import CONSOLE

    # What they print goes into files first, which have no width of their own.
    os.environ.setdefault("COLUMNS", str(CONSOLE.width))
    call = partial(attempt, workdir=workdir, smoke=True)
    stopped = f"stopped; what is done is in {workdir}, and the same command goes on from there"
    found = {}
    order = longest_first(names)
    with stopping.raised(stopped), contextlib.closing(workers.spread(call, order, number, arguments)) as jobs:
        for job in jobs:
            print(job.stdout, end="", flush=True)
            print(job.stderr, end="", file=sys.stderr, flush=True)
            outcome = job.value or Outcome(FAILED, f"failed: {job.died}")
            found[job.job] = _timed(outcome, job.seconds)
    return {name: found[name] for name in names}


def longest_first(names: Sequence[str]) -> list[str]:
    """Papers by how long their kept full runs took, which smoke runs follow roughly, so that none is left over at the end.

    Those with none come first.
    """
    from experiments.reproducing import listing

    kept = {name: listing.kept(name) for name in names}
    return sorted(names, key=lambda name: -(tree["seconds"] if (tree := kept[name]) else float("inf")))


def _timed(outcome: Outcome, seconds: float) -> Outcome:
    return outcome._replace(said=f"{outcome.said} ({seconds:.0f} s)")
