"""From the numbers of all arms and seeds to checks that hold or not, and a verdict."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections
import numpy as np
import scipy.stats

from experiments.engine.errors import unknown
from experiments.reproducing.catalogue import several

REPRODUCED, PARTLY, NOT_REPRODUCED = "reproduced", "partly reproduced", "not reproduced"
RESAMPLES, BOOTSTRAP_SEED = 10_000, 0
CONFIDENCE = 0.95
ROUNDING = 1e-7  # relative, that a number may miss its bound by: kept results have seven digits

Numbers = Mapping[str, Mapping[str, Sequence[float]]]  # arm, metric, a value for each seed


class Outcome(NamedTuple):
    """A check with what was measured."""

    says: str
    measured: str
    needed: str
    holds: bool
    condition: bool = False  # of a fair comparison, no claim


def verdict(outcomes: Sequence[Outcome]) -> str:
    """Whether all checks hold, some of the claims, or none of them."""
    if all(outcome.holds for outcome in outcomes):
        return REPRODUCED
    return PARTLY if any(outcome.holds and not outcome.condition for outcome in outcomes) else NOT_REPRODUCED


def judge(config: ml_collections.ConfigDict, numbers: Numbers) -> tuple[list[Outcome], list[Outcome]]:
    """Outcomes of the checks that decide, and of those that stand beside the verdict."""
    return [outcome(rule, numbers) for rule in config.checks], [outcome(rule, numbers) for rule in config.side]


def check_metrics(config: ml_collections.ConfigDict, arm: str, metrics: Sequence[str]) -> None:
    """Refuses a rule that asks an arm for a metric which its study does not give."""
    for rule in (*config.checks, *config.side):
        for side, field in (("of", "metric"), ("against", "against_metric")):
            if arm in several(rule[side]):
                for name in several(rule[field]):
                    if name not in metrics:
                        raise unknown(f"metric in the check {rule['says']!r}", name, metrics)


def outcome(rule: Mapping[str, Any], numbers: Numbers) -> Outcome:
    """One check."""
    first = _operand(numbers, rule["of"], rule["metric"], rule["best"])
    second = _operand(numbers, rule["against"], rule["against_metric"], rule["best"]) if rule["against"] else None
    low, high = (-np.inf if rule["at_least"] is None else rule["at_least"]), rule["at_most"]
    high = np.inf if high is None else high
    with np.errstate(divide="ignore", invalid="ignore"):
        each = first if second is None else first - second if rule["compare"] == "difference" else first / second
        # A difference is as coarse as what it is made of.
        slack = ROUNDING * (np.nan_to_num(np.max(np.abs(first))) if rule["compare"] == "difference" else 0.0)

        def within(values: Any) -> np.ndarray:
            values = np.asarray(values)
            return (values >= low - max(slack, ROUNDING * abs(low))) & (
                values <= high + max(slack, ROUNDING * abs(high))
            )

        if rule["over"] in SUMMARIES:
            summary = SUMMARIES[rule["over"]]
            a, b = float(summary(first)), float("nan") if second is None else float(summary(second))
            if second is None:
                value, shown = a, _text(a)
            elif rule["compare"] == "difference":
                value, shown = a - b, f"{_text(a - b)} ({_text(a)} against {_text(b)})"
            else:
                value = float(np.float64(a) / b)
                shown = f"{_text(value)} ({_text(a)} / {_text(b)})"
            holds = bool(within(value))
        elif rule["over"] in ("every seed", "share of seeds"):
            holding = int(np.sum(within(each)))
            share = 1.0 if rule["over"] == "every seed" else rule["share"]
            holds = holding >= share * len(each) - ROUNDING
            shown = f"{holding} of {len(each)} seeds, {_text(np.min(each))} to {_text(np.max(each))}"
        else:
            bounds = interval(each) if rule["over"] == "paired interval" else bootstrap_interval(each)
            holds = bool(np.all(within(bounds)))
            shown = f"{_text(np.mean(each))} [{_text(bounds[0])}, {_text(bounds[1])}]"
    return Outcome(rule["says"], shown, _needed(rule), holds, rule["condition"])


def _operand(numbers: Numbers, arms: Any, metrics: Any, best: str) -> np.ndarray:
    """Values over seeds; of several arms or metrics those with the best mean, of which none is no number."""
    candidates = [np.asarray(numbers[arm][metric], float) for arm in several(arms) for metric in several(metrics)]
    if best == "median":
        return sorted(candidates, key=lambda values: float(np.mean(values)))[len(candidates) // 2]
    sign = 1 if best == "max" else -1
    means = [sign * np.mean(values) for values in candidates]
    return candidates[int(np.argmax(np.where(np.isnan(means), -np.inf, means)))]


def spread(values: Sequence[float] | np.ndarray) -> float:
    """Standard deviation over seeds; no number for a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


SUMMARIES: dict[str, Callable[..., Any]] = {"mean": np.mean, "median": np.median, "spread": spread}


def interval(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean by Student's t; no number for a single value."""
    values = np.asarray(values, float)
    if len(values) < 2:
        return float("nan"), float("nan")
    half = scipy.stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return float(np.mean(values) - half), float(np.mean(values) + half)


def bootstrap_interval(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean from resampled seeds."""
    values = np.asarray(values, float)
    if len(values) < 2 or not np.all(np.isfinite(values)):
        return float("nan"), float("nan")
    found = scipy.stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(BOOTSTRAP_SEED),
    ).confidence_interval
    return float(found.low), float(found.high)


def _text(value: float) -> str:
    return f"{value:.3g}"


def _needed(rule: Mapping[str, Any]) -> str:
    low, high = rule["at_least"], rule["at_most"]
    if low is not None and high is not None:
        bound = f"{_text(low)} to {_text(high)}"
    else:
        bound = f"≥ {_text(low)}" if low is not None else f"≤ {_text(high)}"
    over = f"{rule['share']:.0%} of seeds" if rule["over"] == "share of seeds" else rule["over"]
    return f"{rule['compare']} {bound}, {over}"
