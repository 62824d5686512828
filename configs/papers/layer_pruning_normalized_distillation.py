"""LAPTOP-Diff: Layer Pruning and Normalized Distillation for Compressing Diffusion Models."""

import ml_collections

from configs.papers.common import arm, check, paper

KNAPSACK, GREEDY, INNERMOST, MAGNITUDE, RANDOM = (
    "knapsack of output changes",
    "greedy by change over size",
    "innermost first",
    "knapsack of weights",
    "random",
)
CHOICES = {
    KNAPSACK: "knapsack",
    GREEDY: "greedy",
    INNERMOST: "innermost",
    MAGNITUDE: "magnitude",
    RANDOM: "random",
}
RATIOS = (30, 50)
PLAIN, NORM = "exponent 0", "exponent 1"


def get_config() -> ml_collections.ConfigDict:
    config = paper(
        title="LAPTOP-Diff: Layer Pruning and Normalized Distillation for Compressing Diffusion Models",
        arxiv="2404.11098",
        functions=(
            "architecture_search.knapsack_removal",
            "architecture_search.output_change",
            "architecture_search.additivity",
            "distillation.feature_and_output",
            "distillation.normalized_feature",
        ),
        claim="What single removals change in the output adds up, so that a knapsack finds the layers to remove at once; "
        "and feature terms relative to the teacher's norm retrain the rest better than plain ones.",
        headline="SDXL's U-Net at half its size: PickScore falls by 4.0 %, by 8.2 % at the least with other methods",
        study="layer_pruning_normalized_distillation",
        seeds=3,
    )
    config.settings = {
        "shared": {
            "train": 1200,
            "test": 597,
            "width": 64,
            "hidden": (64, 16, 128, 32, 96, 16, 128, 48, 32, 64, 16, 96),  # units of every block
            "batch": 50,
            "steps": 1000,
            "learning_rate": 2e-3,  # falls to 0 along a cosine
        },
        "choice": "knapsack",  # or "greedy", "innermost", "magnitude", "random"
        "ratio": 0.5,  # of the parameters of blocks, to remove
        "exponent": 2.0,  # of the feature terms
        "calibration": 256,  # images
        "checked_sets": 60,  # whose joint change is measured
        "random_sets": 20,
        "retrained_sets": 3,  # of them
        "batch": 50,
        "steps": 200,
        "learning_rate": 1e-3,
    }
    config.smoke = {
        "shared": {"train": 64, "test": 32, "width": 8, "hidden": (8, 2, 4, 4), "batch": 16, "steps": 3},
        "calibration": 16,
        "checked_sets": 4,
        "random_sets": 3,
        "retrained_sets": 1,
        "batch": 16,
        "steps": 3,
    }
    config.smoke_arms = (_name(KNAPSACK, 50), _name(RANDOM, 50))
    config.arms = (
        *(
            arm(_name(says, ratio), choice=choice, ratio=ratio / 100)
            for ratio in RATIOS
            for says, choice in CHOICES.items()
        ),
        *(
            arm(_name(f"{KNAPSACK}, {says}", ratio), ratio=ratio / 100, exponent=exponent)
            for ratio in RATIOS
            for says, exponent in ((PLAIN, 0.0), (NORM, 1.0))
        ),
    )
    change, loss = "one_shot_change", "denoising_loss"
    config.checks = (
        check("single changes add up", "additivity", _name(KNAPSACK, 50), at_least=0.8),
        *(
            check(
                f"{ratio} %: the knapsack changes at most half of what random sets do",
                change,
                *_pair(ratio, RANDOM),
                compare="ratio",
                at_most=0.5,
            )
            for ratio in RATIOS
        ),
        *(
            check(f"{ratio} %: and no more than the innermost blocks", change, *_pair(ratio, INNERMOST), at_most=0.0)
            for ratio in RATIOS
        ),
        *(
            check(f"{ratio} %: retrained, no worse than random sets", loss, *_pair(ratio, RANDOM), at_most=0.0)
            for ratio in RATIOS
        ),
        *(
            check(
                f"{ratio} %: exponent 2 no worse than 0 in two of three seeds",
                loss,
                *_pair(ratio, f"{KNAPSACK}, {PLAIN}"),
                at_most=0.0,
                over="share of seeds",
                share=0.66,
            )
            for ratio in RATIOS
        ),
    )
    config.side = (
        *(
            check(f"{ratio} %: exponent 2 no worse than 1", loss, *_pair(ratio, f"{KNAPSACK}, {NORM}"), at_most=0.0)
            for ratio in RATIOS
        ),
        *(
            check(f"{ratio} %: no worse than {says}", loss, *_pair(ratio, says), at_most=0.0)
            for ratio in RATIOS
            for says in (GREEDY, INNERMOST, MAGNITUDE)
        ),
    )
    config.remarks = (
        "One stage of four states its features in a unit 30 times as small, as the imbalance between stages of large "
        "U-Nets does not arise in a network of this size by itself."
    )
    return config


def _name(says: str, ratio: int) -> str:
    return f"{ratio} %: {says}"


def _pair(ratio: int, against: str) -> tuple[str, str]:
    return _name(KNAPSACK, ratio), _name(against, ratio)
