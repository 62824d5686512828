"""From teacher to student: divergences between predictions, losses over batches, rankings, many teachers, sequences."""

from mlfuncs.distillation.batches import correlation, sinkhorn
from mlfuncs.distillation.logits import (
    jensen_shannon,
    knowledge_distillation,
    kullback_leibler,
    reverse_kullback_leibler,
    soft_cross_entropy,
    total_variation,
)

__all__ = [
    "correlation",
    "jensen_shannon",
    "knowledge_distillation",
    "kullback_leibler",
    "reverse_kullback_leibler",
    "sinkhorn",
    "soft_cross_entropy",
    "total_variation",
]
