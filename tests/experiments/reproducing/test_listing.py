"""What the catalogue shows is what configs and kept results say, and the repository's own is up to date."""

import json

import pytest

from configs.papers.common import check
from experiments.engine.errors import UserError
from experiments.reproducing import catalogue, listing, program, results
from tests.experiments.reproducing import papers
from tests.experiments.reproducing.papers import BASELINE, METHOD, Calls


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A repository with one paper; gives its config and the folder of its finished results."""
    config = papers.config(cache_dir=str(tmp_path / "cache"))
    study = papers.study(True, Calls())
    monkeypatch.setattr(catalogue, "study", lambda config: study)
    monkeypatch.setattr(catalogue, "source_fingerprint", lambda module: "source")
    monkeypatch.setattr(catalogue, "names", lambda: ["sums"])
    monkeypatch.setattr(catalogue, "load", lambda name: config)
    monkeypatch.setattr(listing, "KEPT", tmp_path / "docs" / "results")
    monkeypatch.setattr(listing, "README", tmp_path / "README.md")
    monkeypatch.setattr(listing, "PAPERS", tmp_path / "docs" / "papers.md")
    listing.README.write_text(f"before\n{listing.BEGIN}\nold\n{listing.END}\nafter\n")
    (tmp_path / "run").mkdir()
    program.measure("sums", config, tmp_path / "run", smoke=False)
    return config, tmp_path / "run"


def renew():
    listing.README.write_text(listing.readme(listing.README.read_text()))
    listing.PAPERS.write_text(listing.papers())


def test_kept_results_are_small_and_judged_again(house):
    config, run = house
    assert listing.keep(run / results.FILE) == "sums"
    kept = listing.kept("sums")
    assert list(kept["arms"]) == [BASELINE, METHOD]
    assert len(kept["arms"][METHOD]["score"]) == config.seeds
    assert "config" not in kept
    assert "verdict" not in kept
    assert listing.verdict(config, kept) == "reproduced"
    config.checks = (check("more", "score", METHOD, BASELINE, at_least=99.0),)
    assert listing.verdict(config, kept) == "not reproduced"


def test_readme_and_page_show_what_was_measured(house):
    _, run = house
    assert "not measured yet" in listing.readme_table()
    listing.keep(run / results.FILE)
    renew()
    text = listing.README.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "\nold\n" not in text
    (row,) = [line for line in text.splitlines() if line.startswith("| [On Sums]")]
    assert "`robust.cauchy`, `dropout.dropout`" in row
    assert "| [reproduced](docs/papers.md#sums) | the method is larger: 4 of 4 seeds" in row
    page = listing.PAPERS.read_text()
    assert '<a id="sums"></a>' in page
    assert "## On Sums" in page
    assert "1000 points more." in page


def test_nothing_is_stale_when_renewed(house):
    _, run = house
    listing.keep(run / results.FILE)
    renew()
    assert listing.stale() == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda config: config.settings.update({"gain": 1.0}), ("sums.json: made by config", "README.md", "papers.md")),
        (lambda config: config.update({"seeds": 5}), ("sums.json: it has not 5 seeds",)),
        (lambda config: config.update({"claim": "Other."}), ("README.md: the catalogue", "docs/papers.md: it is not")),
        (lambda config: config.update({"side": ()}), ("docs/papers.md: it is not",)),
    ],
)
def test_what_is_stale_is_named(house, change, words):
    config, run = house
    listing.keep(run / results.FILE)
    renew()
    change(config)
    found = "\n".join(listing.stale())
    assert found
    for word in words[:1]:
        assert word in found


def test_results_of_a_paper_that_is_gone_are_named(house):
    _, run = house
    listing.keep(run / results.FILE)
    (listing.KEPT / "sums.json").rename(listing.KEPT / "differences.json")
    assert "differences.json: there is no such paper" in listing.stale()


def test_unfinished_and_foreign_results_are_not_kept(house):
    config, run = house
    tree = json.loads((run / results.FILE).read_text())
    del tree["arms"][METHOD]["3"]
    (run / results.FILE).write_text(json.dumps(tree))
    with pytest.raises(UserError, match=r"lacks seeds 3 of arm 'method, rate 0.5': run it to its end"):
        listing.keep(run / results.FILE)
    config.settings.shared.offset = 7.0
    with pytest.raises(UserError, match=r"is of config \w+, and configs/papers/sums.py is \w+: run it again"):
        listing.keep(run / results.FILE)
    assert not listing.KEPT.exists()


def test_a_readme_without_a_place_for_the_catalogue_is_refused():
    with pytest.raises(UserError, match="has no place for the catalogue"):
        listing.readme("text")


def test_this_repository_is_up_to_date():
    assert listing.stale() == []
