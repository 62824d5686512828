"""An EDM denoiser of CIFAR-10 with the U-Net of the consistency config, its teacher."""

import ml_collections

from configs import common
from configs.classification import cifar10 as classifier


def get_config() -> ml_collections.ConfigDict:
    config = common.base("diffusion")
    config.data = common.images("cifar10", flip=True)
    config.model = common.unet(
        channels=128,
        channel_multipliers=(1, 2, 2),
        blocks_per_level=4,
        attention_resolutions=(16,),
        fourier_scale=16.0,
        dropout=0.13,
        norm="scaling",
        dtype="bfloat16",
    )
    config.batch_size = 512
    config.steps = 400_000
    config.evaluate_every = 20_000
    config.checkpoint.every = 5000
    config.ema_decay = 0.9999
    config.diffusion = {"mean": -1.2, "std": 1.2, "sigma_data": 0.5, "sigma_min": 0.002, "sigma_max": 80.0}
    config.evaluation = common.evaluation(classifier.get_config(), samples=10_000)
    config.evaluation.steps = (18,)
    return config
