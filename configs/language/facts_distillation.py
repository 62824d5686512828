"""A smaller language model from one that knows facts: half the sequences its own, half written once by the teacher."""

import ml_collections

from configs import common
from configs.language import facts as teacher


def get_config() -> ml_collections.ConfigDict:
    config = common.language("distillation", common.facts(), teacher.get_config())
    config.model.width, config.model.depth = 32, 2
    config.steps = 1500
    config.log_every = 50
    config.evaluate_every = 500
    return config
