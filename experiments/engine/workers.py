"""One call over many jobs, in processes of their own: fresh ones, since a process that runs JAX must not be forked."""

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Sequence
from multiprocessing import connection, resource_tracker
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

STREAMS = ("stdout", "stderr")


class Ended(NamedTuple):
    """What became of a job."""

    job: str
    value: Any  # what the call gave; None where the worker died
    died: str  # how the worker died; empty where it did not
    seconds: float
    stdout: str  # all that was written meanwhile
    stderr: str


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def spread(
    call: Callable[[str], Any], jobs: Sequence[str], workers: int, arguments: Sequence[str] = ()
) -> Generator[Ended, None, None]:
    """Calls a picklable function with every job, begun in their order, and gives each as it ends.

    A worker that dies costs its job alone: another takes its place. To be closed, which ends all workers at once.

    Args:
      call: takes a job and gives something picklable.
      jobs: in the order in which they are begun.
      workers: the most processes at a time, >= 1.
      arguments: the command line whose flags workers parse too, the program's name first.
    """
    waiting = list(jobs)
    crew: list[_Worker] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            while waiting or crew:
                while waiting and len(crew) < workers:
                    crew.append(_Worker(call, Path(tempfile.mkdtemp(dir=folder)), arguments))
                    crew[-1].begin(waiting.pop(0))
                heard = connection.wait([worker.connection for worker in crew])
                for worker in [worker for worker in crew if worker.connection in heard]:
                    ended = worker.end()
                    if waiting and not ended.died:
                        worker.begin(waiting.pop(0))
                    else:
                        crew.remove(worker)
                        worker.kill()
                    yield ended
        finally:
            for worker in crew:
                worker.kill()


class _Worker:
    """A process that does one job after the other, seen from the process that started it."""

    def __init__(self, call: Callable[[str], Any], folder: Path, arguments: Sequence[str]):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._files = [folder / name for name in STREAMS]
        given = (theirs, call, self._files, list(arguments))
        self._process = context.Process(target=_serve, args=given, daemon=True)
        # Ctrl-C in a terminal goes to all processes: this one answers it, and ends the others.
        resource_tracker.ensure_running()  # which would let the signal through again
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()

    def begin(self, job: str) -> None:
        self._job, self._began = job, time.perf_counter()
        with contextlib.suppress(OSError):  # of a worker that died at its start: `end` says so
            self.connection.send(job)

    def end(self) -> Ended:
        """The job that has ended, or the worker with it."""
        value, died = None, ""
        try:
            value = self.connection.recv()
        except (EOFError, OSError):
            self._process.join()
            died = _death(self._process.exitcode or 0)
        said = [path.read_text(errors="replace") if path.exists() else "" for path in self._files]
        for path in self._files:
            if path.exists():
                os.truncate(path, 0)
        return Ended(self._job, value, died, time.perf_counter() - self._began, *said)

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self.connection.close()


def _death(code: int) -> str:
    if code >= 0:
        return f"its worker process ended with exit code {code}"
    guess = ", as when memory runs out" if -code == signal.SIGKILL else ""
    known = -code in {number.value for number in signal.Signals}
    return f"its worker process was killed by {signal.Signals(-code).name if known else f'signal {-code}'}{guess}"


def _serve(
    theirs: connection.Connection, call: Callable[[str], Any], files: Sequence[Path], arguments: Sequence[str]
) -> None:
    """What a worker does: a job, its value, and the next, until it is killed."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for descriptor, path in enumerate(files, start=1):
        # Not only Python's streams: libraries in C++ write too. Appending, as the file is emptied between jobs.
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    if arguments:
        flags.FLAGS(list(arguments), known_only=True)
    while True:
        value = call(theirs.recv())
        sys.stdout.flush()
        sys.stderr.flush()
        theirs.send(value)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
