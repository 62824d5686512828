from tests.experiments.papers.smoke import smoke


def test_smoke(tmp_path):
    found = smoke("score_forgetting", tmp_path)
    for seeds in found.values():
        assert 0 <= seeds["0"]["unlearning_accuracy"] <= 1
