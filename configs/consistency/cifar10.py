"""Improved consistency training on CIFAR-10 at the paper's settings (arXiv:2310.14189): a job for several accelerators.

The paper's network is NCSN++ with 56M parameters; the U-Net here is of the same size and kind.
"""

import ml_collections

from configs import common
from configs.classification import cifar10 as classifier
from configs.diffusion import cifar10 as teacher


def get_config() -> ml_collections.ConfigDict:
    config = common.consistency("improved", teacher.get_config())
    config.data = common.images("cifar10", flip=True)
    config.model = common.unet(
        channels=128,
        channel_multipliers=(2, 2, 2),
        blocks_per_level=4,
        attention_resolutions=(16,),
        dtype="bfloat16",
    )
    config.batch_size = 1024
    config.steps = 400_000
    config.log_every = 500
    config.evaluate_every = 20_000
    config.checkpoint.every = 5000
    config.ema_decay = 0.99993
    config.optimizer = common.optimizer("radam", 1e-4)
    config.evaluation = common.evaluation(classifier.get_config(), samples=10_000)
    config.evaluation.levels = ((80.0,), (80.0, 0.821))
    return config
