"""A small denoiser of large plain shapes on grey, told their colour and shape or one of them or neither.

What experiments with prompts need at the least cost: words are learnt within minutes of one core.
"""

import ml_collections

from configs import common
from configs.diffusion import scenes


def get_config() -> ml_collections.ConfigDict:
    config = scenes.get_config()
    config.data = common.scenes(
        grid=1,
        jitter=0.2,
        mention=("color", "shape"),
        unsaid=0.2,
        only={"size": ("large",), "style": ("plain",), "background": ("grey",)},
    )
    config.model = common.dit(
        patch=4,
        width=96,
        depth=3,
        fourier_scale=16.0,
        dropout=0.0,
        token_condition=True,
        token_width=64,
        token_depth=0,
    )
    config.optimizer.update({"learning_rate": 2e-3, "schedule": "cosine", "warmup_steps": 100})
    config.ema_decay = 0.995
    config.steps = 3000
    config.evaluate_every = 0
    config.log_every = 250
    config.checkpoint.every = 1000
    config.evaluation.features = {}
    config.evaluation.steps = (12,)
    return config
