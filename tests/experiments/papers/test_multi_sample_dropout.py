from tests.experiments.papers.smoke import smoke


def test_smoke(tmp_path):
    smoke("multi_sample_dropout", tmp_path)
