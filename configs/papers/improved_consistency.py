"""Improved Techniques for Training Consistency Models."""

import ml_collections

from configs.consistency import digits
from configs.papers.common import arm, check, paper

IMPROVED, ORIGINAL = "improved", "original"
ABLATIONS = {
    "moving-average teacher": {"teacher": "average"},
    "unit weight": {"weight": "unit_weight"},
    "uniform levels": {"proposal": "uniform_level_probabilities"},
    "squared distance": {"distance": "mean_squared"},
}


def get_config() -> ml_collections.ConfigDict:
    config = paper(
        title="Improved Techniques for Training Consistency Models",
        arxiv="2310.14189",
        functions=(
            "consistency.consistency_training_loss",
            "consistency.lognormal_level_probabilities",
            "consistency.doubling_discretization",
            "robust.pseudo_huber",
        ),
        claim="The student as its own teacher, with better weights, levels and distance: one-step samples improve greatly.",
        headline="one-step FID, improved against original: CIFAR-10 2.83 against 8.70, ImageNet 64x64 4.02 against 13.0",
        study="improved_consistency",
        seeds=3,
    )
    run = digits.get_config()
    run.evaluate_every = run.checkpoint.every = run.steps
    run.log_every = 1000
    config.settings.run = run
    config.smoke = {
        "run": {
            "steps": 6,
            "log_every": 6,
            "batch_size": 16,
            "model": {"width": 16, "depth": 1},
            "evaluate_every": 6,
            "evaluation": {
                "samples": 64,
                "block": 64,
                "features": {"steps": 4, "log_every": 4, "evaluate_every": 0, "checkpoint": {"every": 4}},
            },
        }
    }
    config.arms = (
        arm(IMPROVED),
        arm(ORIGINAL, run={"method": "training"}),
        *(arm(f"improved, {name}", run={"consistency": change}) for name, change in ABLATIONS.items()),
    )
    config.smoke_arms = (IMPROVED,)
    one, two = "frechet_distance_1", "frechet_distance_2"
    config.checks = (
        check(
            "one-step distance at most 0.7 of the original's",
            one,
            IMPROVED,
            ORIGINAL,
            compare="ratio",
            at_most=0.7,
            over="every seed",
        ),
        check(
            "two steps no worse than one",
            two,
            IMPROVED,
            IMPROVED,
            against_metric=one,
            compare="ratio",
            at_most=1.0,
            over="every seed",
        ),
    )
    config.side = tuple(
        check(f"worse or equal with {name}", one, f"improved, {name}", IMPROVED, compare="ratio", at_least=1.0)
        for name in ABLATIONS
    )
    config.remarks = (
        "Most of the gap is the original method's published curriculum, too fast for 6,000 steps: with 20 intervals "
        "instead of 150 it comes within a factor of 6 (docs/consistency.md). The squared distance is no worse here: digits "
        "have few outliers for the pseudo-Huber distance to tame, and its seeds spread from 0.14 to 0.42."
    )
    return config
