"""Distilling the Knowledge in Data Pruning."""

from typing import Any

import ml_collections

from configs.papers import digits_noise
from configs.papers.common import arm, check, paper

TRAIN = 1200
SHARES = (0.05, 0.1, 0.3, 0.6)
FEW, MANY = SHARES[0], SHARES[-1]
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
RANDOM, HARDEST, FORGOTTEN = "random", "hardest", "most forgotten"
RULES = {RANDOM: "random", HARDEST: "error_norm", FORGOTTEN: "forgetting"}
ALL = "all"


def get_config() -> ml_collections.ConfigDict:
    config = paper(
        title="Distilling the Knowledge in Data Pruning",
        arxiv="2403.07854",
        functions=(
            "distillation.knowledge_distillation",
            "distillation.self_distilled_ridge",
            "selection.keep_random",
            "selection.keep_highest",
            "selection.error_norm",
            "selection.forgetting_count",
        ),
        claim="With a teacher of the full data a random choice of examples is as good as any score's; and the fewer are "
        "kept, the more its answers should weigh against the labels.",
        headline="ImageNet: a random half with KD is more accurate than training on all of it; with KD random pruning is "
        "comparable or superior to pruning by scores at every share",
        study="pruned_data_distillation",
        seeds=10,
    )
    config.settings = {
        "shared": {
            "train": TRAIN,
            "test": 597,
            "classes": 10,
            "teacher_widths": (64, 64),
            "teacher_steps": 600,
            "teacher_learning_rate": 1e-3,
            "teacher_batch": 64,
            "teacher_mixup": 0.0,
            "score_widths": (64, 64),
            "score_networks": 5,  # whose error norms are averaged
            "score_steps": 60,
            "forgetting_steps": 600,
        },
        "rule": "random",
        "examples": TRAIN,  # that are kept
        "soft_weights": WEIGHTS,
        "temperature": 4.0,
        "widths": (64, 64),
        "steps": 600,
        "batch": 64,  # drawn with replacement
        "learning_rate": 3e-3,  # falls to 0 along a cosine
        "ridge": {"examples": 200, "width": 20, "regularization": 0.1},
    }
    config.smoke = digits_noise.smoke()
    config.smoke.shared.update(score_widths=(8,), score_networks=2, score_steps=4, forgetting_steps=8)
    config.smoke_arms = (_name(RANDOM, FEW), _name(HARDEST, FEW))
    config.arms = (
        *(arm(_name(rule, share), rule=RULES[rule], examples=round(share * TRAIN)) for rule, share in _every()),
        arm(ALL),
    )
    config.checks = (
        *(
            check(
                f"{_percent(share)} kept at random: the best weight is {100 * gain:g} points above labels alone",
                _accuracies(*WEIGHTS[1:]),
                _name(RANDOM, share),
                _name(RANDOM, share),
                against_metric=_accuracy(0.0),
                at_least=gain,
            )
            for share, gain in zip(SHARES, (0.05, 0.003, 0.003, 0.003), strict=True)
        ),
        *(
            check(
                f"{_percent(share)} kept, with the teacher: random is at most 1 point below the {rule}",
                _accuracies(*WEIGHTS[1:]),
                _name(RANDOM, share),
                _name(rule, share),
                at_least=-0.01,
            )
            for rule, share in _every()
            if rule != RANDOM
        ),
        check(
            f"{_percent(FEW)} kept, labels alone: the hardest are 20 points below random",
            _accuracy(0.0),
            _name(HARDEST, FEW),
            _name(RANDOM, FEW),
            at_most=-0.2,
        ),
        check(
            f"the best weight at {_percent(FEW)} is no lower than at {_percent(MANY)}",
            "best_weight",
            _name(RANDOM, FEW),
            _name(RANDOM, MANY),
            at_least=0.0,
        ),
    )
    config.side = _side()
    config.remarks = (
        "The best weight is the best of four on the mean test accuracy, for every rule alike. Digits are easy: from 60 % "
        "on little is lost by pruning, and there the teacher (97.3 %) gains 0.2 points over labels, less than asked for. "
        "Labels of all examples make a student (97.6 %) that is better than the teacher, so that no pruned student "
        "passes it with that teacher's help, as one does on the paper's ImageNet. Batches are drawn with replacement "
        "from what is kept. "
        "Smaller and larger teachers, wrong labels and choices balanced over classes are not measured."
    )
    return config


def _side() -> tuple[dict[str, Any], ...]:
    return (
        check(
            f"{_percent(MANY)} kept at random with the teacher beat all examples without",
            _accuracies(*WEIGHTS[1:]),
            _name(RANDOM, MANY),
            ALL,
            against_metric=_accuracy(0.0),
            at_least=0.0,
        ),
        *(
            check(
                f"ridge regression, {_percent(share)} kept: the error at weight 1 is under half of that at 0",
                "ridge_error_at_1",
                _name(RANDOM, share),
                _name(RANDOM, share),
                against_metric="ridge_error_at_0",
                compare="ratio",
                at_most=0.5,
            )
            for share in (0.3, MANY)
        ),
    )


def _every() -> list[tuple[str, float]]:
    return [(rule, share) for rule in RULES for share in SHARES]


def _accuracy(weight: float) -> str:
    return f"test_accuracy_at_{weight:g}"


def _accuracies(*weights: float) -> tuple[str, ...]:
    return tuple(_accuracy(weight) for weight in weights)


def _percent(share: float) -> str:
    return f"{100 * share:g} %"


def _name(says: str, share: float) -> str:
    return f"{says}, {_percent(share)}"
