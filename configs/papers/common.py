"""What the config of every paper has: what it claims, how that is measured, and what counts as reproduced."""

from typing import Any

import ml_collections

OVER = ("mean", "median", "spread", "every seed", "share of seeds", "paired interval", "bootstrap interval")


def paper(
    *,
    title: str,
    arxiv: str,
    functions: tuple[str, ...],
    claim: str,
    headline: str,
    study: str,
    seeds: int,
) -> ml_collections.ConfigDict:
    """A paper without its settings, arms and checks, which the config adds.

    Args:
      title: of the paper.
      arxiv: its number, "1905.09788".
      functions: what one calls, "room.function", the most important first.
      claim: what the paper says, in a sentence.
      headline: the paper's own numbers, which are at another scale than ours.
      study: module of experiments.papers that measures it.
      seeds: how many, for every arm.
    """
    config = ml_collections.ConfigDict()
    config.title, config.arxiv, config.functions = title, arxiv, functions
    config.claim, config.headline = claim, headline
    config.study, config.seeds = study, seeds
    config.cache_dir = "runs/cache"  # what arms share, and compiled programs
    config.settings = {"shared": {}}  # what the study reads; `prepare` sees settings.shared alone
    config.smoke = {}  # settings over these, for a run of seconds
    config.smoke_arms = ()  # their arms; none named: all but those that differ from an earlier one in floats alone
    config.arms = ()  # arm(...)
    config.checks = ()  # check(...); the verdict is theirs
    config.side = ()  # the same, told beside the verdict
    config.remarks = ""  # what a reader of the result must know
    config.entries = ()  # entry(...), in tables that several papers share
    return config


def arm(name: str, **settings: Any) -> dict[str, Any]:
    """One arm: a name for people, and its settings over those of the paper, sections as nested dicts."""
    return {"name": name, "settings": settings}


def entry(table: str, row: str, column: str, arm: str, *, metric: str = "test_accuracy") -> dict[str, str]:
    """What an arm adds to a table that several papers share, such as "digits-noise".

    Arms of different papers with one row and column must have the same settings: they stand in one place.
    """
    return {"table": table, "row": row, "column": column, "arm": arm, "metric": metric}


def check(
    says: str,
    metric: str | tuple[str, ...],
    of: str | tuple[str, ...],
    against: str | tuple[str, ...] = "",
    *,
    against_metric: str | tuple[str, ...] = "",
    compare: str = "",
    at_least: float | None = None,
    at_most: float | None = None,
    over: str = "mean",
    share: float = 1.0,
    best: str = "max",
    condition: bool = False,
) -> dict[str, Any]:
    """One line of a rule: a number from the seeds' results, and what it has to reach.

    Args:
      says: what holds if the check does, in a few words.
      metric: of the study. Of several metrics or arms, the one with the best mean over seeds is taken.
      of: arm that is measured.
      against: arm it is compared with, seed by seed; none: the metric itself.
      against_metric: metric of `against`, where it is another.
      compare: "difference" (of - against), "ratio" (of / against) or "value"; with `against` the default is "difference".
      at_least, at_most: bounds, both included.
      over: what the bounds are put on: the "mean" over seeds (of a ratio: the ratio of the means), the "median" or the
        "spread" (standard deviation) likewise, "every seed", "share of seeds" (at least `share` of them), or the 95 %
        interval of the mean over seeds, which has to lie within the bounds: "paired interval" (Student's t) or "bootstrap
        interval".
      best: which mean is the best one: "max", "min" or "median", of an even number the higher of the two in the middle.
      condition: whether this is no claim, but what makes the comparison a fair one: it must hold for "reproduced", and
        where it alone holds, nothing is reproduced in part.
    """
    return {
        "says": says,
        "metric": metric,
        "of": of,
        "against": against,
        "against_metric": against_metric or metric,
        "compare": compare or ("difference" if against else "value"),
        "at_least": at_least,
        "at_most": at_most,
        "over": over,
        "share": share,
        "best": best,
        "condition": condition,
    }
