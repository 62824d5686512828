"""Compressing Features for Learning with Noisy Labels."""

import ml_collections

from configs.papers.common import arm, check, paper

PLAIN = "cross-entropy"
TAUGHT = "nested, sigma 10, then co-teaching"


def get_config() -> ml_collections.ConfigDict:
    config = paper(
        title="Compressing Features for Learning with Noisy Labels",
        arxiv="2206.13140",
        functions=(
            "dropout.nested_mask",
            "dropout.truncation_distribution",
            "dropout.prefix_accuracy",
            "dropout.prefix_logits",
            "dropout.select_truncation",
            "noisy_labels.small_loss_mask",
            "noisy_labels.co_teaching_loss",
        ),
        claim="Features that are cut to a random prefix memorise fewer wrong labels, and two such networks "
        "that pick each other's examples are better still.",
        headline="Clothing1M, test accuracy: cross-entropy 67.2, co-teaching 69.2, dropout 72.8, nested 73.1, "
        "nested and co-teaching 74.9",
        study="nested_dropout",
        seeds=5,
    )
    config.settings = {
        "shared": {
            "train": 1000,
            "validation": 200,
            "test": 597,
            "noise": 0.4,
            "widths": (256, 256),
            "batch": 64,
            "steps": 1500,
        },
        "learning_rate": 0.05,
        "decay_at": 1000,  # steps; a tenth of the learning rate from there on
        "weight_decay": 5e-4,
        "rate": 0.0,  # of dropout on the features
        "sigma": 0.0,  # of the law of truncations; 0: none
        "prefixes": (8, 32, 128, 256),
        "first": 16,
        "co_teaching": {"epochs": 0, "learning_rate": 0.005, "forget_rate": 0.4, "num_gradual": 0, "halves": True},
    }
    config.smoke = {
        "shared": {"train": 64, "validation": 32, "test": 32, "widths": (16, 16), "batch": 16, "steps": 6},
        "decay_at": 4,
        "prefixes": (8, 16),
        "first": 8,
    }
    config.smoke_arms = ("dropout 0.5", TAUGHT)
    config.arms = (
        arm(PLAIN),
        *(arm(f"dropout {rate}", rate=rate) for rate in (0.5, 0.8)),
        *(arm(_nested(sigma), sigma=sigma) for sigma in (5.0, 10.0, 30.0)),
        arm(TAUGHT, sigma=10.0, co_teaching={"epochs": 40}),
    )
    config.checks = (
        check(
            "nested dropout of sigma 10 is 8 points more accurate than cross-entropy",
            "test_accuracy",
            _nested(10),
            PLAIN,
            at_least=0.08,
        ),
        check(
            "its first 16 features reach 0.95 of its best accuracy",
            "share_of_best_with_first_features",
            _nested(10),
            at_least=0.95,
        ),
        check(
            "those of cross-entropy stay below 0.7 of its own",
            "share_of_best_with_first_features",
            PLAIN,
            at_most=0.7,
        ),
        check(
            "co-teaching is no worse than the better of its two networks before it",
            "test_accuracy",
            TAUGHT,
            TAUGHT,
            against_metric="better_single_accuracy",
            at_least=0.0,
        ),
    )
    config.side = (
        check(
            "tuned dropout comes within 3 points of nested dropout",
            "test_accuracy",
            ("dropout 0.5", "dropout 0.8"),
            _nested(10),
            at_least=-0.03,
        ),
        check("sigma 30 is worse than sigma 10", "test_accuracy", _nested(30), _nested(10), at_most=0.0),
        check(
            "co-teaching is better than the mean of its two networks' logits before it",
            "test_accuracy",
            TAUGHT,
            TAUGHT,
            against_metric="averaged_accuracy",
            at_least=0.0,
        ),
    )
    config.remarks = (
        "Honest baseline: dropout of rate 0.8 is nearly as accurate as nested dropout here, 1.4 points behind it, but "
        "not with few features. About a third of what co-teaching gains over the better network is had from the mean "
        "of the two networks' logits alone."
    )
    return config


def _nested(sigma: float) -> str:
    return f"nested, sigma {sigma:g}"
