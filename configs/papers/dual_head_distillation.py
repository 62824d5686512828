"""Dual-Head Knowledge Distillation: Enhancing Logits Utilization with an Auxiliary Head."""

from typing import Any

import ml_collections

from configs.papers import digits_noise
from configs.papers.common import arm, check, entry, paper
from configs.papers.digits_noise import CLEAN, CROSS_ENTROPY, NOISY

CE, KD, DKD = "CE", "KL, T = 4", "CE + DKD"
LEVEL, ONE_HEAD = "BinaryKL-Norm", "CE + BinaryKL-Norm"
PLAIN, ONE_HEAD_PLAIN = "BinaryKL", "CE + BinaryKL"
DUAL, ALIGNED = "DHKD", "DHKD, aligned"
NORM = "binary_kullback_leibler_difference"
ARMS: dict[str, dict[str, Any]] = {
    CE: {"objective": CROSS_ENTROPY},
    KD: {"objective": digits_noise.distilled("kullback_leibler(temperature=4)")},
    DKD: {"objective": f"{CROSS_ENTROPY} + decoupled"},
    PLAIN: {"objective": "binary_kullback_leibler"},
    ONE_HEAD_PLAIN: {"objective": f"{CROSS_ENTROPY} + binary_kullback_leibler", "measure_conflict": True},
    LEVEL: {"objective": NORM},
    ONE_HEAD: {"objective": f"{CROSS_ENTROPY} + {NORM}", "measure_conflict": True},
    DUAL: {"objective": f"{CROSS_ENTROPY} + {NORM}", "auxiliary_head": True},
    ALIGNED: {
        "objective": f"{CROSS_ENTROPY} + {NORM}",
        "auxiliary_head": True,
        "align": True,
        "measure_conflict": True,
    },
}


def get_config() -> ml_collections.ConfigDict:
    config = paper(
        title="Dual-Head Knowledge Distillation: Enhancing Logits Utilization with an Auxiliary Head",
        arxiv="2411.08937",
        functions=(
            "distillation.dual_head",
            "distillation.binary_kullback_leibler_difference",
            "distillation.align_gradients",
            "distillation.binary_kullback_leibler",
            "distillation.decoupled",
        ),
        claim="A loss on the level of the teacher's logits conflicts with cross-entropy in the last layer, and helps on a "
        "head of its own.",
        headline="CIFAR-100: cross-entropy and a loss on logits in one head are worse than either; with two heads better "
        "than KD, DKD and DIST",
        study="dual_head_distillation",
        seeds=10,
    )
    config.settings = digits_noise.settings(auxiliary_head=False, align=False, measure_conflict=False)
    config.smoke = digits_noise.smoke()
    config.smoke_arms = (_name(NOISY, ONE_HEAD), _name(CLEAN, ALIGNED))
    settings = (NOISY, CLEAN)
    config.arms = tuple(
        arm(_name(setting, says), **changed, **digits_noise.SETTINGS[setting])
        for setting in settings
        for says, changed in ARMS.items()
    )
    config.entries = tuple(
        entry(digits_noise.TABLE, says, setting, _name(setting, says)) for setting in settings for says in ARMS
    )
    accuracy = "test_accuracy"
    config.checks = (
        check("noise: two heads 2 points above cross-entropy", accuracy, *_pair(NOISY, DUAL, CE), at_least=0.02),
        check("no noise: two heads 0.5 points above cross-entropy", accuracy, *_pair(CLEAN, DUAL, CE), at_least=0.005),
        *(
            check(
                f"{setting}: aligned gradients cost at most 0.3 points",
                accuracy,
                *_pair(setting, ALIGNED, DUAL),
                at_least=-0.003,
            )
            for setting in settings
        ),
        *(
            check(
                f"{setting}: no conflict after alignment",
                "lowest_aligned_cosine",
                _name(setting, ALIGNED),
                at_least=-1e-6,
                over="every seed",
            )
            for setting in settings
        ),
        *(
            check(
                f"{setting}: both losses in one head are worse than the better of them alone",
                accuracy,
                _name(setting, ONE_HEAD),
                (_name(setting, CE), _name(setting, LEVEL)),
                at_most=0.0,
                over="paired interval",
            )
            for setting in settings
        ),
        *(
            check(
                f"{setting}: two heads better than KL",
                accuracy,
                *_pair(setting, DUAL, KD),
                at_least=0.0,
                over="paired interval",
            )
            for setting in settings
        ),
    )
    config.side = (
        check("noise: two heads no worse than one", accuracy, *_pair(NOISY, DUAL, ONE_HEAD), at_least=0.0),
        check("one head: gradients conflict in it on average", "head_cosine", _name(NOISY, ONE_HEAD), at_most=0.0),
        check("and not below it", "backbone_cosine", _name(NOISY, ONE_HEAD), at_least=0.0),
        check(
            "two heads: steps in which all gradients conflict", "conflicting_steps", _name(NOISY, ALIGNED), at_most=0.5
        ),
    )
    config.remarks = (
        "Two heads beat cross-entropy, not KL. The collapse of both losses in one head, which the second head is to mend, "
        "does not show with ten classes: one head is as good as the loss on logits alone, and with noise better than two. "
        "The two gradients do oppose each other in one head, on average over training, but below it too; part of that is "
        "what a sum looks like near its minimum, where its parts cancel. The auxiliary head is linear, DKD has no warm-up, "
        "and no weight or rate was searched. More classes than features: configs/papers/dual_head_few_features.py."
    )
    return config


def _name(setting: str, says: str) -> str:
    return f"{setting}: {says}"


def _pair(setting: str, of: str, against: str) -> tuple[str, str]:
    return _name(setting, of), _name(setting, against)
