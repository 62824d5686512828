"""A classifier of CIFAR-10, whose penultimate features judge generated images (not the Inception features of FID)."""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    config = common.base("classification")
    config.data = common.images("cifar10", flip=True)
    config.model = {"name": "classifier", "features": 128, "dropout": 0.2, "dtype": "float32"}
    config.batch_size = 128
    config.steps = 8000
    config.evaluate_every = 4000
    return config
