"""PALBERT: Teaching ALBERT to Ponder."""

import ml_collections

from configs.papers.common import arm, check, paper

DEEP, LINEAR = "three layers, two states", "linear, one state"
METHOD = "quantile_0.5_accuracy"


def get_config() -> ml_collections.ConfigDict:
    config = paper(
        title="PALBERT: Teaching ALBERT to Ponder",
        arxiv="2204.03276",
        functions=(
            "early_exit.quantile_exit",
            "early_exit.halting_logits",
            "early_exit.exit_distribution",
            "early_exit.geometric_prior",
            "early_exit.pondering",
            "early_exit.sample_exit",
            "early_exit.patience_exit",
        ),
        claim="To leave at a quantile of the learned exits is more accurate than to draw one, and a halting head of several "
        "layers that sees the state before too is better than a linear one.",
        headline="GLUE: clearly better than PonderNet, and better than PABEE on a range of tasks",
        study="deterministic_quantile_exit",
        seeds=3,
    )
    config.settings = {
        "shared": {},
        "train": 1200,
        "test": 597,
        "width": 32,
        "heads": 4,
        "layers": 6,
        "halting_layers": 3,
        "see_previous": True,
        "prior_rate": 0.2,
        "epsilon": 0.05,
        "beta": 0.5,
        "batch": 32,
        "steps": 400,
        "learning_rate": 2e-3,  # falls to 0 along a cosine
        "patience": 2,  # of 6 layers; the paper's is 6 of 12
        "draws": 20,
    }
    config.smoke = {"train": 64, "test": 32, "width": 8, "heads": 2, "layers": 3, "batch": 16, "steps": 3, "draws": 2}
    config.smoke_arms = (DEEP,)
    config.arms = (arm(DEEP), arm(LINEAR, halting_layers=1, see_previous=False))
    config.checks = (
        check(
            "half a point above drawn exits",
            METHOD,
            DEEP,
            DEEP,
            against_metric="sampled_accuracy",
            at_least=0.005,
        ),
        check(
            "after at most half a layer more",
            "quantile_0.5_layers",
            DEEP,
            DEEP,
            against_metric="sampled_layers",
            at_most=0.5,
        ),
        check(
            "at most a point behind the last layer",
            METHOD,
            DEEP,
            DEEP,
            against_metric="last_layer_accuracy",
            at_least=-0.01,
        ),
        *(
            check(
                f"exits at {high} come no earlier than at {low}",
                f"quantile_{high}_layers",
                DEEP,
                DEEP,
                against_metric=f"quantile_{low}_layers",
                at_least=0.0,
                over="every seed",
                condition=True,
            )
            for low, high in ((0.3, 0.5), (0.5, 0.7))
        ),
    )
    config.side = (
        check("better than the linear head", METHOD, DEEP, LINEAR, at_least=0.0, over="paired interval"),
        check("better than patience", METHOD, DEEP, DEEP, against_metric="patience_accuracy", at_least=0.0),
        check(
            "after no more layers",
            "quantile_0.5_layers",
            DEEP,
            DEEP,
            against_metric="patience_layers",
            at_most=0.0,
        ),
        check(
            "at most half a point behind the average over all exits, which runs all layers",
            METHOD,
            DEEP,
            DEEP,
            against_metric="expected_accuracy",
            at_least=-0.005,
        ),
    )
    config.remarks = (
        "One block of width 32, applied six times, 400 steps of 32: the network is far from done (82 % right), and "
        "its last layers are hardly better than its middle ones, so that every rule of exit is about as accurate and "
        "the earliest is the cheapest. The median of the learned exits leaves later than a draw from them does on "
        "average. Three seeds, nothing was searched."
    )
    return config
