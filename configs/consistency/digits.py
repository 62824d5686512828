"""Improved consistency training on the 8x8 digits, in about two minutes on two cores.

`--config.method=training` gives the original consistency training at its own published settings; `distillation` and
`easy_tuning` first train the diffusion model of `config.teacher`.
"""

import ml_collections

from configs import common
from configs.classification import digits as classifier
from configs.diffusion import digits as teacher

SECOND_LEVEL = 1.0881706  # karras_levels(18)[7]: also on the fixed grid of distillation


def get_config() -> ml_collections.ConfigDict:
    config = common.consistency("improved", teacher.get_config())
    config.data = {"name": "digits", "held_out": 0}
    config.model = common.residual_mlp()
    config.batch_size = 256
    config.steps = 6000
    config.evaluate_every = 2000
    config.checkpoint.every = 2000
    config.ema_decay = 0.999
    # Ten times the data: with fewer samples the draw can hide which of one step and two is better.
    config.evaluation = common.evaluation(classifier.get_config(), samples=17_970)
    config.evaluation.levels = ((80.0,), (80.0, SECOND_LEVEL))
    config.optimizer.learning_rate = common.from_method(float)
    short = {"consistency": {"final_steps": 160}, "model": {"dropout": 0.0}, "optimizer": {"learning_rate": 1e-3}}
    config.methods = {
        "training": {"optimizer": {"learning_rate": 1e-3}},
        "improved": short,
        "latent_improved": short,
        "distillation": {"optimizer": {"learning_rate": 1e-3}},
        "easy_tuning": {"model": {"dropout": 0.0}, "optimizer": {"learning_rate": 1e-4}},
    }
    return config
