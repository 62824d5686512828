"""What a study shows while it runs, on terminals of any width and elsewhere, and that no kill loses what is done."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
from rich.console import Console

from experiments.engine import compiling
from experiments.reproducing import catalogue, program
from experiments.reproducing.results import FILE, Results
from tests.experiments.helpers import ROOT
from tests.experiments.reproducing import papers
from tests.experiments.reproducing.papers import BASELINE, METHOD, Calls

LONG = "an arm whose name is far longer than a terminal is wide, " * 3


@pytest.mark.parametrize("width", [30, 60, 200])
def test_count_and_time_are_seen_on_any_terminal(monkeypatch, width):
    console = Console(force_terminal=True, width=width)
    monkeypatch.setattr(program, "CONSOLE", console)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    bar = program.Bar("sums", [BASELINE, LONG], 4)
    bar.advance(LONG, 1, 4)
    with console.capture() as capture:
        console.print(bar._progress.get_renderable())
    lines = capture.get().splitlines()
    assert len(lines) == 1  # one line, which redrawing replaces
    for words in ("sums: a", "5/8", ":"):
        assert words in lines[0]


@pytest.mark.parametrize("vectorised", [True, False])
def test_a_finished_study_is_shown_again_each_arm_in_one_line(tmp_path, monkeypatch, capsys, vectorised):
    """As after a kill between the last seed and the verdict: nothing is run, and nothing that is known gets lost."""
    config = papers.config(cache_dir=str(tmp_path / "cache"))
    monkeypatch.setattr(catalogue, "source_fingerprint", lambda module: "source")
    monkeypatch.setattr(catalogue, "study", lambda config: papers.study(vectorised, Calls()))
    trees = []
    for _ in range(2):
        trees.append(program.measure("sums", config, tmp_path, smoke=False))
        said = capsys.readouterr().out.splitlines()
        lines = [line for line in said if line.startswith("sums  arm")]
        assert lines == [f"sums  arm 1/2  {BASELINE}", f"sums  arm 2/2  {METHOD}"]
    assert trees[1] == trees[0] == json.loads((tmp_path / FILE).read_text())
    assert {"device", "date", "versions", "verdict"} <= trees[1].keys()


# A study that notes its calls in a file and is killed at a moment of the third one: while it runs, while its result is
# written, or before that takes the old one's place.
KILLED = """
import os, signal, sys
from pathlib import Path
from experiments.reproducing import catalogue, program, results
from tests.experiments.reproducing import papers

workdir, moment = Path(sys.argv[1]), sys.argv[2]
config, study = papers.config(cache_dir=str(workdir / "cache")), papers.study(False, papers.Calls())
plain, replace, write_text, calls = study.run, os.replace, Path.write_text, []

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def run(config, key):
    calls.append(key)
    with open(workdir / "calls", "a") as file:
        file.write("call\\n")
    if len(calls) == 3 and moment == "run":
        die()
    return plain(config, key)

def half(path, text):
    if len(calls) == 3 and moment == "write":
        write_text(path, text[: len(text) // 2])
        die()
    return write_text(path, text)

def replaced(*paths):
    if len(calls) == 3 and moment == "replace":
        die()
    replace(*paths)

study.run, os.replace, Path.write_text = run, replaced, half
catalogue.study, catalogue.source_fingerprint = lambda config: study, lambda module: "source"
program.measure("sums", config, workdir, smoke=False)
"""


def test_a_kill_at_any_moment_loses_no_more_than_the_seed_at_hand(tmp_path):
    """Eight seeds of two arms, in four lives of which three end by SIGKILL: two seeds each are kept, a third is lost."""
    for life, moment in enumerate(("run", "write", "replace", "never"), start=1):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path), moment],
            cwd=ROOT, env={**os.environ, "XLA_FLAGS": compiling.quick_flags()}, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == (0 if moment == "never" else -signal.SIGKILL), done.stderr
        arms = json.loads((tmp_path / FILE).read_text())["arms"]
        assert sum(map(len, arms.values())) == 2 * life
    assert (tmp_path / "calls").read_text().count("call") == 8 + 3
    whole = Results(tmp_path, "sums", papers.config(cache_dir=str(tmp_path / "cache")), smoke=False)
    numbers = whole.numbers([BASELINE, METHOD], 4)
    assert [b - a for a, b in zip(numbers[BASELINE]["score"], numbers[METHOD]["score"], strict=True)] == pytest.approx(
        [3.0] * 4, rel=1e-5
    )
    assert "verdict: reproduced" in done.stdout
