"""Jobs over processes: none is lost, what they print stays whole, and a worker's death costs one job."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from experiments.engine import workers

ROOT = pathlib.Path(__file__).resolve().parents[3]  # not from the helpers, as workers would import all of JAX


def work(job):
    """Of the test's processes: a word that says what to do."""
    for number in range(3):
        print(job, number, flush=True)
        time.sleep(0.01)
    os.system(f"echo {job} from another program >&2")  # past Python's streams
    if job == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if job == "ended":
        os._exit(3)
    if job == "raised":
        raise OSError("no such thing")
    return job, os.getpid()


def said(job):
    return "".join(f"{job} {number}\n" for number in range(3)), f"{job} from another program\n"


def test_every_job_is_done_by_one_of_two_workers_and_says_its_own_words():
    jobs = ["a", "b", "c", "d", "e"]
    found = {ended.job: ended for ended in workers.spread(work, jobs, 2)}
    assert set(found) == set(jobs)
    for job, ended in found.items():
        assert (ended.value[0], ended.died) == (job, "")
        assert (ended.stdout, ended.stderr) == said(job)
        assert ended.seconds > 0
    pids = {ended.value[1] for ended in found.values()}
    assert len(pids) == 2
    assert os.getpid() not in pids


def test_a_worker_that_dies_is_told_and_replaced():
    found = {ended.job: ended for ended in workers.spread(work, ["killed", "ended", "raised", "a"], 1)}
    assert found["killed"].died == "its worker process was killed by SIGKILL, as when memory runs out"
    assert found["ended"].died == "its worker process ended with exit code 3"
    assert found["raised"].died == "its worker process ended with exit code 1"
    assert "OSError: no such thing" in found["raised"].stderr
    for job in ("killed", "ended", "raised"):
        assert found[job].value is None
        assert found[job].stdout == said(job)[0]
    assert found["a"].value[0] == "a"


def begun(job):
    """The process of a job, which writes that into the file that the job is named by, and never ends."""
    with open(job + ".partial", "w") as file:
        file.write(str(os.getpid()))
    os.replace(job + ".partial", job)
    time.sleep(600)


def alive(path):
    """The process that a file names."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(path.read_text()), 0)
        return True
    return False


def wait_for(condition):
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("waited a minute in vain")


STOPPED = """
import contextlib, sys
from experiments.engine import command_line, stopping, workers
from tests.experiments.engine.test_workers import begun

def main():
    with stopping.raised("the same command goes on"), contextlib.closing(workers.spread(begun, sys.argv[1:], 2)) as jobs:
        list(jobs)

if __name__ == "__main__":
    command_line.run(main, positional=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_all_workers_at_once(tmp_path, number):
    """SIGINT as a terminal sends it, to all processes of the program; a kill, which nothing can answer, ends them too."""
    jobs = [tmp_path / "a", tmp_path / "b"]
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(STOPPED))
    started = subprocess.Popen(
        [sys.executable, str(script), *map(str, jobs)], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    wait_for(lambda: all(job.exists() for job in jobs))
    if number == signal.SIGINT:
        os.killpg(started.pid, number)
    else:
        started.send_signal(number)
    out, err = started.communicate(timeout=60)
    wait_for(lambda: not any(map(alive, jobs)))
    assert out == ""
    if number != signal.SIGKILL:
        assert started.returncode == 128 + number
        assert err == "the same command goes on\n"


def test_cores_are_those_that_the_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 5, 7}, raising=False)
    assert workers.cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert workers.cores() == 1
