"""The catalogue: every paper's config can be judged, and what is wrong in one is named."""

import importlib
import re

import pytest

import mlfuncs
from configs.papers.common import arm, check
from experiments.engine.errors import UserError
from experiments.reproducing import catalogue
from tests.experiments.reproducing import papers
from tests.experiments.reproducing.papers import BASELINE, METHOD


@pytest.mark.parametrize("name", catalogue.names())
def test_papers_are_complete(name):
    config = catalogue.load(name)
    catalogue.check(config)
    assert re.fullmatch(r"\d{4}\.\d{5}", config.arxiv)
    assert config.title
    assert config.headline
    assert config.claim.endswith(".")
    assert config.functions
    for function in config.functions:
        room, called = function.split(".")
        assert room in mlfuncs.__all__
        assert callable(getattr(importlib.import_module(f"mlfuncs.{room}"), called))
    assert catalogue.fingerprint(config) != catalogue.fingerprint(config, smoke=True)


def test_rooms_and_names_choose_papers():
    everything = catalogue.chosen("")
    assert everything == catalogue.names()
    assert "multi_sample_dropout" in catalogue.chosen("dropout")
    assert "improved_consistency" not in catalogue.chosen("dropout")
    assert catalogue.chosen("improved_consistency, multi_sample_dropout") == [
        "improved_consistency",
        "multi_sample_dropout",
    ]
    with pytest.raises(UserError, match=r"unknown --only 'nothing'; known: .*consistency"):
        catalogue.chosen("dropout,nothing")


def test_an_unknown_paper_is_named():
    with pytest.raises(UserError, match="unknown paper 'x'; known: "):
        catalogue.load("x")


def test_settings_of_an_arm_lie_over_those_of_the_paper():
    config = papers.config()
    settings = catalogue.settings(config, METHOD, smoke=False)
    assert (settings.gain, settings.shared.offset, settings.widths) == (3.0, 1.0, (2, 3))
    assert catalogue.settings(config, METHOD, smoke=True).shared.offset == 2.0
    assert catalogue.settings(config, BASELINE, smoke=False).gain == 0.0
    assert config.settings.gain == 0.0
    assert settings.cache_dir == config.cache_dir
    assert "cache_dir" not in settings.shared
    cached = papers.config(cache_dir="/elsewhere", settings={"shared": {"offset": 1.0, "cache_dir": ""}, "gain": 0.0})
    assert catalogue.settings(cached, METHOD, smoke=False).shared.cache_dir == "/elsewhere"


def test_the_fingerprint_is_of_what_changes_numbers():
    known = catalogue.fingerprint(papers.config())
    for same in ({"seeds": 9}, {"cache_dir": "/elsewhere"}, {"claim": "Other."}, {"checks": ()}):
        assert catalogue.fingerprint(papers.config(**same)) == known
    assert catalogue.fingerprint(papers.config(arms=(arm(METHOD, gain=3.0), arm(BASELINE)))) == known
    for other in (
        {"study": "x"},
        {"settings": {"shared": {"offset": 1.5}}},
        {"arms": (arm(BASELINE), arm(METHOD, gain=3.5))},
        {"arms": (arm(BASELINE), arm("another name", gain=3.0))},
    ):
        assert catalogue.fingerprint(papers.config(**other)) != known


def test_smoke_skips_arms_that_differ_in_floats_alone():
    config = papers.config(
        arms=(arm("a"), arm("b", gain=1.5), arm("c", widths=(4, 4)), arm("d", gain=2.5, widths=(4, 4)))
    )
    assert catalogue.smoke_arms(config) == ["a", "c"]
    config.smoke_arms = ("d",)
    assert catalogue.smoke_arms(config) == ["d"]


def rule(**fields):
    return check(**{"says": "s", "metric": "score", "of": METHOD, "at_least": 0.0, **fields})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": 0}, "config.seeds must be >= 1, got 0"),
        ({"study": "nothing"}, "unknown config.study 'nothing'; known: .*multi_sample_dropout"),
        ({"study": "training"}, "unknown config.study 'training'"),
        ({"arms": ()}, "config.arms is empty"),
        ({"arms": (arm(METHOD), arm(METHOD))}, "names 'method, rate 0.5' twice"),
        ({"arms": (arm(METHOD, gains=1.0),)}, "arm 'method, rate 0.5' sets 'gains', which config.settings does not"),
        ({"smoke": {"shared": {"set": 1}}}, "config.smoke sets 'set'"),
        ({"smoke_arms": ("x",)}, "unknown arm in config.smoke_arms 'x'"),
        ({"checks": ()}, "config.checks is empty"),
        ({"checks": (rule(condition=True),)}, "or conditions alone"),
        ({"checks": (rule(of="x"),)}, "unknown arm in the check 's' 'x'; known: baseline, method, rate 0.5"),
        ({"side": (rule(against="x"),)}, "unknown arm in the check 's' 'x'"),
        ({"checks": (rule(over="all"),)}, "unknown over in the check 's' 'all'; known: .*every seed"),
        ({"checks": (rule(against=BASELINE, compare="sum"),)}, "unknown compare in the check 's' 'sum'"),
        ({"checks": (rule(best="least"),)}, "unknown best in the check 's' 'least'"),
        ({"checks": (rule(at_least=None),)}, "the check 's' has no bound"),
        ({"checks": (rule(compare="ratio"),)}, "the check 's' compares by 'ratio' with ''"),
        ({"checks": (rule(against=BASELINE, compare="value"),)}, "compares by 'value' with 'baseline'"),
    ],
)
def test_what_can_not_be_judged_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        catalogue.check(papers.config(**change))


def test_a_config_of_something_else_is_refused():
    config = papers.config()
    del config["arms"]
    with pytest.raises(UserError, match=r"config.arms is missing: this is no config of a paper"):
        catalogue.check(config)
