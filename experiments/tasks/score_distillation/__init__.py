"""One-step generators by score distillation: a critic and the generator learn in turn inside one update, without data.

The frozen teacher scores the data, the critic what the generator draws; a method turns the difference into a loss of the
generator (`METHODS`). All three are the teacher's network, and start from its parameters.
"""

from experiments.tasks.score_distillation.methods import METHODS, UNCONDITIONAL
from experiments.tasks.score_distillation.settings import FIELDS
from experiments.tasks.score_distillation.task import build, generator

__all__ = ["FIELDS", "METHODS", "UNCONDITIONAL", "build", "generator"]
