"""Tuning Timestep-Distilled Diffusion Models Using Pairwise Sample Optimization (PSO)."""

import ml_collections

from configs.consistency import digits
from configs.papers.common import arm, check, paper

BASE, ONLINE, UNCLIPPED = "few-step model", "online pairs", "online pairs, ratios not clipped"
DENOISING, FARTHER = "denoising", "denoising, to about the reward of pairs"


def get_config() -> ml_collections.ConfigDict:
    config = paper(
        title="Tuning Timestep-Distilled Diffusion Models Using Pairwise Sample Optimization",
        arxiv="2410.03190",
        functions=(
            "preference.pairwise_sample_loss",
            "preference.preference_signs",
            "diffusion.ancestral_transition",
            "diffusion.gaussian_log_prob",
        ),
        claim="A few-step distilled model is tuned to a reward on pairs of its own samples, and stays sharp in few steps, "
        "which the diffusion loss makes blurry.",
        headline="SDXL-Turbo and SDXL-DMD2: PickScore and other rewards above the distilled model's and those of "
        "diffusion-loss and DPO tuning at the same 4 steps (not looked up again in its tables)",
        study="pairwise_sample_optimization",
        seeds=3,
    )
    run = digits.get_config()
    run.evaluate_every, run.checkpoint.every, run.log_every = 0, run.steps, 1000
    config.settings.update(
        {
            "run": run,
            "method": "online",
            "levels": (80.0, 5.0, 1.5, 0.5),  # of the four steps
            "share": 0.2,  # of the digits, those with most ink
            "steps": 500,
            "batch": 32,
            "learning_rate": 1e-4,
            "gradient_norm": 1.0,
            "beta": 50.0,
            "clip": 0.1,
            "samples": 2000,
        }
    )
    short = {"steps": 4, "log_every": 4, "evaluate_every": 0, "checkpoint": {"every": 4}}
    config.smoke = {
        "run": {**short, "batch_size": 16, "model": {"width": 16, "depth": 1}, "evaluation": {"features": short}},
        "steps": 2,
        "batch": 8,
        "samples": 64,
    }
    config.arms = (
        arm(BASE, method="none"),
        arm(DENOISING, method="denoising", learning_rate=1e-5),
        arm(FARTHER, method="denoising", learning_rate=3e-5),
        arm(ONLINE),
        arm(UNCLIPPED, clip=None),
    )
    distance, denoised = "frechet_distance", (DENOISING, FARTHER)
    config.checks = (
        check(
            "pairs close half of the gap in reward to the most inked digits",
            "gap_closed",
            ONLINE,
            at_least=0.5,
            over="every seed",
        ),
        check(
            "and are no farther from those digits than the better denoising",
            distance,
            ONLINE,
            denoised,
            compare="ratio",
            at_most=1.0,
            best="min",
            over="every seed",
        ),
        check(
            "denoising to about that reward takes four-step samples farther from those digits than they were",
            distance,
            FARTHER,
            BASE,
            compare="ratio",
            at_least=1.0,
            over="every seed",
        ),
    )
    config.side = (
        check(
            "so does denoising that stops where it is nearest to them",
            distance,
            DENOISING,
            BASE,
            compare="ratio",
            at_least=1.0,
        ),
        check("denoising closes as much of the gap as pairs", "gap_closed", FARTHER, ONLINE, at_least=0.0),
        check("denoising makes samples less sharp", "sharpness", FARTHER, BASE, at_most=0.0),
        check("pairs stay as sharp as the untuned model", "sharpness", ONLINE, BASE, at_least=0.0),
        check(
            "without clipping samples end farther from those digits",
            distance,
            UNCLIPPED,
            ONLINE,
            compare="ratio",
            at_least=1.0,
        ),
    )
    return config
