"""What an architecture costs, what it promises before it is trained, and how to choose one or cut one down."""

from mlfuncs.architecture_search.costs import layer_flops
from mlfuncs.architecture_search.evolution import Candidate, aging_evolution
from mlfuncs.architecture_search.removal import additivity, knapsack_removal, output_change
from mlfuncs.architecture_search.training_free import (
    classifier_weight_gradient,
    relation_similarity,
    semantic_similarity,
    training_free_student_score,
)

__all__ = [
    "Candidate",
    "additivity",
    "aging_evolution",
    "classifier_weight_gradient",
    "knapsack_removal",
    "layer_flops",
    "output_change",
    "relation_similarity",
    "semantic_similarity",
    "training_free_student_score",
]
