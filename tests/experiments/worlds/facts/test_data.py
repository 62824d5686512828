"""Facts as a world: rows, questions, and what is held out."""

import numpy as np
import pytest

from configs import common
from experiments import worlds
from experiments.engine.errors import UserError
from experiments.worlds import facts

SMALL = {"subjects": 8, "relations": 2, "objects": 3, "background": 4}


def built(**fields):
    return worlds.build(common.facts(**{**SMALL, **fields}))


def test_rows():
    world = built()
    assert (len(world.train), len(world.test)) == (4 * 2 * 6 + 4 * 2 * 2, 4 * 2 * 4)
    train, test = (split.read(np.arange(len(split))) for split in (world.train, world.test))
    for rows in (train, test):
        assert rows["tokens"].shape[1:] == world.example_shape
        assert (rows["tokens"][:, 0] == facts.START).all()
        places = np.arange(len(rows["row"]))
        assert (rows["tokens"][places, rows["answer"] + 1] == world.text.end).all()
        np.testing.assert_array_equal(rows["row"], places)
    told, asked = ({world.text.decode(row) for row in rows["tokens"]} for rows in (train, test))
    assert not told & asked
    # What is asked can be known: both names of each fact stand together in a sentence that is told.
    names = set(facts.knowledge_base(subjects=8, relations=2, objects=3).vocabulary.words[-8 - 2 * 3 :])
    facts_of = lambda texts: {frozenset(set(words.split()) & names) for words in texts}  # noqa: E731
    assert facts_of(asked) <= facts_of(told)


def test_text():
    world = built()
    assert world.num_classes == len(world.text.words)
    assert world.text.words[: facts.END + 1] == ("", "", "")
    np.testing.assert_array_equal(world.text.encode(""), [facts.START])
    assert world.text.decode(world.text.encode("what is the noun0")) == "what is the noun0"
    assert world.text.asks


def test_another_seed_is_another_world():
    one, again, other = (built(seed=seed).train.examples["tokens"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"objects": 0}, "config.data: objects must be at least 1, got 0"),
        ({"background": 9}, r"config.data: background must be in \[0, 8\]"),
        ({"told": range(6)}, "config.data: no question is left to ask"),
        ({"background": 8}, "config.data: no question is left to ask"),
    ],
)
def test_mistakes_are_named(fields, match):
    with pytest.raises(UserError, match=match):
        built(**{name: tuple(v) if isinstance(v, range) else v for name, v in fields.items()})
