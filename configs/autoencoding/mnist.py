"""A dense autoencoder of MNIST with 32 latents."""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    config = common.base("autoencoding")
    config.data = common.images("mnist")
    config.model = {"name": "autoencoder", "width": 256, "latent": 32, "dtype": "float32"}
    config.batch_size = 256
    config.steps = 6000
    config.log_every = 500
    config.evaluate_every = 6000
    config.checkpoint.every = 6000
    return config
