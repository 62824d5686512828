"""Improved consistency training on the 8x8 digits, in about two minutes on two cores.

`--config.method=training` gives the original consistency training at its own published settings; `distillation` and
`easy_tuning` first train the diffusion model of `config.teacher`.
"""

import ml_collections

from configs import common
from configs.classification import digits as classifier
from configs.diffusion import digits as teacher


def get_config() -> ml_collections.ConfigDict:
    config = common.consistency("improved", teacher.get_config())
    config.data = {"name": "digits", "held_out": 0}
    config.model = common.residual_mlp()
    config.batch_size = 256
    config.steps = 6000
    config.evaluate_every = 2000
    config.checkpoint.every = 2000
    config.ema_decay = 0.999
    config.evaluation = common.evaluation(classifier.get_config(), samples=1797)
    config.evaluation.levels = ((80.0,), (80.0, 0.8))
    config.methods = {
        "improved": {"consistency": {"final_steps": 160}, "model": {"dropout": 0.0}},
        "latent_improved": {"consistency": {"final_steps": 160}, "model": {"dropout": 0.0}},
    }
    return config
