"""Several papers: one that fails or is refused does not keep the others from running, in one process or in two."""

import json
import signal

import pytest

from experiments.engine.errors import UserError
from experiments.engine.stopping import Stopped
from experiments.reproducing import catalogue, listing, program, several
from experiments.reproducing.results import FILE
from tests.experiments.helpers import program as called

QUICK = ("causal_dropout", "multi_sample_dropout", "sparse_low_rank")


def test_papers_in_turn(tmp_path, monkeypatch, capsys):
    trees = iter(
        ({"verdict": "reproduced"}, UserError("choose another --workdir"), ValueError("a line\nanother"), {"arms": {}})
    )

    def run(name, config, workdir, *, smoke):
        assert (config.title, workdir, smoke) == (catalogue.load(name).title, tmp_path / name, False)
        found = next(trees)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(program, "run", run)
    names = catalogue.names()[:4]
    found = several.in_turn(names, tmp_path, smoke=False)
    assert list(found) == names
    assert [outcome.kind for outcome in found.values()] == [several.RAN, several.REFUSED, several.FAILED, several.RAN]
    assert [outcome.said for outcome in found.values()] == [
        "reproduced (0 s)",
        "refused: choose another --workdir (0 s)",
        "failed: ValueError: a line (0 s)",
        "ran (0 s)",
    ]
    assert "Traceback" in capsys.readouterr().err


def test_long_papers_begin_first_and_unknown_ones_before_them(monkeypatch):
    seconds = {"a": 3, "b": None, "c": 9, "d": 3}
    monkeypatch.setattr(listing, "kept", lambda name: seconds[name] and {"seconds": seconds[name]})
    assert several.longest_first(list(seconds)) == ["b", "c", "a", "d"]


@pytest.mark.parametrize("raised", [Stopped("stopped; the same command goes on", signal.SIGINT), KeyboardInterrupt()])
def test_a_stopped_paper_stops_those_after_it(tmp_path, monkeypatch, raised):
    calls = []

    def run(name, *given, **named):
        calls.append(name)
        raise raised

    monkeypatch.setattr(program, "run", run)
    with pytest.raises(type(raised)):
        several.in_turn(catalogue.names(), tmp_path, smoke=True)
    assert calls == catalogue.names()[:1]


def test_two_workers_share_the_smoke_runs_of_a_paper_that_fails_and_two_that_run(tmp_path):
    """The one that fails finds results that it can't read, though they are of its config."""
    failing = QUICK[0]
    (tmp_path / failing).mkdir()
    tree = {"paper": failing, "hash": catalogue.fingerprint(catalogue.load(failing), smoke=True), "arms": ["none"]}
    (tmp_path / failing / FILE).write_text(json.dumps(tree))
    given = (f"--only={','.join(QUICK)}", "--all", "--smoke", "--workers=2", "--workdir=.")
    result = called("experiments.reproduce", *given, folder=tmp_path, COLUMNS="100", JAX_PLATFORMS="cpu")
    assert result.returncode == 1, result.stderr
    assert "AttributeError" in result.stderr
    told = [line.split()[1:4:2] for line in result.stdout.splitlines() if line.startswith("│ ") and " s) " in line]
    assert told == [[failing, "failed:"], [QUICK[1], "ran"], [QUICK[2], "ran"]]
    for name in QUICK[1:]:
        config = catalogue.load(name)
        arms = catalogue.smoke_arms(config)
        lines = result.stdout.splitlines()
        first = lines.index(f"{name}  arm 1/{len(arms)}  {arms[0]}")
        assert lines[first : first + len(arms)] == [
            f"{name}  arm {number}/{len(arms)}  {arm}" for number, arm in enumerate(arms, start=1)
        ]
        assert json.loads((tmp_path / name / FILE).read_text())["arms"].keys() == set(arms)
