"""A narrow perceptron that learns the 8x8 digits from a convolutional classifier."""

import ml_collections

from configs import common
from configs.classification import digits


def get_config() -> ml_collections.ConfigDict:
    config = common.distillation(digits.get_config())
    config.model = {"name": "perceptron", "widths": (16,)}
    config.batch_size = 64
    config.steps = 4000
    config.log_every = 1000
    config.evaluate_every = 4000
    config.checkpoint.every = 4000
    config.ema_decay = 0.99
    config.optimizer.learning_rate = 3e-3
    return config
