"""The matrices that the study scores, and its rank correlation."""

import jax
import numpy as np
import pytest
import scipy.stats

from experiments.papers import efficient_eigen_score as study
from tests.experiments.papers.smoke import smoke


def test_rank_correlation():
    values = np.random.default_rng(0).standard_normal((2, 30))
    values[1] += values[0]
    assert study.rank_correlation(*values) == pytest.approx(scipy.stats.spearmanr(*values).statistic)


def test_spectra_fall_from_the_top():
    embeddings = study.decaying(jax.random.key(0), generations=16, features=400, decays=(1.5, 1.5), top=5.0)
    eigenvalues = np.linalg.svd(np.asarray(embeddings), compute_uv=False) ** 2
    np.testing.assert_allclose(eigenvalues[0], 5, rtol=0.02)
    variances = np.asarray(embeddings).var(0)
    slope = np.polyfit(np.log(np.arange(1, 401)), np.log(variances), 1)[0]
    assert slope == pytest.approx(-1.5, abs=0.15)


def test_smoke(tmp_path):
    smoke("efficient_eigen_score", tmp_path)
