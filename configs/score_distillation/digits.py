"""A one-step generator of the 8x8 digits, from their diffusion model, by distribution matching."""

import ml_collections

from configs import common
from configs.diffusion import digits as teacher


def get_config() -> ml_collections.ConfigDict:
    config = common.score_distillation("distribution_matching", teacher.get_config())
    config.batch_size = 128
    config.steps = 3000
    config.evaluate_every = 1000
    return config
