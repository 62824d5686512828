from tests.experiments.papers.smoke import smoke


def test_smoke(tmp_path):
    smoke("latent_consistency", tmp_path)
