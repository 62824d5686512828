"""On Teacher Hacking in Language Model Distillation."""

import ml_collections

from configs.papers.common import arm, check, paper

STORED = (60, 150, 300)
ONLINE, HALF = "fresh contexts", "half fresh, half of 150"


def get_config() -> ml_collections.ConfigDict:
    config = paper(
        title="On Teacher Hacking in Language Model Distillation",
        arxiv="2502.02671",
        functions=(
            "distillation.sequence_divergence",
            "distillation.choose_source",
            "metrics.proxy_gap",
            "metrics.power_law_fit",
        ),
        claim="A student distilled on a fixed set of sequences comes ever closer to its teacher but moves away from the "
        "truth; fresh or more varied sequences prevent it, and a departure from a power law shows it without the truth.",
        headline="Flan-T5 on XSum, WMT and Natural Instructions, 50 epochs: hacking with stored responses, none online",
        study="teacher_hacking",
        seeds=10,
    )
    config.settings = {
        "shared": {},
        "tokens": 8,
        "context": 3,  # tokens before the next: 512 contexts
        "width": 64,  # of truth and student
        "sharpness": 4.0,  # of the truth, times the logits of a random network: the teacher ends about 0.13 nats from it
        "teacher": {"width": 128, "contexts": 400, "samples": 12, "steps": 250, "learning_rate": 3e-3},
        "student": {"samples": 60, "steps": 60},
        "divergence": "forward",
        "stored": 150,
        "fresh_fraction": 0.0,
        "batch": 32,
        "steps": 1500,
        "learning_rate": 2e-3,
        "every": 50,  # steps between measurements
        "fitted": 8,  # measurements that the power law is fitted to
        "levels": (0.085, 0.15),  # of the proxy, at which golden distances are compared
    }
    config.smoke = {
        "tokens": 3,
        "context": 2,
        "teacher": {"width": 8, "contexts": 6, "steps": 3},
        "student": {"samples": 4, "steps": 2},
        "width": 4,
        "stored": 5,
        "batch": 4,
        "steps": 8,
        "every": 2,
        "fitted": 2,
    }
    config.smoke_arms = (_name(150), ONLINE)
    config.arms = (
        *(arm(_name(count), stored=count) for count in STORED),
        arm(ONLINE, fresh_fraction=1.0),
        arm(HALF, fresh_fraction=0.5),
    )
    matched, few, some = "golden_at_0.085", _name(150), _name(300)
    config.checks = (
        check("150 stored: the distance to the truth rises 20 % above its minimum", "golden_ratio", few, at_least=1.2),
        check(
            "as far from the teacher, 150 stored are 20 % farther from the truth than fresh ones",
            matched,
            few,
            ONLINE,
            compare="ratio",
            at_least=1.2,
        ),
        check(
            "as far from the teacher, 150 stored are farther from the truth than 300", matched, few, some, at_least=0.0
        ),
        check(
            "as far from the teacher, 300 stored are no nearer to the truth than fresh ones",
            matched,
            some,
            ONLINE,
            at_least=0.0,
        ),
        check(
            "fresh: the power law of steps 50 to 400 foretells the distance to the teacher at 1,500 within 1.4",
            "excess",
            ONLINE,
            at_least=1 / 1.4,
            at_most=1.4,
        ),
        check("150 stored: it is 1.5 times what the law foretells", "excess", few, at_least=1.5),
    )
    config.side = (
        check("fresh: the distance to the truth rises no more than 5 %", "golden_ratio", ONLINE, at_most=1.05),
        check(
            "the same at 0.15 nats from the teacher: 150 stored are 20 % farther from the truth than fresh ones",
            "golden_at_0.15",
            few,
            ONLINE,
            compare="ratio",
            at_least=1.2,
        ),
        check("60 stored: farther from the truth in the end than 150", "golden", _name(60), few, at_least=0.0),
        check("half fresh: nearer to the truth in the end than 150 stored alone", "golden", HALF, few, at_most=0.0),
        check(
            "at 0.15 nats from the teacher, half fresh are nearer to the truth than 150 stored",
            "golden_at_0.15",
            HALF,
            few,
            at_most=0.0,
        ),
        check("150 stored: hacked in the sense of the proxy gap", "hacked", few, at_least=1.0, over="every seed"),
    )
    config.remarks = (
        "Golden is the distance to the truth, KL(truth || student), proxy that to the teacher; excess is the last proxy "
        "over what the power law foretells. The level of 0.085 was set before anything was run, and 9 of 10 students of "
        "150 contexts end above it (0.111 on average, those of 60 at 0.209): the two checks that need it there can't be "
        "measured, which counts as failing. At 0.15, which was added after that was seen and which all but the students "
        "of 60 reach, the order is that of the paper, 150 stored contexts 14 % worse than fresh ones. The distance to the "
        "truth rises with fresh contexts too: a student that comes close to its teacher moves towards the teacher's own "
        "distance, 0.132. It falls lower before (0.056 on average against 0.080). With fresh contexts the proxy falls "
        "faster than its law, not along it. The sharpness of the truth was set by the teacher's own distance, 0.1 with "
        "the two other seeds of a trial."
    )
    return config


def _name(count: int) -> str:
    return f"{count} stored contexts"
