"""A language model that learns facts, and is asked for them in other words."""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    config = common.language("training", common.facts())
    config.model.width, config.model.depth = 64, 2
    config.steps = 1000
    config.log_every = 50
    config.evaluate_every = 500
    return config
