from tests.experiments.papers.smoke import smoke


def test_smoke(tmp_path):
    smoke("mixup_distillation", tmp_path)
