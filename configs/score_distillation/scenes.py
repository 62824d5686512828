"""A one-step generator of captioned scenes, from the denoiser of `configs.diffusion.scenes`, by distribution matching."""

import ml_collections

from configs import common
from configs.captioning import scenes as reader
from configs.diffusion import scenes as teacher


def get_config() -> ml_collections.ConfigDict:
    config = common.score_distillation("distribution_matching", teacher.get_config())
    config.batch_size = 32
    config.steps = 3000
    config.evaluate_every = 1000
    config.evaluation.reader = reader.get_config()  # samples of one step are less sharp than the exact detector needs
    return config
