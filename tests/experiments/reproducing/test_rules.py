"""Rules: every way to compare and to look over seeds, on numbers worked out by hand."""

import numpy as np
import pytest

from configs.papers.common import check
from experiments.engine.errors import UserError
from experiments.reproducing import rules
from tests.experiments.reproducing import papers

NUMBERS = {
    "a": {"score": [1.0, 2.0, 3.0, 4.0], "other": [5.0, 5.0, 5.0, 5.0]},
    "b": {"score": [2.0, 2.5, 3.5, 8.0], "other": [0.0, 1.0, 1.0, float("nan")]},
}
NAN = float("nan")


def holds(**fields):
    given = {"metric": "score", "of": "b", **fields}
    return rules.outcome(check("it holds", **given), NUMBERS).holds


def test_mean_and_median_of_one_arm():
    assert holds(at_least=4.0)
    assert not holds(at_least=4.01)
    assert holds(over="median", at_least=3.0)
    assert not holds(over="median", at_least=3.01)
    assert holds(at_least=3.9, at_most=4.1)
    assert not holds(at_most=3.9)


def test_differences_and_ratios_of_means():
    assert holds(against="a", at_least=1.5)
    assert not holds(against="a", at_least=1.51)
    assert holds(against="a", compare="ratio", at_most=1.6)
    assert not holds(against="a", compare="ratio", at_most=1.59)
    # Of medians 3 and 2.5, not the median of the ratios.
    assert holds(against="a", over="median", compare="ratio", at_least=1.2, at_most=1.2)


def test_spreads_over_seeds():
    # Variances 5/3 and 7.5: squares of differences from the means 2.5 and 4 sum to 5 and to 22.5.
    ratio = np.sqrt(4.5)
    assert holds(over="spread", at_least=np.sqrt(7.5), at_most=np.sqrt(7.5))
    assert holds(against="a", over="spread", compare="ratio", at_least=ratio, at_most=ratio)
    assert not holds(against="a", over="spread", compare="ratio", at_most=0.99 * ratio)
    alone = {"a": {"score": [1.0]}}
    assert not rules.outcome(check("one seed has none", "score", "a", over="spread", at_most=1.0), alone).holds


def test_every_seed_and_a_share_of_them():
    assert holds(against="a", over="every seed", at_least=0.5)
    assert not holds(against="a", over="every seed", at_least=0.6)
    assert holds(against="a", over="share of seeds", share=0.5, at_least=0.6)
    assert not holds(against="a", over="share of seeds", share=0.75, at_least=0.6)


def test_a_share_that_is_no_whole_number_of_seeds_counts_exactly():
    numbers = {"a": {"score": [1.0, 1.0, 1.0, 1.0, 0.0]}}
    rule = check("four of five", "score", "a", over="share of seeds", share=0.8, at_least=1.0)
    assert rules.outcome(rule, numbers).holds
    assert not rules.outcome({**rule, "share": 0.81}, numbers).holds


def test_paired_interval_is_students():
    # Differences 1, 0.5, 0.5, 4: mean 1.5, standard deviation sqrt(8.5 / 3), t(0.975, 3) = 3.18245.
    half = 3.18245 * np.sqrt(8.5 / 3) / 2
    np.testing.assert_allclose(rules.interval([1, 0.5, 0.5, 4]), [1.5 - half, 1.5 + half], rtol=1e-5)
    assert holds(against="a", over="paired interval", at_least=1.5 - half - 0.01)
    assert not holds(against="a", over="paired interval", at_least=1.5 - half + 0.01)
    assert not holds(against="a", over="paired interval", at_most=1.5 + half - 0.01)


def test_bootstrap_interval_lies_within_the_values_and_is_the_same_again():
    low, high = rules.bootstrap_interval([1, 0.5, 0.5, 4])
    assert 0.5 <= low < 1.5 < high <= 4
    assert rules.bootstrap_interval([1, 0.5, 0.5, 4]) == (low, high)
    assert holds(against="a", over="bootstrap interval", at_least=0.4)
    assert not holds(against="a", over="bootstrap interval", at_least=1.0)


def test_of_several_arms_or_metrics_the_best_mean_counts():
    assert holds(of=("a", "b"), at_least=4.0)
    assert holds(of=("a", "b"), best="min", at_most=2.5)
    assert holds(of="a", metric=("score", "other"), at_least=5.0)


def test_the_median_of_several_arms():
    numbers = {name: {"score": [value, value]} for name, value in (("a", 4.0), ("b", 1.0), ("c", 3.0), ("d", 2.0))}

    def median(*arms):
        return rules.outcome(check("median", "score", arms, best="median", at_least=0.0), numbers).measured

    assert median("a", "b", "d") == "2"
    # Of an even number the higher of the two in the middle.
    assert median("a", "b", "c", "d") == "3"


def test_what_is_no_number_neither_holds_nor_is_best():
    assert not holds(metric="other", at_least=-100.0)
    assert not holds(metric="other", over="every seed", at_least=-100.0)
    assert holds(metric="other", over="share of seeds", share=0.75, at_least=0.0)
    assert not holds(metric="other", over="paired interval", at_least=-100.0)
    assert not holds(metric="other", over="bootstrap interval", at_least=-100.0)
    assert holds(of=("a", "b"), metric="other", at_least=5.0)


def test_one_seed_has_no_interval():
    assert np.isnan(rules.interval([1.0])).all()
    assert np.isnan(rules.bootstrap_interval([1.0])).all()
    assert not rules.outcome(
        check("x", "score", "a", over="paired interval", at_least=-9.0), {"a": {"score": [1.0]}}
    ).holds


def test_a_bound_met_up_to_rounding_is_met():
    assert rules.outcome(check("x", "score", "a", at_least=0.3), {"a": {"score": [0.1 + 0.2 - 1e-16]}}).holds
    assert rules.outcome(check("x", "score", "a", at_least=-0.3), {"a": {"score": [-0.3 - 1e-12]}}).holds
    equal = {"a": {"score": [0.9546646, 0.1]}, "b": {"score": [0.9546645, 0.1000001]}}
    assert rules.outcome(check("x", "score", "a", "b", at_least=0.0), equal).holds
    assert rules.outcome(check("x", "score", "b", "a", at_least=0.0), equal).holds
    assert not rules.outcome(check("x", "score", "a", "b", at_least=1e-6), equal).holds


def test_a_division_by_zero_is_no_success():
    numbers = {"a": {"score": [0.0, 0.0]}, "b": {"score": [0.0, 0.0]}}
    for over in ("mean", "every seed"):
        rule = check("x", "score", "a", "b", compare="ratio", at_most=1.0, over=over)
        assert not rules.outcome(rule, numbers).holds


def test_what_was_measured_and_needed_is_said():
    outcome = rules.outcome(check("b beats a", "score", "b", "a", compare="ratio", at_least=1.5), NUMBERS)
    assert outcome == ("b beats a", "1.6 (4 / 2.5)", "ratio ≥ 1.5, mean", True, False)
    outcome = rules.outcome(
        check("", "score", "b", "a", at_least=0.6, at_most=9.0, over="share of seeds", share=0.8), NUMBERS
    )
    assert outcome[1:4] == ("2 of 4 seeds, 0.5 to 4", "difference 0.6 to 9, 80% of seeds", False)


@pytest.mark.parametrize(
    ("held", "told"), [((1, 1), rules.REPRODUCED), ((1, 0), rules.PARTLY), ((0, 0), rules.NOT_REPRODUCED)]
)
def test_verdicts(held, told):
    assert rules.verdict([rules.Outcome("", "", "", bool(each)) for each in held]) == told


@pytest.mark.parametrize(
    ("claim", "condition", "told"),
    [(1, 1, rules.REPRODUCED), (1, 0, rules.PARTLY), (0, 1, rules.NOT_REPRODUCED), (0, 0, rules.NOT_REPRODUCED)],
)
def test_a_condition_alone_reproduces_nothing(claim, condition, told):
    outcomes = [rules.Outcome("", "", "", bool(claim)), rules.Outcome("", "", "", bool(condition), condition=True)]
    assert rules.verdict(outcomes) == told


def test_side_checks_do_not_decide():
    config = papers.config()
    numbers = {papers.BASELINE: {"score": [0.0, 1.0]}, papers.METHOD: {"score": [3.0, 4.0]}}
    main, side = rules.judge(config, numbers)
    assert [each.holds for each in main] == [True]
    assert [each.holds for each in side] == [False]


def test_a_metric_that_the_study_does_not_give_is_named():
    config = papers.config()
    rules.check_metrics(config, papers.BASELINE, ["score"])
    with pytest.raises(UserError, match=r"unknown metric in the check 'the method is larger' 'score'; known: loss"):
        rules.check_metrics(config, papers.METHOD, ["loss"])
    with pytest.raises(UserError, match="'score'; known: loss"):
        rules.check_metrics(config, papers.BASELINE, ["loss"])
