"""Low-rank and sparse adaptation of trained weights, and linear layers with structure."""

from mlfuncs.adapters.structured import grouped_linear, masked_linear, vertical_connection_mask
from mlfuncs.adapters.weights import Select as Select
from mlfuncs.adapters.weights import (
    adaptive_low_rank,
    adaptive_low_rank_gradients,
    gather_values,
    low_rank_row_scale,
    magnitude_threshold,
    masked_indices,
    merge_low_rank,
    output_dependent_scale,
    reselect_mask,
    scatter_values,
    small_weight_mask,
    sparse_nuclear_penalty,
    threshold_learning_rate,
)

__all__ = [
    "adaptive_low_rank",
    "adaptive_low_rank_gradients",
    "gather_values",
    "grouped_linear",
    "low_rank_row_scale",
    "magnitude_threshold",
    "masked_indices",
    "masked_linear",
    "merge_low_rank",
    "output_dependent_scale",
    "reselect_mask",
    "scatter_values",
    "small_weight_mask",
    "sparse_nuclear_penalty",
    "threshold_learning_rate",
    "vertical_connection_mask",
]
