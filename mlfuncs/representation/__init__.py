"""Objectives and operations on embeddings. Embeddings are compared by direction: functions normalise what they get."""

from mlfuncs.representation.dynamics import (
    brownian_drift,
    centroid_attraction,
    embedding_dynamics,
    random_directions,
    singular_value_dispersion,
)

__all__ = [
    "brownian_drift",
    "centroid_attraction",
    "embedding_dynamics",
    "random_directions",
    "singular_value_dispersion",
]
