"""A classifier of the shape and colour of one object, whose penultimate features judge generated scenes."""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    config = common.base("classification")
    config.data = common.scenes()
    config.model = {"name": "classifier", "features": 64, "dropout": 0.2, "dtype": "float32"}
    config.batch_size = 128
    config.steps = 1500
    config.log_every = 250
    config.evaluate_every = 1500
    return config
