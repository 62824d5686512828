"""Consistency models: level curricula, preconditioning, training and distillation losses, trajectories, sampling."""

from mlfuncs.consistency.bootstrap import bootstrap_boundary_loss, bootstrap_loss, sample_level_pairs, signal_step
from mlfuncs.consistency.guided import guided_multistep_target, multi_step_consistency_loss
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
from mlfuncs.consistency.trajectories import (
    gamma_step,
    trajectory_distillation_loss,
    trajectory_jump,
    trajectory_sample,
)

__all__ = [
    "adaptive_robust_scale",
    "bootstrap_boundary_loss",
    "bootstrap_loss",
    "boundary_preconditioning",
    "consistency_distillation_loss",
    "consistency_function",
    "consistency_training_loss",
    "continuous_consistency_loss",
    "doubling_discretization",
    "gamma_step",
    "guided_multistep_target",
    "inverse_gap_weight",
    "karras_levels",
    "lognormal_level_probabilities",
    "multi_step_consistency_loss",
    "multistep_sample",
    "non_scaling_layer_norm",
    "progressive_discretization",
    "robust_consistency_loss",
    "sample_level_pairs",
    "sample_levels",
    "shrinking_gap",
    "signal_step",
    "teacher_decay",
    "trajectory_distillation_loss",
    "trajectory_jump",
    "trajectory_sample",
    "trajectory_tangent",
    "uniform_level_probabilities",
    "unit_weight",
]
