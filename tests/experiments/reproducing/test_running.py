"""Arms times seeds: the same numbers vmapped and one by one, nothing twice, nothing lost."""

import json

import jax
import numpy as np
import pytest

from experiments.engine.errors import UserError
from experiments.reproducing import catalogue, program, running
from experiments.reproducing.results import FILE, Results, read
from tests.experiments.reproducing import papers
from tests.experiments.reproducing.papers import BASELINE, METHOD, Calls

SEEDS = 4


@pytest.fixture
def paper(tmp_path, monkeypatch):
    """config, and `use(study)`, which makes it the paper's."""
    config = papers.config(cache_dir=str(tmp_path / "cache"))
    monkeypatch.setattr(catalogue, "source_fingerprint", lambda module: "source")

    def use(study):
        monkeypatch.setattr(catalogue, "study", lambda config: study)

    return config, use


def run(config, workdir, *, seeds=SEEDS, smoke=False):
    workdir.mkdir(exist_ok=True)
    results = Results(workdir, "sums", config, smoke=smoke)
    arms = list(catalogue.arms(config))
    running.run(config, results, arms, seeds, smoke=smoke, advance=lambda *given: None)
    return results.numbers(arms, seeds)


def expected(offset=0.0):
    return np.array([jax.random.uniform(jax.random.key(seed)) for seed in range(SEEDS)]) + offset


@pytest.mark.parametrize("vectorised", [True, False])
def test_every_arm_gets_the_same_keys(paper, tmp_path, vectorised):
    config, use = paper
    calls = Calls()
    use(papers.study(vectorised, calls))
    numbers = run(config, tmp_path / "run")
    np.testing.assert_allclose(numbers[BASELINE]["score"], expected(), rtol=1e-6)
    np.testing.assert_allclose(numbers[METHOD]["score"], expected(3.0), rtol=1e-6)
    assert numbers[METHOD]["size"] == [3.0] * SEEDS
    # Traced once for all seeds, or called once for each.
    assert len(calls) == 2 * (1 if vectorised else SEEDS)


@pytest.mark.parametrize("vectorised", [True, False])
def test_what_arms_share_is_computed_once_and_kept(paper, tmp_path, vectorised):
    config, use = paper
    calls = Calls()
    use(papers.study(vectorised, calls, prepares=True))
    numbers = run(config, tmp_path / "run")
    np.testing.assert_allclose(numbers[METHOD]["score"], expected(4.0), rtol=1e-6)
    once = 1 if vectorised else SEEDS
    assert calls.count(("prepare", 1.0)) == once
    assert run(config, tmp_path / "again") == numbers
    assert calls.count(("prepare", 1.0)) == once
    files = sorted((tmp_path / "cache" / "papers").iterdir())
    assert len(files) == SEEDS
    files[0].write_bytes(b"PK damaged")
    assert run(config, tmp_path / "after damage") == numbers
    assert calls.count(("prepare", 1.0)) == once + 1


def test_arms_with_other_shared_settings_share_nothing(paper, tmp_path):
    config, use = paper
    calls = Calls()
    use(papers.study(True, calls, prepares=True))
    run(config, tmp_path / "run")
    config.settings.shared.offset = 5.0
    numbers = run(config, tmp_path / "other")
    np.testing.assert_allclose(numbers[BASELINE]["score"], expected(5.0), rtol=1e-6)
    assert [call for call in calls if call[0] == "prepare"] == [("prepare", 1.0), ("prepare", 5.0)]


def test_an_interrupted_study_goes_on_where_it_stopped(paper, tmp_path):
    config, use = paper
    whole = Calls()
    use(papers.study(False, whole))
    numbers = run(config, tmp_path / "whole")
    first, rest = Calls(), Calls()
    use(papers.study(False, first, fails_at=6))
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "cut")
    use(papers.study(False, rest))
    assert run(config, tmp_path / "cut") == numbers
    assert len(rest) == len(whole) - 5


def test_more_seeds_are_added_to_those_there(paper, tmp_path):
    config, use = paper
    calls = Calls()
    use(papers.study(False, calls))
    few = run(config, tmp_path / "run", seeds=2)
    many = run(config, tmp_path / "run", seeds=4)
    assert many[METHOD]["score"][:2] == few[METHOD]["score"]
    assert len(calls) == 2 * 4
    assert run(config, tmp_path / "run", seeds=2) == few


def test_results_of_another_config_are_refused_with_both_hashes(paper, tmp_path):
    config, use = paper
    use(papers.study(True, Calls()))
    run(config, tmp_path / "run")
    before = (tmp_path / "run" / FILE).read_bytes()
    there = catalogue.fingerprint(config)
    config.settings.shared.offset = 5.0
    with pytest.raises(UserError, match=f"holds results of another config, {there}, and this one is ") as refused:
        run(config, tmp_path / "run")
    assert catalogue.fingerprint(config) in str(refused.value)
    assert (tmp_path / "run" / FILE).read_bytes() == before


@pytest.mark.parametrize("text", ["{", "[]", '{"paper": "x"}', ""])
def test_a_corrupt_results_file_is_refused_and_left(paper, tmp_path, text):
    config, _ = paper
    (tmp_path / FILE).write_text(text)
    with pytest.raises(UserError, match=r"results.json is corrupt .*; move it away"):
        Results(tmp_path, "sums", config, smoke=False)
    assert (tmp_path / FILE).read_text() == text


def test_a_metric_must_be_a_number(paper, tmp_path):
    config, use = paper
    study = papers.study(True, Calls())
    study.run = lambda config, key: {"score": jax.random.uniform(key, (3,))}
    use(study)
    with pytest.raises(ValueError, match=r"experiments.papers.sums: metric 'score' must be a number, got shape \(3,\)"):
        run(config, tmp_path / "run")


def test_an_unknown_metric_stops_the_run_after_its_first_arm_and_loses_nothing(paper, tmp_path):
    config, use = paper
    study, calls = papers.study(True, Calls()), Calls()
    study.run = lambda config, key: calls.append(config.gain) or {"loss": jax.random.uniform(key)}
    use(study)
    with pytest.raises(UserError, match="unknown metric in the check 'the method is larger' 'score'; known: loss"):
        run(config, tmp_path / "run")
    assert calls == [0.0]
    assert list(read(tmp_path / "run" / FILE)["arms"]) == [BASELINE]


def test_what_is_no_number_is_kept_as_null(paper, tmp_path):
    config, use = paper
    study = papers.study(False, Calls())
    study.run = lambda config, key: {"score": float("nan"), "most": float("inf"), "third": 1 / 3}
    use(study)
    numbers = run(config, tmp_path / "run")
    assert np.isnan(numbers[METHOD]["score"]).all()
    assert np.isnan(numbers[METHOD]["most"]).all()
    kept = json.loads((tmp_path / "run" / FILE).read_text())["arms"][METHOD]["0"]
    assert kept == {"score": None, "most": None, "third": 0.3333333}


def test_the_whole_of_it_writes_a_verdict_a_table_and_a_picture(paper, tmp_path, capsys):
    config, use = paper
    use(papers.study(True, Calls()))
    (tmp_path / "run").mkdir()
    tree = program.measure("sums", config, tmp_path / "run", smoke=False)
    assert tree["verdict"] == "reproduced"
    assert read(tmp_path / "run" / FILE)["verdict"] == "reproduced"
    assert {"device", "date", "versions", "seconds", "hash", "config"} <= tree.keys()
    table = (tmp_path / "run" / program.TABLE).read_text()
    assert "| method, rate 0.5 |" in table
    assert "**Reproduced** in miniature: 4 seeds" in table
    assert "| ✗ | its score is large |" in table
    assert (tmp_path / "run" / program.FIGURE).read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out
    for words in ("sums  arm 2/2  method, rate 0.5", "verdict: reproduced", "at another scale: 1000 points more"):
        assert words in said


def test_smoke_gives_no_verdict(paper, tmp_path, capsys):
    config, use = paper
    calls = Calls()
    use(papers.study(True, calls))
    (tmp_path / "run").mkdir()
    tree = program.measure("sums", config, tmp_path / "run", smoke=True)
    assert "verdict" not in tree
    assert list(tree["arms"]) == [BASELINE]  # the method differs in a float alone
    assert "verdict:" not in capsys.readouterr().out
