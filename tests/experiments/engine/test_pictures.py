"""Grids, panels and curves as files that open, written whole or not at all."""

import matplotlib.figure
import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from experiments.engine import pictures


@pytest.mark.parametrize(
    ("count", "rows", "columns"), [(1, 1, 1), (2, 1, 2), (3, 2, 2), (4, 2, 2), (5, 2, 3), (7, 3, 3), (64, 8, 8)]
)
def test_grids_are_nearly_square(count, rows, columns):
    picture = pictures.grid(np.zeros((count, 2, 3, 1), np.uint8))
    assert picture.shape == (rows * 3 - 1, columns * 4 - 1, 1)
    assert picture.dtype == np.uint8
    assert (picture == 0).sum() == count * 6


def test_places_of_pixels_in_a_grid():
    images = np.array([[[10, 11, 12], [13, 14, 15]], [[20, 21, 22], [23, 24, 25]], [[30, 31, 32], [33, 34, 35]]])
    line = 255
    expected = [
        [10, 11, 12, line, 20, 21, 22],
        [13, 14, 15, line, 23, 24, 25],
        [line] * 7,
        [30, 31, 32, *[line] * 4],
        [33, 34, 35, *[line] * 4],
    ]
    np.testing.assert_array_equal(pictures.grid(images[..., None].astype(np.uint8))[..., 0], expected)


def test_colours_stay_apart():
    images = np.arange(2 * 2 * 2 * 3, dtype=np.uint8).reshape(2, 2, 2, 3)
    picture = pictures.grid(images)
    assert picture.shape == (2, 5, 3)
    np.testing.assert_array_equal(picture[:, :2], images[0])
    np.testing.assert_array_equal(picture[:, 3:], images[1])


def opened(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def flat(*colour):
    return np.full((1, 8, 8, len(colour)), colour, np.uint8)


def test_panels_stand_side_by_side_at_their_own_brightness(tmp_path):
    panels = [("dark", flat(64)), ("light", flat(192)), ("red", flat(200, 0, 0))]
    pictures.write_panels(tmp_path / "panels.png", panels)
    picture = opened(tmp_path / "panels.png")
    height, width, _ = picture.shape
    centres = [picture[height // 2, width * place // 6].tolist() for place in (1, 3, 5)]
    assert centres == [[64] * 3, [192] * 3, [200, 0, 0]]
    assert [path.name for path in tmp_path.iterdir()] == ["panels.png"]
    assert plt.get_fignums() == []


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "panels.png"
    pictures.write_panels(path, [("first", flat(0))])
    first = path.read_bytes()
    pictures.write_panels(path, [("second", flat(255))])
    second = path.read_bytes()
    assert first != second

    def cut_short(figure, target, **options):
        target.write_bytes(first[:10])
        raise OSError("no space left on device")

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", cut_short)
    with pytest.raises(OSError, match="no space"):
        pictures.write_panels(path, [("third", flat(0))])
    plt.close("all")
    assert path.read_bytes() == second


@pytest.mark.parametrize("records", [[], [{"step": 1}], [{"step": 1, "steps_per_second": 3.0}]])
def test_nothing_is_drawn_without_records(records, tmp_path):
    pictures.write_curves(tmp_path / "curves.png", records)
    assert not list(tmp_path.iterdir())


def ink(path):
    return int((opened(path) < 128).sum())


def test_curves(tmp_path):
    losses = [{"step": step, "loss": 1 / step, "steps_per_second": 2.0} for step in range(1, 9)]
    measured = [{**record, **({"accuracy": 0.1} if record["step"] % 4 == 0 else {})} for record in losses]
    for name, records in (("loss", losses), ("measured", measured)):
        pictures.write_curves(tmp_path / f"{name}.png", records)
    assert {path.name for path in tmp_path.iterdir()} == {"loss.png", "measured.png"}
    assert ink(tmp_path / "measured.png") > ink(tmp_path / "loss.png") > 0
    assert plt.get_fignums() == []


@pytest.mark.parametrize("losses", [[0.0], [-1.0, 100.0], [1e-9, 1.0], [0.5, 0.5], np.linspace(1, 2, 100)])
def test_curves_of_any_values(losses, tmp_path):
    records = [{"step": step, "loss": float(loss)} for step, loss in enumerate(losses)]
    pictures.write_curves(tmp_path / "curves.png", records)
    assert ink(tmp_path / "curves.png") > 0


def test_texts_go_into_a_file_of_their_own(tmp_path):
    texts, images = ["one\nline", "zwei ü"], [("title", np.zeros((1, 4, 4, 1), np.uint8))]
    assert (pictures.ending(texts), pictures.ending(images)) == (".txt", ".png")
    pictures.write(tmp_path / "a.txt", texts)
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "--- 0 ---\none\nline\n--- 1 ---\nzwei ü\n"
    pictures.write(tmp_path / "a.png", images)
    Image.open(tmp_path / "a.png").verify()
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt", "a.png"}
