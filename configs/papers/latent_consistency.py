"""Improved Training Technique for Latent Consistency Models."""

import ml_collections

from configs.consistency import latent_digits
from configs.papers.common import arm, check, paper

BASELINE, METHOD = "improved, outliers", "latent-improved, outliers"
BASELINE_CLEAN, METHOD_CLEAN = "improved, no outliers", "latent-improved, no outliers"
ABLATIONS = {
    "pseudo-Huber for Cauchy": {"consistency": {"distance": "pseudo_huber", "robust_scale": "dimension"}},
    "fixed scale c": {"consistency": {"robust_scale": "dimension"}},
    "no diffusion loss": {"consistency": {"diffusion_fraction": 0.0}},
    "independent noise": {"consistency": {"coupling": "independent"}},
    "layer norm with gain": {"model": {"norm": "scaling"}},
}


def get_config() -> ml_collections.ConfigDict:
    config = paper(
        title="Improved Training Technique for Latent Consistency Models",
        arxiv="2502.01441",
        functions=(
            "consistency.robust_consistency_loss",
            "consistency.adaptive_robust_scale",
            "robust.cauchy",
            "transport.minibatch_coupling",
            "consistency.non_scaling_layer_norm",
        ),
        claim="Impulsive outliers in latents break consistency training; a Cauchy loss and four more changes repair it.",
        headline="FID in 1 / 2 steps, from improved training to theirs: CelebA-HQ 37.15 / 16.84 to 7.27 / 6.93, "
        "LSUN Church 52.45 / 24.67 to 8.87 / 7.71",
        study="latent_consistency",
        seeds=3,
    )
    run = latent_digits.get_config()
    run.evaluate_every = run.checkpoint.every = run.steps
    run.log_every = 1000
    config.settings.update({"run": run, "draws": 0, "batch": 128, "levels": 161})
    config.smoke = {
        "draws": 2,
        "batch": 8,
        "levels": 11,
        "run": {
            "steps": 6,
            "log_every": 6,
            "batch_size": 16,
            "model": {"width": 16, "depth": 1},
            "evaluate_every": 6,
            "evaluation": {"samples": 64, "block": 64},
            "data": {"autoencoder": {"steps": 4, "log_every": 4, "evaluate_every": 0, "checkpoint": {"every": 4}}},
        },
    }
    clean = {"outlier_fraction": 0.0}
    config.arms = (
        arm(BASELINE, run={"method": "improved"}, draws=32),
        arm(METHOD),
        arm(BASELINE_CLEAN, run={"method": "improved", "data": clean}),
        arm(METHOD_CLEAN, run={"data": clean}),
        *(arm(f"latent-improved, {name}", run=change) for name, change in ABLATIONS.items()),
    )
    config.smoke_arms = (METHOD,)
    distance = "frechet_distance_1"
    config.checks = (
        check(
            "one-step distance at most 0.7 of the baseline's, with outliers",
            distance,
            METHOD,
            BASELINE,
            compare="ratio",
            at_most=0.7,
            over="every seed",
        ),
    )
    config.side = (
        check(
            "without outliers the baseline's distance is smaller",
            distance,
            BASELINE_CLEAN,
            BASELINE,
            compare="ratio",
            at_most=1.0,
        ),
        check(
            "coupling lowers the variance of an example's gradient over the noise",
            "gradient_variance_coupled",
            BASELINE,
            BASELINE,
            against_metric="gradient_variance",
            compare="ratio",
            at_most=1.0,
            over="every seed",
        ),
        *(
            check(f"worse with {name}", distance, f"latent-improved, {name}", METHOD, compare="ratio", at_least=1.0)
            for name in ABLATIONS
        ),
    )
    config.remarks = (
        "The outliers of these 16-dimensional latents hardly harm the baseline (0.18 with, 0.18 without), so that there is "
        "little to repair. The method's own seeds spread "
        "(0.19 to 0.37 with outliers); with independent noise they do not (0.22), which points at the coupling: batches of "
        "256 in so few dimensions change the law of the noise that an example sees."
    )
    return config
