"""Distillation: a student learns from a frozen teacher, with an objective that is written as a sum of losses by name."""

from experiments.tasks.distillation.task import FIELDS, build

__all__ = ["FIELDS", "build"]
