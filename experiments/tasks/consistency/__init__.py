"""Consistency models: training from data, from a diffusion teacher, or by tuning one. The config names every choice."""

from experiments.tasks.consistency.methods import FIELDS, METHODS, resolve
from experiments.tasks.consistency.task import build

__all__ = ["FIELDS", "METHODS", "build", "resolve"]
