"""Language models, and their distillation from sequences that a teacher, the student or the data wrote.

`config.method` is "training", next-token cross-entropy on the data, or "distillation", a divergence to the next-token
distributions of the run `config.teacher` at every token of a response.
"""

from experiments.tasks.language.settings import FIELDS, METHODS
from experiments.tasks.language.task import build

__all__ = ["FIELDS", "METHODS", "build"]
