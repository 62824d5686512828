"""Objectives and operations on embeddings and features.

Dynamics and neighbours compare embeddings by direction: they normalise what they get.
"""

from mlfuncs.representation.dynamics import (
    brownian_drift,
    centroid_attraction,
    embedding_dynamics,
    random_directions,
    singular_value_dispersion,
)
from mlfuncs.representation.features import (
    centered_kernel_alignment,
    nearest_neighbor_predictions,
    normalized_bottleneck,
    standardize_features,
)
from mlfuncs.representation.neighbours import enqueue, leave_one_out_neighbours, neighbour_class_probabilities

__all__ = [
    "brownian_drift",
    "centered_kernel_alignment",
    "centroid_attraction",
    "embedding_dynamics",
    "enqueue",
    "leave_one_out_neighbours",
    "nearest_neighbor_predictions",
    "neighbour_class_probabilities",
    "normalized_bottleneck",
    "random_directions",
    "singular_value_dispersion",
    "standardize_features",
]
