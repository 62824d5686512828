from experiments.reproducing import catalogue
from tests.experiments.helpers import ROOT


def test_every_paper_is_smoke_tested():
    for name in catalogue.names():
        assert f'smoke("{name}"' in (ROOT / "tests/experiments/papers" / f"test_{name}.py").read_text()
