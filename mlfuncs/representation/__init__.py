"""Objectives and operations on embeddings. Embeddings are compared by direction: functions normalise what they get."""

from mlfuncs.representation.dynamics import (
    brownian_drift,
    centroid_attraction,
    embedding_dynamics,
    random_directions,
    singular_value_dispersion,
)
from mlfuncs.representation.neighbours import enqueue, leave_one_out_neighbours, neighbour_class_probabilities

__all__ = [
    "brownian_drift",
    "centroid_attraction",
    "embedding_dynamics",
    "enqueue",
    "leave_one_out_neighbours",
    "neighbour_class_probabilities",
    "random_directions",
    "singular_value_dispersion",
]
