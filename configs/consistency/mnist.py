"""Improved consistency training on MNIST (28x28) with a small U-Net, in about twenty minutes on two cores."""

import ml_collections

from configs import common
from configs.classification import mnist as classifier
from configs.diffusion import mnist as teacher

SECOND_LEVEL = 1.0881706  # karras_levels(18)[7]: also on the fixed grid of distillation


def get_config() -> ml_collections.ConfigDict:
    config = common.consistency("improved", teacher.get_config())
    config.data = common.images("mnist")
    config.model = common.unet(channels=16, channel_multipliers=(1, 2, 4), attention_resolutions=(7,))
    config.batch_size = 32
    config.steps = 6000
    config.log_every = 100
    config.evaluate_every = 3000
    config.checkpoint.every = 500
    config.ema_decay = 0.998
    config.evaluation = common.evaluation(classifier.get_config(), samples=1000)
    config.evaluation.reference = 10_000
    config.evaluation.levels = ((80.0,), (80.0, SECOND_LEVEL))
    config.methods = {
        "improved": {"consistency": {"final_steps": 160}, "model": {"dropout": 0.0}},
        "latent_improved": {"consistency": {"final_steps": 160}, "model": {"dropout": 0.0}},
    }
    return config
