"""On Teacher Hacking in Language Model Distillation."""

from typing import Any

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
        "truth; fresh sequences or more varied ones prevent it, and a departure from a power law shows it without the truth.",
        headline="Flan-T5 on XSum, WMT and Natural Instructions, 50 epochs: hacking with stored responses, none online",
        study="teacher_hacking",
        seeds=10,
    )
    config.settings = {
        "shared": {},
        "tokens": 8,
        "context": 3,  # tokens before the next: 512 contexts
        "width": 64,  # of truth and student
        "sharpness": 4.0,  # of the truth, times the logits of a random network
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
        "level": 0.085,  # of the proxy, at which golden distances are compared
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
    return config


def _name(count: int) -> str:
    return f"{count} stored contexts"
