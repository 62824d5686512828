"""How smooth a teacher is, and the study from end to end."""

import jax.numpy as jnp
import numpy as np

from experiments.papers import mixup_distillation as study
from tests.experiments.papers.smoke import smoke


def test_entropy_in_nats():
    logits = jnp.array([[0.0, 0.0], [0.0, 100.0]])
    np.testing.assert_allclose(study.entropy(logits), np.log(2) / 2, rtol=1e-5)


def test_smoke(tmp_path):
    smoke("mixup_distillation", tmp_path)
