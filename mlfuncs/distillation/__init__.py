"""From teacher to student: divergences between predictions, losses over batches, rankings, many teachers, sequences."""

from mlfuncs.distillation.active import dual_head_objective, dual_head_probabilities
from mlfuncs.distillation.batches import correlation, sinkhorn
from mlfuncs.distillation.deviations import divide_by_deviation, mixup_objective, scaled_by_deviation
from mlfuncs.distillation.exits import enhanced_target_cross_entropy, multi_exit
from mlfuncs.distillation.features import cosine_distance, feature_and_output, layer_transfer, normalized_feature
from mlfuncs.distillation.heads import (
    align_gradients,
    binary_kullback_leibler,
    binary_kullback_leibler_difference,
    decoupled,
    dual_head,
)
from mlfuncs.distillation.logits import (
    jensen_shannon,
    knowledge_distillation,
    kullback_leibler,
    reverse_kullback_leibler,
    soft_cross_entropy,
    total_variation,
)
from mlfuncs.distillation.parameters import interpolate_parameters, perturb_parameters
from mlfuncs.distillation.prefixes import hard_soft, prefix_ensemble, remaining_error_weights
from mlfuncs.distillation.rankings import (
    plackett_luce,
    plackett_luce_gradient,
    teacher_ranking,
    weighted_list_likelihood,
)
from mlfuncs.distillation.relations import channel_correlation, self_attention_relation, similarity_preserving
from mlfuncs.distillation.ridge import self_distilled_ridge
from mlfuncs.distillation.sequences import choose_source, sequence_divergence
from mlfuncs.distillation.specialists import blended_teachers, load_balance, mutual, routed_teachers
from mlfuncs.distillation.verticals import multi_teacher, self_paced_logits, vertical_soft_targets

__all__ = [
    "align_gradients",
    "binary_kullback_leibler",
    "binary_kullback_leibler_difference",
    "blended_teachers",
    "channel_correlation",
    "choose_source",
    "correlation",
    "cosine_distance",
    "decoupled",
    "divide_by_deviation",
    "dual_head",
    "dual_head_objective",
    "dual_head_probabilities",
    "enhanced_target_cross_entropy",
    "feature_and_output",
    "hard_soft",
    "interpolate_parameters",
    "jensen_shannon",
    "knowledge_distillation",
    "kullback_leibler",
    "layer_transfer",
    "load_balance",
    "mixup_objective",
    "multi_exit",
    "multi_teacher",
    "mutual",
    "normalized_feature",
    "perturb_parameters",
    "plackett_luce",
    "plackett_luce_gradient",
    "prefix_ensemble",
    "remaining_error_weights",
    "reverse_kullback_leibler",
    "routed_teachers",
    "scaled_by_deviation",
    "self_attention_relation",
    "self_distilled_ridge",
    "self_paced_logits",
    "sequence_divergence",
    "similarity_preserving",
    "sinkhorn",
    "soft_cross_entropy",
    "teacher_ranking",
    "total_variation",
    "vertical_soft_targets",
    "weighted_list_likelihood",
]
