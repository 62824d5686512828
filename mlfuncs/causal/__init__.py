"""Causal structure from data with dropouts: tests and scores by deletion, and the searches that use them."""

from mlfuncs.causal.dropouts import logistic_dropout_probability, sample_dropout
from mlfuncs.causal.greedy import greedy_equivalence_search
from mlfuncs.causal.independence import (
    fisher_z_p_value,
    zero_deleted_independence_test,
    zero_deleted_p_values,
    zero_deleted_partial_correlation,
)
from mlfuncs.causal.scores import bic_score_change, rescale_partial_correlation, zero_deleted_score_changes
from mlfuncs.causal.skeleton import equivalence_class, orient_skeleton, pc_skeleton

__all__ = [
    "bic_score_change",
    "equivalence_class",
    "fisher_z_p_value",
    "greedy_equivalence_search",
    "logistic_dropout_probability",
    "orient_skeleton",
    "pc_skeleton",
    "rescale_partial_correlation",
    "sample_dropout",
    "zero_deleted_independence_test",
    "zero_deleted_p_values",
    "zero_deleted_partial_correlation",
    "zero_deleted_score_changes",
]
