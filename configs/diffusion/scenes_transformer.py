"""The scenes of `scenes.py` with a small diffusion transformer in place of the U-Net."""

import ml_collections

from configs import common
from configs.diffusion import scenes


def get_config() -> ml_collections.ConfigDict:
    config = scenes.get_config()
    config.model = common.dit(
        fourier_scale=16.0, dropout=0.0, token_condition=True, token_width=64, token_depth=1, width=64
    )
    return config
