"""Mask sampling and what masks do: dropout in its many forms. Everywhere True or 1 keeps, and `rate` is that of dropping."""

from mlfuncs.dropout.masks import (
    apply_mask,
    bernoulli_mask,
    concrete_mask,
    dropout,
    mask_rate_penalty,
    project_mask,
    protect,
    rate_entropy,
    sample_concrete_mask,
    temporal_mask,
)
from mlfuncs.dropout.multi_sample import (
    expected_squared_loss,
    multi_sample_dropout_loss,
    multi_sample_loss,
    multi_sample_masks,
    multi_sample_outputs,
)
from mlfuncs.dropout.nested import (
    nested_mask,
    prefix_accuracy,
    prefix_logits,
    select_truncation,
    truncation_distribution,
    truncation_keep_probability,
    truncation_mask,
)
from mlfuncs.dropout.sensitive import push_window, sensitive_unit_mask, sensitivity_score

__all__ = [
    "apply_mask",
    "bernoulli_mask",
    "concrete_mask",
    "dropout",
    "expected_squared_loss",
    "mask_rate_penalty",
    "multi_sample_dropout_loss",
    "multi_sample_loss",
    "multi_sample_masks",
    "multi_sample_outputs",
    "nested_mask",
    "prefix_accuracy",
    "prefix_logits",
    "project_mask",
    "protect",
    "push_window",
    "rate_entropy",
    "sample_concrete_mask",
    "select_truncation",
    "sensitive_unit_mask",
    "sensitivity_score",
    "temporal_mask",
    "truncation_distribution",
    "truncation_keep_probability",
    "truncation_mask",
]
