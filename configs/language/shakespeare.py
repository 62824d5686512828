"""A character model of Shakespeare, or of the package's passages where `tinyshakespeare.txt` is not at hand."""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    config = common.language("training", common.text(length=65))
    config.model.width, config.model.depth = 64, 2
    config.optimizer.warmup_steps = 50
    config.steps = 1000
    config.log_every = 50
    config.evaluate_every = 500
    config.sampling.temperature = 0.8
    return config
