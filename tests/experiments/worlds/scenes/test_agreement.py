"""Agreement of pictures and captions: of renderings, of one wrong word at a time, of several objects."""

import jax
import numpy as np
import pytest

from configs import common
from experiments import worlds
from experiments.worlds import scenes
from tests.experiments.worlds.scenes.helpers import many, pictures_of, single


def pictures(batch):
    return np.round(pictures_of(batch, 16) * 255).astype(np.uint8)


def agree(drawn, tokens):
    """`scenes.agree`, its inputs repeated to one number of pictures, for which the detector is compiled once."""
    right = scenes.agree(*(np.resize(x, (40, *np.shape(x)[1:])) for x in (drawn, tokens)))
    return {aspect: values[: len(drawn)] for aspect, values in right.items()}


def stacked(*listed):
    return jax.tree.map(lambda *parts: np.stack(parts), *listed)


def test_renderings_are_as_their_captions_say():
    batch = many(40, jitter=0.5)
    right = scenes.agree(pictures(batch), scenes.caption(batch))
    assert tuple(right) == scenes.ASPECTS
    for aspect, values in right.items():
        assert values.shape == (40,)
        assert values.all(), aspect


def test_one_wrong_word_is_one_wrong_aspect():
    scene = single()
    changes = {"size": "small", "style": "striped", "color": "blue", "shape": "cross", "background": "white"}
    told = [scenes.change(scene, 0, **{name: word}) for name, word in changes.items()]
    told.append(scene._replace(position=np.array([[0.1, 0.9]], np.float32)))
    drawn = pictures(jax.tree.map(lambda x: np.repeat(np.asarray(x)[None], len(told), 0), scene))
    right = agree(drawn, scenes.caption(stacked(*told)))
    for index, aspect in enumerate([*changes, "place"]):
        wrong = [name for name, values in right.items() if not values[index]]
        assert wrong == [aspect]


def test_what_is_not_said_is_right_and_what_is_not_seen_is_wrong():
    scene = single()
    bare = scene._replace(present=np.array([False]))
    drawn = pictures(stacked(scene, bare, scene))
    tokens = np.stack([scenes.encode(text, scenes.length(1)) for text in ("red", "red on black", "on white")])
    right = agree(drawn, tokens)
    assert [name for name, values in right.items() if not values[0]] == []
    assert [name for name, values in right.items() if not values[1]] == ["count", "color"]
    assert [name for name, values in right.items() if not values[2]] == ["count", "background"]


def test_several_objects_are_matched_in_any_order():
    batch = many(20, objects=2, distinct=("color",), jitter=0.5)
    drawn, captions = pictures(batch), scenes.caption(batch, mention=("color", "shape"))
    lines = [scenes.decode(line).split(" and ") for line in captions]
    turned = np.stack([scenes.encode(" and ".join(line[::-1]), captions.shape[1]) for line in lines])
    for tokens in (captions, turned):
        assert all(values.all() for values in agree(drawn, tokens).values())
    # Colours that changed hands, where the shapes differ.
    words = [" ".join(line).split() for line in lines]
    crossed = np.stack([scenes.encode(f"{b} {s} and {a} {t}", captions.shape[1]) for a, s, b, t in words])
    right = agree(drawn, crossed)
    same = np.array([s == t for _, s, _, t in words])
    assert not same.all()
    np.testing.assert_array_equal(right["color"] & right["shape"], same)


def test_the_world_knows_its_captions():
    captions = worlds.describe(common.scenes(objects=2), None).captions
    assert (len(captions.words), captions.length) == (len(scenes.WORDS), scenes.length(2))
    assert captions.encode("").tolist()[:3] == [scenes.START, scenes.END, scenes.PAD]
    assert captions.attributes == scenes.ASPECTS


@pytest.mark.parametrize(
    ("drawn", "tokens", "says"),
    [
        (np.zeros((2, 16, 16, 3), np.float32), np.zeros((2, 10), np.int32), "pictures must be uint8, got float32"),
        (
            np.zeros((2, 16, 16, 3), np.uint8),
            np.zeros((3, 10), np.int32),
            "tokens must be one caption a picture, 2, got 3",
        ),
    ],
)
def test_mistakes_are_named(drawn, tokens, says):
    with pytest.raises(ValueError, match=says):
        scenes.agree(drawn, tokens)
