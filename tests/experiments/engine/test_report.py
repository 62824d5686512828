"""What a run names at its end."""

from experiments.engine import report


def test_the_newest_samples(tmp_path):
    assert report.newest_samples(tmp_path) is None
    for name in (
        "samples_best.png",
        "samples_.png",
        "samples_900.png",
        "samples_1000.png",
        "curves.png",
        "samples_2.txt",
    ):
        (tmp_path / name).touch()
    assert report.newest_samples(tmp_path) == tmp_path / "samples_1000.png"
    (tmp_path / "samples_2000.txt").touch()
    assert report.newest_samples(tmp_path) == tmp_path / "samples_2000.txt"
