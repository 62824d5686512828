from tests.experiments.papers.smoke import smoke


def test_smoke(tmp_path):
    smoke("plackett_luce_distillation", tmp_path)
