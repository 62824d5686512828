"""The published settings of each method. A config that leaves a field None gets its method's setting."""

import ml_collections

from experiments.engine import configuration
from experiments.engine.errors import UserError, unknown
from experiments.tasks import common

# Consistency training, arXiv:2303.01469 (CIFAR-10 settings).
TRAINING = {
    "consistency": {
        "loss": "consistency_training_loss",
        "pairs": "grid",
        "discretization": "progressive_discretization",
        "initial_steps": 2,
        "final_steps": 150,
        "proposal": "uniform_level_probabilities",
        "proposal_mean": -1.1,
        "proposal_std": 2.0,
        "distance": "mean_squared",
        "robust_scale": "dimension",
        "weight": "unit_weight",
        "teacher": "average",
        "initial_decay": 0.9,
        "solver": "heun",
        "coupling": "independent",
        "diffusion_fraction": 0.0,
        "diffusion_weight": 0.0,
        "initialize_from_teacher": False,
        "sigma_min": 0.002,
    },
    "model": {"fourier_scale": 16.0, "dropout": 0.0, "norm": "scaling"},
}


def _changed(base: dict, **sections: dict) -> dict:
    return {name: {**base.get(name, {}), **sections.get(name, {})} for name in base.keys() | sections.keys()}


# Improved consistency training, arXiv:2310.14189.
IMPROVED = _changed(
    TRAINING,
    consistency={
        "discretization": "doubling_discretization",
        "initial_steps": 10,
        "final_steps": 1280,
        "proposal": "lognormal_level_probabilities",
        "distance": "pseudo_huber",
        "weight": "inverse_gap_weight",
        "teacher": "student",
    },
    model={"fourier_scale": 0.02, "dropout": 0.3},
)

# Improved latent consistency training, arXiv:2502.01441.
LATENT_IMPROVED = _changed(
    IMPROVED,
    consistency={
        "loss": "robust_consistency_loss",
        "final_steps": 640,
        "distance": "cauchy",
        "robust_scale": "adaptive",
        "coupling": "minibatch_coupling",
        "diffusion_fraction": 0.25,
        "diffusion_weight": 1.0,
    },
    model={"norm": "non_scaling"},
)

# Consistency distillation, arXiv:2303.01469: a fixed grid of 18 levels, teacher decay 0.95 (CIFAR-10).
DISTILLATION = _changed(
    TRAINING,
    consistency={
        "loss": "consistency_distillation_loss",
        "initial_steps": 17,
        "final_steps": 17,
        "discretization": "doubling_discretization",
        "initial_decay": 0.95,
        "initialize_from_teacher": True,
    },
)

# Easy consistency tuning, arXiv:2406.14548: a diffusion model whose gap shrinks to 0 stage by stage.
EASY_TUNING = _changed(
    IMPROVED,
    consistency={
        "pairs": "shrinking_gap",
        "robust_scale": "zero",
        "initialize_from_teacher": True,
        "sigma_min": 0.0,
    },
    model={"dropout": 0.2},
)

METHODS = {
    "distillation": DISTILLATION,
    "easy_tuning": EASY_TUNING,
    "improved": IMPROVED,
    "latent_improved": LATENT_IMPROVED,
    "training": TRAINING,
}

FIELDS = (
    *common.EVALUATION_FIELDS,
    "evaluation.levels",
    "method",
    "teacher",
    *(
        f"consistency.{name}"
        for name in (*TRAINING["consistency"], "coupling_group", "sigma_max", "sigma_data", "stages")
    ),
)


def resolve(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Fills every field that is None: from `config.methods`, this config's tuning, else from the published settings."""
    if config.method not in METHODS:
        raise unknown("config.method", config.method, METHODS)
    settings = dict(configuration.flatten(METHODS[config.method]))
    if "methods" in config:
        chosen = config.methods.to_dict()
        strangers = chosen.keys() - METHODS.keys()
        if strangers:
            raise unknown("method in config.methods", sorted(strangers)[0], METHODS)
        settings.update(configuration.flatten(chosen.get(config.method, {})))
        del config["methods"]
    for path, value in settings.items():
        section, field = path.split(".")
        if section in config and field in config[section] and config[section].get(field) is None:
            with config[section].ignore_type():
                config[section][field] = value
    for path, value in configuration.flatten(config.to_dict()):
        if value is None:
            raise UserError(f"config.{path} has no value, and method {config.method!r} has no setting for it")
    return config
