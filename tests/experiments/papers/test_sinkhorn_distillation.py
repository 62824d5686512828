"""Gradients where supports are disjoint, and the study from end to end."""

from experiments.papers import sinkhorn_distillation as study
from tests.experiments.papers.smoke import smoke


def test_bounded_divergences_have_no_gradient_where_supports_are_disjoint():
    for divergence in ("jensen_shannon", "total_variation"):
        assert float(study.disjoint_gradient_norm(f"0.1 * cross_entropy + 0.9 * {divergence}")) < 1e-6
    # q - p at T = 1, of four examples: two entries of size 1 each, a fourth of it in the mean.
    assert abs(float(study.disjoint_gradient_norm("kullback_leibler")) - 2**0.5 / 2) < 1e-3
    assert float(study.disjoint_gradient_norm("cross_entropy")) == 0


def test_smoke(tmp_path):
    smoke("sinkhorn_distillation", tmp_path)
