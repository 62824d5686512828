from tests.experiments.papers.smoke import smoke


def test_smoke(tmp_path):
    smoke("temporal_dropout", tmp_path)
