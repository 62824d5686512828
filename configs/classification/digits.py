"""A classifier of the 8x8 digits, whose penultimate features judge generated digits."""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    config = common.base("classification")
    config.data = {"name": "digits", "held_out": 360}
    config.model = {"name": "classifier", "features": 32, "dropout": 0.2, "dtype": "float32"}
    config.batch_size = 128
    config.steps = 1000
    config.log_every = 250
    return config
