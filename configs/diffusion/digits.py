"""An EDM denoiser of the 8x8 digits: sampled with Heun steps, or the teacher of a consistency model."""

import ml_collections

from configs import common
from configs.classification import digits as classifier


def get_config() -> ml_collections.ConfigDict:
    config = common.base("diffusion")
    config.data = {"name": "digits", "held_out": 0}
    config.model = common.residual_mlp(fourier_scale=16.0, dropout=0.0, norm="scaling")
    config.steps = 6000
    config.evaluate_every = 3000
    config.checkpoint.every = 3000
    config.diffusion = {"mean": -1.2, "std": 1.2, "sigma_data": 0.5, "sigma_min": 0.002, "sigma_max": 80.0}
    config.evaluation = common.evaluation(classifier.get_config(), samples=1797)
    config.evaluation.steps = (18,)  # Heun steps; each but the last asks the network twice
    return config
