"""Rethinking Supervised Pre-training for Better Downstream Transferring."""

from typing import Any

import ml_collections

from configs.papers.common import arm, check, paper

CE, CONTRASTIVE, NCA, UNTRAINED = "cross-entropy", "supervised contrastive", "LOOK, k = all", "not trained"
ARMS: dict[str, dict[str, Any]] = {
    CE: {"objective": "cross_entropy"},
    CONTRASTIVE: {"objective": "supervised_contrastive"},
    **{f"LOOK, k = {k}": {"objective": "neighbours", "neighbours": k} for k in (5, 20, 100)},
    NCA: {"objective": "neighbours", "neighbours": 0},
}
LOOK = "LOOK, k = 20"
TWO, FIVE = "two halves", "five pairs"


def get_config() -> ml_collections.ConfigDict:
    config = paper(
        title="Rethinking Supervised Pre-training for Better Downstream Transferring",
        arxiv="2110.06014",
        functions=(
            "representation.leave_one_out_neighbours",
            "representation.neighbour_class_probabilities",
            "representation.enqueue",
        ),
        claim="Features that need to agree with their nearest neighbours alone keep what is within a class, and transfer "
        "better than those of cross-entropy or of a supervised contrastive loss.",
        headline="Better than supervised and self-supervised pre-training on many downstream tasks (direction only: the "
        "paper's tables were not at hand)",
        study="leave_one_out_neighbours",
        seeds=3,
    )
    config.settings = {
        "shared": {},
        "data": "digits",  # or "mnist", "cifar10"
        "train": 800,
        "test": 997,
        "groups": 2,  # coarse labels of the ten digits: 2 or 5
        "objective": "cross_entropy",  # or "supervised_contrastive", "neighbours", "none"
        "neighbours": 0,  # k; 0: the whole bank
        "temperature": 0.1,
        "widths": (128, 64),
        "projection": 32,
        "batch": 50,
        "steps": 480,  # 30 epochs
        "learning_rate": 2e-3,  # falls to 0 along a cosine
        "shots": 20,  # fine labels a class
    }
    config.smoke = {
        "train": 80,
        "test": 40,
        "widths": (16, 8),
        "projection": 8,
        "batch": 20,
        "steps": 8,
        "shots": 4,
    }
    config.smoke_arms = tuple(_name(TWO, says) for says in (CE, LOOK))
    config.arms = (
        *(arm(_name(TWO, says), **changed) for says, changed in ARMS.items()),
        *(arm(_name(FIVE, says), groups=5, **ARMS[says]) for says in (CE, CONTRASTIVE, LOOK)),
        arm(UNTRAINED, objective="none"),
    )
    few = "few_shot_accuracy"
    config.checks = (
        check("halves: 5 points above cross-entropy", few, *_pair(TWO, CE), at_least=0.05),
        check("halves: 2 points above supervised contrastive", few, *_pair(TWO, CONTRASTIVE), at_least=0.02),
        check(
            "halves: coarse accuracy within a point of cross-entropy's",
            "coarse_accuracy",
            *_pair(TWO, CE),
            at_least=-0.01,
        ),
    )
    config.side = (
        check("halves: 20 neighbours better than all", few, *_pair(TWO, NCA), at_least=0.0, over="paired interval"),
        check("pairs: better than cross-entropy", few, *_pair(FIVE, CE), at_least=0.0, over="paired interval"),
        check(
            "pairs: better than supervised contrastive",
            few,
            *_pair(FIVE, CONTRASTIVE),
            at_least=0.0,
            over="paired interval",
        ),
        check(
            "halves: parts within a class stand further apart than under cross-entropy",
            "silhouette_within_coarse",
            *_pair(TWO, CE),
            at_least=0.0,
            over="paired interval",
        ),
        check("halves: better than features that were not trained", few, _name(TWO, LOOK), UNTRAINED, at_least=0.0),
        check(
            "halves: linear probe on all labels better than cross-entropy's",
            "linear_probe_accuracy",
            *_pair(TWO, CE),
            at_least=0.0,
        ),
    )
    config.remarks = (
        "Bank: the projections of all training images, each as it was when last in a batch. Features that were not trained "
        "are as good as those of cross-entropy or of the supervised contrastive loss on halves. A probe with all labels "
        "hardly separates the methods. Only 3 seeds, 30 epochs on 800 images and one learning rate, the same for all."
    )
    return config


def _name(setting: str, says: str) -> str:
    return f"{setting}: {says}"


def _pair(setting: str, against: str) -> tuple[str, str]:
    return _name(setting, LOOK), _name(setting, against)
