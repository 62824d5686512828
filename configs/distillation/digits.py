"""A narrow perceptron that learns the 8x8 digits from a convolutional classifier."""

import ml_collections

from configs import common
from configs.classification import digits


def get_config() -> ml_collections.ConfigDict:
    teacher = digits.get_config()
    # A decay of 0.999 would leave a third of the first weights in the average after 1,000 steps.
    teacher.steps, teacher.ema_decay = 2000, 0.99
    config = common.distillation(teacher)
    config.model = {"name": "perceptron", "widths": (16,)}
    config.batch_size = 64
    config.steps = 4000
    config.log_every = 1000
    config.evaluate_every = 4000
    config.checkpoint.every = 4000
    config.ema_decay = 0.99
    config.optimizer.learning_rate = 3e-3
    return config
