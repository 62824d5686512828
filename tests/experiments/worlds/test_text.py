"""Texts as rows of characters: nothing is lost, the test set is what comes last, a missing file is named."""

import re

import numpy as np
import pytest

from configs import common
from experiments import worlds
from experiments.engine.errors import UserError
from experiments.worlds import text


def built(**fields):
    return worlds.build(common.text(**{"file": "", "length": 17, "stride": 16, **fields}), None)


def test_rows_are_the_text_in_order():
    world, content = built(), text.EMBEDDED.read_text()
    decode, cut = world.text.decode, len(content) - round(0.1 * len(content))
    for split, part in ((world.train, content[:cut]), (world.test, content[cut:])):
        rows = split.read(np.arange(len(split)))
        assert rows["tokens"].shape == (len(split), 17)
        np.testing.assert_array_equal(rows["row"], np.arange(len(split)))
        # The last character of a row is the first of the next.
        joined = "".join(decode(row[:-1]) for row in rows["tokens"])
        assert part.startswith(joined)
        assert len(part) - len(joined) <= 17
        assert (rows["tokens"] > 0).all()
    assert world.num_classes == len(world.text.words) == len(set(content)) + 1
    assert world.example_shape == (17,)


def test_training_rows_may_overlap():
    many, few = built(stride=4), built()
    assert len(many.train) == pytest.approx(4 * len(few.train), abs=4)
    assert len(many.test) == len(few.test)
    np.testing.assert_array_equal(many.train.examples["tokens"][1, :-4], many.train.examples["tokens"][0, 4:])


def test_words_to_tokens_and_back():
    encoded = built().text.encode("Shall I")
    assert built().text.decode(encoded) == "Shall I"
    assert encoded.dtype == np.int32
    assert built().text.decode(built().text.encode("")) == "\n"
    with pytest.raises(ValueError, match="none of the characters '#', 'é'"):
        built().text.encode("é#")


def test_a_file_of_ones_own(tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "mine.txt").write_text("abcab" * 40, encoding="utf-8")
    world = built(file="mine.txt", data_dir=str(tmp_path))
    assert world.text.words == ("", "a", "b", "c")
    with pytest.raises(UserError, match=re.escape(f"'yours.txt' is neither {tmp_path / 'yours.txt'} nor")):
        built(file="yours.txt", data_dir=str(tmp_path))
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="can't be read as text"):
        built(file="bytes.txt", data_dir=str(tmp_path))


def test_without_the_known_file_the_passages_are_read(tmp_path, capsys):
    fields = {"file": text.SHAKESPEARE, "data_dir": str(tmp_path)}
    assert built(**fields).text.words == built().text.words
    assert "passages" in capsys.readouterr().out
    described = worlds.describe(common.text(**fields), None)
    assert described.num_classes == 66
    assert len(described.train) > 30_000
    assert not described.train.read(np.arange(2))["tokens"].any()


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"length": 1}, "length must be at least 2, got 1"),
        ({"stride": 0}, "stride must be at least 1, got 0"),
        ({"test_fraction": 1.0}, r"test_fraction must be in \(0, 1\), got 1"),
        ({"length": 500}, "length 500 is more than .*455 of the test set"),
    ],
)
def test_mistakes_are_named(fields, match):
    with pytest.raises(UserError, match=match):
        built(**fields)
