"""A narrow perceptron that learns MNIST from a convolutional classifier."""

import ml_collections

from configs import common
from configs.classification import mnist


def get_config() -> ml_collections.ConfigDict:
    config = common.distillation(mnist.get_config())
    config.model = {"name": "perceptron", "widths": (32,)}
    config.batch_size = 128
    config.steps = 3000
    config.log_every = 500
    config.evaluate_every = 1500
    config.checkpoint.every = 1500
    return config
