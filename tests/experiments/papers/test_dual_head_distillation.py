from tests.experiments.papers.smoke import smoke


def test_smoke(tmp_path):
    smoke("dual_head_distillation", tmp_path)
