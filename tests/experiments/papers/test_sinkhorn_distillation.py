from tests.experiments.papers.smoke import smoke


def test_smoke(tmp_path):
    smoke("sinkhorn_distillation", tmp_path)
