"""What an architecture costs, what it promises before it is trained, and how to choose one or cut one down."""

from mlfuncs.architecture_search.budgets import best_under_budget, pareto_front, sandwich
from mlfuncs.architecture_search.costs import layer_flops, transformer_parameter_count
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
    "best_under_budget",
    "classifier_weight_gradient",
    "knapsack_removal",
    "layer_flops",
    "output_change",
    "pareto_front",
    "relation_similarity",
    "sandwich",
    "semantic_similarity",
    "training_free_student_score",
    "transformer_parameter_count",
]
