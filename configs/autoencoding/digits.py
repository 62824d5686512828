"""A dense 64-64-16 autoencoder of the 8x8 digits."""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    config = common.base("autoencoding")
    config.data = {"name": "digits", "held_out": 360}
    config.model = {"name": "autoencoder", "width": 64, "latent": 16, "dtype": "float32"}
    config.batch_size = 128
    config.steps = 6000
    config.log_every = 500
    config.evaluate_every = 6000
    config.checkpoint.every = 6000
    return config
