"""An EDM denoiser of MNIST with a small U-Net."""

import ml_collections

from configs import common
from configs.classification import mnist as classifier


def get_config() -> ml_collections.ConfigDict:
    config = common.base("diffusion")
    config.data = common.images("mnist")
    config.model = common.unet(
        channels=16,
        channel_multipliers=(1, 2, 4),
        attention_resolutions=(7,),
        fourier_scale=16.0,
        dropout=0.0,
        norm="scaling",
    )
    config.batch_size = 64
    config.steps = 5000
    config.evaluate_every = 5000
    config.diffusion = {"mean": -1.2, "std": 1.2, "sigma_data": 0.5, "sigma_min": 0.002, "sigma_max": 80.0}
    config.evaluation = common.evaluation(classifier.get_config(), samples=1000)
    config.evaluation.reference = 10000
    config.evaluation.steps = (18,)
    return config
