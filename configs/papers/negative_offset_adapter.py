"""SpeedUpNet: A Plug-and-Play Adapter Network for Accelerating Text-to-Image Diffusion Models."""

from typing import Any

import ml_collections

from configs.diffusion import simple_scenes
from configs.papers.common import arm, check, paper

ADAPTER, UNGUIDED = "adapter, 4 steps", "base, 4 steps"
GUIDED, REFERENCE = "guided base, 4 steps of 2 evaluations", "guided base, 25 steps"


def get_config() -> ml_collections.ConfigDict:
    config = paper(
        title="SpeedUpNet: A Plug-and-Play Adapter Network for Accelerating Text-to-Image Diffusion Models",
        arxiv="2312.08887",
        functions=(
            "attention.negative_offset_attention",
            "consistency.multi_step_consistency_loss",
            "consistency.guided_multistep_target",
            "guidance.classifier_free_guidance",
        ),
        claim="A small adapter of cross-attention replaces guidance and most steps, obeys negative prompts, and works on "
        "other fine-tunes of its base.",
        headline="Stable Diffusion 1.5: 4 steps in place of 25 guided ones, more than 10 times as fast (the numbers of its "
        "tables were not available)",
        study="negative_offset_adapter",
        seeds=3,
    )
    teacher = simple_scenes.get_config()
    tuned = teacher.data.copy_and_resolve_references()
    tuned.only["style"] = ("striped",)
    tuned.seed, tuned.train_size = 1, 2048
    config.settings = {
        "shared": {
            "cache_dir": "",
            "teacher": teacher,  # one for all seeds
            "scale": 2.0,  # of guidance
            "steps": 4,
            "substeps": 3,  # of the base for each of the few steps
            "reference_steps": 25,
            "adapter": {"steps": 1200, "batch": 16, "learning_rate": 1e-3, "empty": 0.5},
            "tuning": {"data": tuned, "steps": 300, "batch": 16, "learning_rate": 5e-4},
            "samples": 240,
        },
        "sampler": "adapter",
    }
    config.smoke = {
        "shared": {
            "teacher": {
                "steps": 4,
                "log_every": 4,
                "batch_size": 8,
                "checkpoint": {"every": 4},
                "model": {"width": 16, "depth": 1, "heads": 1},
                "data": {"train_size": 64, "test_size": 64},
            },
            "reference_steps": 5,
            "adapter": {"steps": 2, "batch": 8},
            "tuning": {"data": {"train_size": 64, "test_size": 64}, "steps": 2, "batch": 8},
            "samples": 8,
        },
    }
    config.arms = (
        arm(ADAPTER),
        arm(UNGUIDED, sampler="unguided"),
        arm(GUIDED, sampler="guided"),
        arm(REFERENCE, sampler="reference"),
    )
    config.smoke_arms = (ADAPTER, UNGUIDED, REFERENCE)
    error, rate = "squared_error", "negative_rate"
    every: Any = {"over": "every seed"}
    ratio: Any = {"compare": "ratio", **every}
    config.checks = (
        check("nearer to the reference than the base in 4 steps", error, ADAPTER, UNGUIDED, at_most=1.0, **ratio),
        check("nearer than the guided base in 4 steps", error, ADAPTER, GUIDED, at_most=1.0, **ratio),
        check("shows the unwanted colour half as often as the base", rate, ADAPTER, UNGUIDED, at_most=0.5, **ratio),
        check(
            "on the fine-tune keeps four fifths of its gain in accuracy",
            "tuned_gain",
            ADAPTER,
            ADAPTER,
            against_metric="gain",
            at_least=0.8,
            **ratio,
        ),
        check("there is a gain in accuracy", "gain", ADAPTER, at_least=0.02, condition=True, **every),
    )
    config.side = (
        check("as often right as the reference, to 5 points", "accuracy", ADAPTER, REFERENCE, at_least=-0.05),
        check("more often right than the guided base in 4 steps", "accuracy", ADAPTER, GUIDED, at_least=0.0),
        check(
            "on the fine-tune nearer to its reference than the base",
            "tuned_squared_error",
            ADAPTER,
            UNGUIDED,
            compare="ratio",
            at_most=1.0,
        ),
        check("the reference obeys the negative prompt", rate, REFERENCE, UNGUIDED, compare="ratio", at_most=0.5),
    )
    config.remarks = (
        "The adapter takes over the guided colour, not the guided shape: its samples all have the right colour (seed 0), "
        "as the base's do, but the right shape less often than these, so that there is a loss in accuracy and no gain to "
        "keep on the fine-tune. It had 1,200 updates of 16, fewer than are usual, and always learns whole steps of the "
        "sampler, of 3 substeps, where the paper's target becomes longer in training; whether more updates would do is "
        "not known. One teacher for all seeds, of 3,000 updates of 32. On seed 0 were changed: the scale of guidance, "
        "from 3, at which the reference itself lost its shapes, prompts that were to be right, which had a negative "
        "colour too, and the weight of levels, from a uniform one with 600 updates (accuracy 0.29, error 0.011). That of "
        "the base's training is our choice; the authors' is not public. The squared error is in values of [-1, 1]; 120 "
        "samples of each kind of prompt."
    )
    return config
