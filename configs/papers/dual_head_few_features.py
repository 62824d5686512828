"""Dual-Head Knowledge Distillation, where its collapse should be: a student of fewer features than there are classes."""

from typing import Any

import ml_collections

from configs.papers.common import arm, check, paper

CE, KD = "CE", "KL, T = 4"
PLAIN, NORM = "BinaryKL", "BinaryKL-Norm"
LOSSES = {PLAIN: "binary_kullback_leibler", NORM: "binary_kullback_leibler_difference"}
CROSS_ENTROPY = "cross_entropy"
ACCURACY = "test_accuracy"
ALONE = {says: (CE, says) for says in LOSSES}
ARMS: dict[str, dict[str, Any]] = {
    CE: {"objective": CROSS_ENTROPY},
    KD: {"objective": f"0.1 * {CROSS_ENTROPY} + 0.9 * kullback_leibler(temperature=4)"},
}


def one_head(loss: str) -> str:
    return f"CE + {loss}, one head"


def two_heads(loss: str) -> str:
    return f"CE + {loss}, two heads"


ALIGNED = f"{two_heads(NORM)}, aligned"
for says, loss in LOSSES.items():
    both = {"objective": f"{CROSS_ENTROPY} + {loss}", "measure_conflict": True}
    ARMS[says] = {"objective": loss}
    ARMS[one_head(says)] = both
    ARMS[two_heads(says)] = {**both, "auxiliary_head": True}
ARMS[ALIGNED] = {**ARMS[two_heads(NORM)], "align": True}


def get_config() -> ml_collections.ConfigDict:
    config = paper(
        title="Dual-Head Knowledge Distillation: Enhancing Logits Utilization with an Auxiliary Head",
        arxiv="2411.08937",
        functions=(
            "distillation.dual_head",
            "distillation.binary_kullback_leibler_difference",
            "distillation.binary_kullback_leibler",
            "distillation.align_gradients",
        ),
        claim="With fewer features than classes, cross-entropy and a loss on the level of the teacher's logits are worse in "
        "one head than the better of them alone, and a head for each mends that.",
        headline="CIFAR-100: cross-entropy and a loss on logits in one head are worse than either; with two heads better "
        "than KD, DKD and DIST",
        study="dual_head_few_features",
        seeds=3,
    )
    config.settings = {
        "shared": {
            "train": 6000,  # pictures, all of which the teacher knows
            "validation": 1000,
            "test": 2000,
            "jitter": 0.3,  # how far an object may be from the middle, 1: as far as it fits
            "teacher_widths": (256, 256),
            "teacher_steps": 3000,
            "teacher_learning_rate": 2e-3,  # falls to 0 along a cosine
            "batch": 64,
        },
        "objective": CROSS_ENTROPY,
        "widths": (128, 16),  # 16 features for 60 classes
        "examples": 3000,
        "steps": 2000,
        "batch": 64,
        "learning_rates": (1e-3, 3e-3, 1e-2),  # all are tried by every arm and seed; they fall to 0 along a cosine
        "auxiliary_head": False,
        "align": False,
        "measure_conflict": False,
        "probed": 64,  # examples on which gradients are compared
    }
    config.smoke = {
        "shared": {"train": 64, "validation": 16, "test": 32, "teacher_widths": (8,), "teacher_steps": 3, "batch": 16},
        "widths": (8, 4),
        "examples": 32,
        "steps": 3,
        "batch": 16,
        "learning_rates": (1e-3, 1e-2),
        "probed": 16,
    }
    config.smoke_arms = (one_head(PLAIN), ALIGNED)
    config.arms = tuple(arm(says, **changed) for says, changed in ARMS.items())
    config.checks, config.side = _checks(), _side()
    config.remarks = (
        "The collapse is there for BinaryKL-Norm, the loss that the paper uses: with cross-entropy in one head it is 4 to 7 "
        "points below cross-entropy alone in every seed, and with two heads 4 points above on average. It is not below "
        "both losses, though: one head lies between them. With BinaryKL one head is on average no worse than "
        "cross-entropy, and two heads are a point better than one, but 6 points worse in one seed of three. Nor is the "
        "reason seen: the two gradients in one head agree a little on average, and features spread over 3.6 to 5.8 "
        "directions with one head or two. Softened logits, KL, stay ahead of all of it. The losses on logits are sums over "
        "60 classes at weight 1, as on CIFAR-100, and no weight was searched: one head may just follow the larger loss. "
        "All arms had the same three rates, chosen by validation; those that read BinaryKL or BinaryKL-Norm all took the "
        "largest. Beyond it, at 3e-2, on one seed that is not judged and after the run, accuracy with BinaryKL-Norm fell "
        "from 0.53 to 0.32 in one head and rose from 0.67 to 0.71 with two. Sizes were chosen on that seed, of two tried, "
        "by what cross-entropy and the teacher reach; the rule was fixed before the run."
    )
    return config


def _checks() -> tuple[dict[str, Any], ...]:
    return (
        check(
            "the teacher knows 5 points more than cross-entropy teaches",
            "teacher_accuracy",
            CE,
            CE,
            against_metric=ACCURACY,
            at_least=0.05,
            condition=True,
        ),
        *(
            check(
                f"CE + {says} in one head a point below the better of them alone",
                ACCURACY,
                one_head(says),
                ALONE[says],
                at_most=-0.01,
            )
            for says in LOSSES
        ),
        *(
            check(
                f"and in every seed below it ({says})",
                ACCURACY,
                one_head(says),
                ALONE[says],
                at_most=0.0,
                over="every seed",
            )
            for says in LOSSES
        ),
        *(
            check(
                f"CE + {says}: two heads a point above one",
                ACCURACY,
                two_heads(says),
                one_head(says),
                at_least=0.01,
            )
            for says in LOSSES
        ),
        *(
            check(
                f"CE + {says}: two heads no worse than the better of them alone",
                ACCURACY,
                two_heads(says),
                ALONE[says],
                at_least=0.0,
            )
            for says in LOSSES
        ),
    )


def _side() -> tuple[dict[str, Any], ...]:
    return (
        *(
            check(f"two heads ({says}) a point above CE", ACCURACY, two_heads(says), CE, at_least=0.01)
            for says in LOSSES
        ),
        check("two heads better than KL", ACCURACY, two_heads(NORM), KD, at_least=0.0),
        check("aligned gradients cost at most 0.3 points", ACCURACY, ALIGNED, two_heads(NORM), at_least=-0.003),
        *(
            check(
                f"CE + {says} in one head: gradients conflict in it on average",
                "head_cosine",
                one_head(says),
                at_most=0.0,
            )
            for says in LOSSES
        ),
        *(check(f"and not below it ({says})", "backbone_cosine", one_head(says), at_least=0.0) for says in LOSSES),
        *(
            check(
                f"CE + {says}: features spread over fewer directions with one head than with two",
                "feature_rank",
                one_head(says),
                two_heads(says),
                at_most=0.0,
            )
            for says in LOSSES
        ),
    )
