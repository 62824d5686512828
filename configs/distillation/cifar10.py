"""A small convolutional network that learns CIFAR-10 from a ResNet-20 with group norm; a GPU or TPU wants to run it."""

import ml_collections

from configs import common
from configs.classification import cifar10


def get_config() -> ml_collections.ConfigDict:
    teacher = cifar10.get_config()
    teacher.model = {"name": "resnet", "channels": (32, 64, 128), "blocks_per_level": 3, "dtype": "bfloat16"}
    teacher.steps = 40_000
    teacher.evaluate_every = 4000
    teacher.checkpoint.every = 4000
    teacher.optimizer.schedule = "cosine"
    teacher.optimizer.clip = 1.0
    config = common.distillation(teacher)
    config.model = {"name": "classifier", "channels": (16, 32, 64), "features": 64, "dtype": "bfloat16"}
    config.batch_size = 128
    config.steps = 40_000
    config.evaluate_every = 4000
    config.checkpoint.every = 4000
    return config
