"""Understanding the Role of Mixup in Knowledge Distillation: An Empirical Study."""

from typing import Any

import ml_collections

from configs.papers import digits_noise
from configs.papers.common import arm, check, entry, paper
from configs.papers.digits_noise import CLEAN, CROSS_ENTROPY

CE, KD, SCALED = "CE", "KL, T = 4", "deviation-scaled"
PLAIN, MIXED = "plain teacher", "mixup teacher"
NONE, FULL, PARTIAL = "no mixup", "mixup", "10 % mixup"
COLUMN = "no noise, teacher of 1500 steps"
OBJECTIVES = {
    CE: CROSS_ENTROPY,
    KD: digits_noise.distilled("kullback_leibler(temperature=4)"),
    SCALED: "mixup_objective",
}
TEACHERS = {PLAIN: 0.0, MIXED: 1.0}
STUDENTS = {NONE: 0.0, FULL: 1.0, PARTIAL: 0.1}


def get_config() -> ml_collections.ConfigDict:
    config = paper(
        title="Understanding the Role of Mixup in Knowledge Distillation: An Empirical Study",
        arxiv="2211.03946",
        functions=(
            "distillation.mixup_objective",
            "distillation.scaled_by_deviation",
            "distillation.divide_by_deviation",
            "vision.mixup",
            "vision.mixup_coefficients",
        ),
        claim="A teacher trained with mixup makes worse students; mixup for a few of the student's examples, and logits "
        "divided by their own deviation in place of a temperature, make better ones.",
        headline="CIFAR-100 and ImageNet: partial mixup with deviation scaling beats KD and KD with mixup",
        study="mixup_distillation",
        seeds=10,
    )
    config.settings = digits_noise.settings(**digits_noise.SETTINGS[CLEAN])
    config.settings.shared.teacher_steps = 1500
    config.smoke = digits_noise.smoke()
    config.smoke_arms = (_name(SCALED, FULL, PLAIN), _name(KD, PARTIAL, MIXED))
    config.arms = tuple(
        arm(_name(says, mixup, teacher), objective=OBJECTIVES[says], mixup=STUDENTS[mixup], **_shared(teacher))
        for says, mixup, teacher in _every()
    )
    config.entries = tuple(
        entry(digits_noise.TABLE, _row(says, mixup, teacher), COLUMN, _name(says, mixup, teacher))
        for says, mixup, teacher in _every()
    )
    accuracy = "test_accuracy"
    config.checks = (
        *(
            check(
                f"{says}: the plain teacher makes students 0.3 points better",
                accuracy,
                _name(says, NONE, PLAIN),
                _name(says, NONE, MIXED),
                at_least=0.003,
            )
            for says in (KD, SCALED)
        ),
        check(
            "plain teacher: deviation scaling 0.5 points above KL",
            accuracy,
            _name(SCALED, NONE, PLAIN),
            _name(KD, NONE, PLAIN),
            at_least=0.005,
        ),
        check(
            "mixup of all of the student's examples with scaling is no worse than scaling alone",
            accuracy,
            _name(SCALED, FULL, PLAIN),
            _name(SCALED, NONE, PLAIN),
            at_least=0.0,
        ),
    )
    config.side = (
        check(
            "so is mixup of a tenth of them",
            accuracy,
            _name(SCALED, PARTIAL, PLAIN),
            _name(SCALED, NONE, PLAIN),
            at_least=0.0,
        ),
        check(
            "the mixup teacher is no less accurate itself",
            "teacher_accuracy",
            _name(KD, NONE, MIXED),
            _name(KD, NONE, PLAIN),
            at_least=0.0,
        ),
        check(
            "and its answers have more entropy at T = 4",
            "teacher_entropy_at_4",
            _name(KD, NONE, MIXED),
            _name(KD, NONE, PLAIN),
            at_least=0.0,
        ),
        check(
            "deviation scaling evens the two out: entropies differ by less than 0.1",
            "teacher_entropy_scaled",
            _name(KD, NONE, MIXED),
            _name(KD, NONE, PLAIN),
            at_least=-0.1,
            at_most=0.1,
        ),
    )
    config.remarks = (
        "Deviation scaling gains here, and most with mixup of all the student's examples, the paper's choice is a tenth. "
        "That a mixup teacher makes worse students shows with scaling and not with KL at T = 4, a tenth of a point. Scaling "
        "brings the entropies of the two teachers together, so entropy alone does not explain what is lost. One split, "
        "nothing was searched."
    )
    return config


def _every() -> list[tuple[str, str, str]]:
    """Objective, student's mixup, teacher; cross-entropy has none."""
    return [
        (says, mixup, teacher)
        for says in OBJECTIVES
        for mixup in STUDENTS
        for teacher in TEACHERS
        if says != CE or teacher == PLAIN
    ]


def _shared(teacher: str) -> dict[str, Any]:
    return {"shared": {"teacher_mixup": TEACHERS[teacher]}}


def _row(says: str, mixup: str, teacher: str) -> str:
    told = [says, *([mixup] if mixup != NONE else []), *([teacher] if teacher != PLAIN else [])]
    return ", ".join(told)


def _name(says: str, mixup: str, teacher: str) -> str:
    return ", ".join([says, mixup, *([teacher] if says != CE else [])])
