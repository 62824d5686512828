from tests.experiments.papers.smoke import smoke


def test_smoke(tmp_path):
    smoke("improved_consistency", tmp_path)
