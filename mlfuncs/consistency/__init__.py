"""Consistency models: noise-level curricula, preconditioning, training and distillation losses, sampling."""

from mlfuncs.consistency.levels import (
    adaptive_robust_scale,
    doubling_discretization,
    inverse_gap_weight,
    karras_levels,
    lognormal_level_probabilities,
    progressive_discretization,
    sample_levels,
    shrinking_gap,
    teacher_decay,
    uniform_level_probabilities,
    unit_weight,
)
from mlfuncs.consistency.losses import (
    consistency_distillation_loss,
    consistency_training_loss,
    continuous_consistency_loss,
    robust_consistency_loss,
    trajectory_tangent,
)
from mlfuncs.consistency.networks import boundary_preconditioning, consistency_function, non_scaling_layer_norm
from mlfuncs.consistency.sampling import multistep_sample

__all__ = [
    "adaptive_robust_scale",
    "boundary_preconditioning",
    "consistency_distillation_loss",
    "consistency_function",
    "consistency_training_loss",
    "continuous_consistency_loss",
    "doubling_discretization",
    "inverse_gap_weight",
    "karras_levels",
    "lognormal_level_probabilities",
    "multistep_sample",
    "non_scaling_layer_norm",
    "progressive_discretization",
    "robust_consistency_loss",
    "sample_levels",
    "shrinking_gap",
    "teacher_decay",
    "trajectory_tangent",
    "uniform_level_probabilities",
    "unit_weight",
]
