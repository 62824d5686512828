"""A denoiser of captioned scenes, one object at 16 pixels: a small U-Net that attends to the words."""

import ml_collections

from configs import common
from configs.classification import scenes as classifier


def get_config() -> ml_collections.ConfigDict:
    config = common.base("diffusion")
    config.data = common.scenes(train_size=16384)
    config.model = common.unet(
        channels=16,
        channel_multipliers=(1, 2, 4),
        attention_resolutions=(4,),
        head_channels=16,
        fourier_scale=16.0,
        dropout=0.0,
        norm="scaling",
        token_condition=True,
        token_width=64,
        token_depth=1,
        cross_attention_resolutions=(8, 4),
    )
    config.condition = common.condition(guidance=3.0)
    config.optimizer.warmup_steps = 200
    config.batch_size = 32
    config.steps = 20_000
    config.evaluate_every = 5000
    config.checkpoint.every = 1000
    config.diffusion = {"mean": -1.2, "std": 1.2, "sigma_data": 0.5, "sigma_min": 0.002, "sigma_max": 80.0}
    config.evaluation = common.evaluation(classifier.get_config(), samples=1024)
    config.evaluation.steps = (18,)
    return config
