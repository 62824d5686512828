"""A reader of scenes: the words of a caption from a picture, blurred and noisy ones too."""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    config = common.base("captioning")
    config.data = common.scenes(train_size=65536)
    config.model = {
        "name": "classifier",
        "channels": (32, 64, 128),
        "features": 256,
        "dropout": 0.0,
        "dtype": "float32",
    }
    # Largest standard deviations: of a Gaussian, in pixels, and of noise, in values of [-1, 1].
    config.corruption = {"blur": 1.5, "noise": 0.2}
    config.optimizer.schedule = "cosine"
    config.batch_size = 128
    config.steps = 6000
    config.log_every = 250
    config.evaluate_every = 6000
    config.evaluation = {"blurs": (0.0, 0.5, 1.0, 1.5), "pictured": 16}
    return config
