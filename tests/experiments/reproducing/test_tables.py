"""Tables that papers share: the rows of all, once where they agree; what is missing or stale is said."""

import pytest

from configs.papers.common import entry
from experiments.engine.errors import UserError
from experiments.reproducing import catalogue, listing, program, results, tables
from tests.experiments.reproducing import papers
from tests.experiments.reproducing.papers import BASELINE, METHOD, Calls

ENTRIES = (
    entry("sums-2", "nothing", "plain", BASELINE, metric="score"),
    entry("sums-2", "three", "plain", METHOD, metric="score"),
    entry("sums-2", "three", "size", METHOD, metric="size"),
)


@pytest.fixture
def house(tmp_path, monkeypatch):
    """Two papers with one table; gives their configs, and the folder of the results of the first."""
    configs = {
        "sums": papers.config(cache_dir=str(tmp_path / "cache"), entries=ENTRIES),
        "other": papers.config(cache_dir=str(tmp_path / "cache"), entries=ENTRIES[:1]),
        "apart": papers.config(cache_dir=str(tmp_path / "cache")),
    }
    study = papers.study(True, Calls())
    monkeypatch.setattr(catalogue, "study", lambda config: study)
    monkeypatch.setattr(catalogue, "source_fingerprint", lambda module: "source")
    monkeypatch.setattr(catalogue, "names", lambda: sorted(configs))
    monkeypatch.setattr(catalogue, "load", configs.__getitem__)
    monkeypatch.setattr(listing, "KEPT", tmp_path / "docs" / "results")
    (tmp_path / "runs" / "sums").mkdir(parents=True)
    program.measure("sums", configs["sums"], tmp_path / "runs" / "sums", smoke=False)
    return configs, tmp_path / "runs"


def test_a_table_of_one_paper_is_printed_written_and_drawn(house, capsys):
    _, runs = house
    tables.show(["sums", "apart"], runs)
    said = capsys.readouterr().out
    assert "sums-2: mean over seeds" in said
    lines = (runs / "sums_2.md").read_text().splitlines()
    assert "| | plain | size |".replace("| |", "|  |") in lines
    # The larger mean of the first column stands first; 3 is added to every seed's score, and sizes are all 3.
    (first, second) = [line for line in lines if line.startswith(("| three", "| nothing"))]
    assert first.startswith("| three |")
    assert first.endswith("| 3 ± 0 |")
    assert second.endswith("|  |")
    assert (runs / "sums_2.png").read_bytes().startswith(b"\x89PNG")


def test_kept_results_stand_in_for_missing_ones(house):
    _, runs = house
    measured = tables.numbers("sums", runs)
    listing.keep(runs / "sums" / results.FILE)
    assert tables.numbers("sums", runs / "nowhere") == measured
    assert len(measured[METHOD]["score"]) == 4


def test_rows_that_agree_stand_once_and_others_under_their_paper():
    numbers = {BASELINE: {"score": [1.0, 2.0]}, METHOD: {"score": [5.0], "size": [3.0]}}
    changed = {BASELINE: {"score": [1.0, 2.5]}}
    every = [("a", each, numbers) for each in ENTRIES] + [("b", ENTRIES[0], numbers), ("c", ENTRIES[0], changed)]
    assert tables.gather(every) == {
        "nothing": {"plain": [1.0, 2.0]},
        "three": {"plain": [5.0], "size": [3.0]},
        "nothing (c)": {"plain": [1.0, 2.5]},
    }


def test_papers_without_results_are_named_after_what_there_is(house, capsys):
    _, runs = house
    with pytest.raises(
        UserError, match=r"no finished results of other in .*reproduce --config=configs/papers/other.py"
    ):
        tables.show(["other", "sums"], runs)
    assert "sums-2" in capsys.readouterr().out


def test_results_of_an_older_config_or_unfinished_ones_do_not_count(house):
    configs, runs = house
    configs["sums"].seeds = 5
    assert tables.numbers("sums", runs) is None
    configs["sums"].seeds = 4
    assert tables.numbers("sums", runs) is not None
    configs["sums"].settings.gain = 1.0
    assert tables.numbers("sums", runs) is None


def test_papers_without_a_table_are_refused(house):
    _, runs = house
    with pytest.raises(UserError, match="none of the papers apart has entries in a table"):
        tables.show(["apart"], runs)


def test_an_entry_of_an_arm_that_is_not_there_is_refused(house):
    configs, _ = house
    configs["sums"].entries = (entry("sums-2", "nothing", "plain", "nobody"),)
    with pytest.raises(UserError, match=r"unknown arm in config\.entries 'nobody'"):
        catalogue.check(configs["sums"])
