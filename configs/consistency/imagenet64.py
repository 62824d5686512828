"""Improved consistency training on ImageNet 64x64 at the paper's settings (arXiv:2310.14189): a job for a pod.

The images are `imagenet_resized/64x64` of tensorflow-datasets. The paper's network is the ADM U-Net with 296M parameters;
the U-Net here has its channels, depth and attention.
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    config = common.consistency("improved", None)
    config.data = common.images("imagenet_resized/64x64")
    config.model = common.unet(
        channels=192,
        channel_multipliers=(1, 2, 3, 4),
        blocks_per_level=3,
        attention_resolutions=(32, 16, 8),
        head_channels=64,
        class_condition=True,
        dtype="bfloat16",
        remat=True,
    )
    config.batch_size = 4096
    config.steps = 800_000
    config.log_every = 500
    config.evaluate_every = 0  # judge with FID outside, from experiments.sample
    config.checkpoint.every = 2000
    config.ema_decay = 0.99997
    config.optimizer = common.optimizer("radam", 1e-4)
    config.evaluation = common.evaluation(None, samples=10_000)
    config.evaluation.levels = ((80.0,), (80.0, 1.526))
    config.methods = {"improved": {"model": {"dropout": 0.2}}}
    return config
