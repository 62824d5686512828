"""Consistency training on the standardised latents of a small autoencoder of the digits, with impulsive outliers.

`--config.method=improved` is the baseline; `--config.data.outlier_fraction=0` removes the outliers.
"""

import ml_collections

from configs import common
from configs.autoencoding import digits as autoencoder

MIDDLE_LEVEL = 2.515  # karras_levels(513)[256], the second of two sampling levels


def get_config() -> ml_collections.ConfigDict:
    config = common.consistency("latent_improved", None)
    config.data = {
        "name": "latents",
        "autoencoder": autoencoder.get_config(),
        "std": 0.5,
        "outlier_fraction": 0.005,
        "outlier_factor": 10.0,
        "outlier_seed": 0,
    }
    config.model = common.residual_mlp(width=192)
    config.batch_size = 256
    config.steps = 5000
    config.evaluate_every = 2500
    config.checkpoint.every = 2500
    config.evaluation = common.evaluation(None, samples=2000)  # distance of the latents themselves
    config.evaluation.split = "test"
    config.evaluation.levels = ((80.0,), (80.0, MIDDLE_LEVEL))
    tuned = {"consistency": {"initial_steps": 10, "final_steps": 160}, "model": {"dropout": 0.0}}
    config.methods = {"improved": tuned, "latent_improved": tuned}
    return config
