"""Captions: words, lengths, back to attributes, prompts that are true of nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.worlds import scenes
from tests.experiments.worlds.scenes.helpers import every_single, many, seen, single


def test_in_words():
    two = scenes.Scene(
        shape=jnp.array([0, 2, -1]),
        color=jnp.array([0, 4, -1]),
        size=jnp.array([1, 0, -1]),
        style=jnp.array([1, 0, -1]),
        position=jnp.array([[0.2, 0.3], [0.9, 0.5], [-1, -1]]),
        present=jnp.array([True, True, False]),
        background=jnp.array(3),
    )
    tokens = np.asarray(scenes.caption(two))
    text = "large striped red circle top left and small plain cyan triangle bottom center on checkered"
    assert scenes.decode(tokens) == text
    assert tokens.shape == (scenes.length(3),)
    assert tokens.dtype == np.int32
    np.testing.assert_array_equal(tokens, scenes.encode(text, scenes.length(3)))
    assert scenes.decode(scenes.caption(two, mention=("shape", "color"))) == "red circle and cyan triangle"
    assert scenes.decode(scenes.caption(two, mention=("background",))) == "on checkered"
    np.testing.assert_array_equal(scenes.caption(two, mention=()), scenes.encode("", scenes.length(3)))


def test_words_are_different_and_lengths_fit():
    assert len(set(scenes.WORDS)) == len(scenes.WORDS)
    for objects in (1, 2, 4):
        tokens = np.asarray(scenes.caption(many(50, objects=objects)))
        assert tokens.shape == (50, scenes.length(objects))
        assert np.all(tokens != scenes.PAD)  # with all objects there it is full
        assert np.all(tokens[:, 0] == scenes.START)
        assert np.all(tokens[:, -1] == scenes.END)


@pytest.mark.parametrize("objects", [1, 4])
def test_there_and_back(objects):
    drawn = every_single(grid=3) if objects == 1 else many(300, objects=4, fewest=0)
    tokens = scenes.caption(drawn)
    again = scenes.read(tokens)
    for name in ("shape", "color", "size", "style", "present", "background"):
        np.testing.assert_array_equal(getattr(again, name), getattr(drawn, name))
    for ours, theirs in zip(scenes.place(again), scenes.place(drawn), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(scenes.caption(again), tokens)


def test_what_is_not_said_is_not_known():
    drawn = many(50, objects=3, fewest=1)
    tokens = scenes.caption(drawn, mention=("color", "shape"))
    again = scenes.read(tokens)
    np.testing.assert_array_equal(again.color, drawn.color)
    assert all(np.all(x == -1) for x in (again.size, again.style, again.position, again.background))
    np.testing.assert_array_equal(scenes.caption(again), tokens)


def test_a_caption_of_what_was_seen():
    drawn = many(100, objects=2, fewest=0)
    np.testing.assert_array_equal(scenes.caption(seen(drawn, 16)), scenes.caption(drawn))


@pytest.mark.parametrize("attribute", ["shape", "color", "size", "style", "background"])
def test_negative_prompts_are_true_of_nothing(attribute):
    drawn = many(400, objects=2, fewest=1)
    keys = jax.random.split(jax.random.key(1), 400)
    tokens = np.asarray(jax.vmap(lambda key, scene: scenes.negative(key, scene, attribute=attribute))(keys, drawn))
    assert tokens.shape == (400, scenes.length(2))
    words = {**scenes.OBJECT_ATTRIBUTES, "background": scenes.BACKGROUNDS}[attribute]
    counted = dict.fromkeys(words, 0)
    for i, line in enumerate(tokens):
        text = scenes.decode(line)
        np.testing.assert_array_equal(line, scenes.encode(text, scenes.length(2)))
        value = np.asarray(getattr(drawn, attribute))[i]
        used = {words[v] for v in np.atleast_1d(value) if v >= 0}
        if text:
            assert text in set(words) - used
            counted[text] += 1
        else:
            assert used == set(words)
    assert min(counted.values()) > 20
    batch = scenes.negative(jax.random.key(2), drawn, attribute=attribute)  # leading axes too
    assert batch.shape == tokens.shape
    assert len(np.unique(batch[:, 1])) >= len(words)


def test_what_is_left_out_is_said_of_nothing():
    drawn = many(3000, objects=2)
    left = scenes.leave_out(jax.random.key(0), drawn, 0.3)
    parts = {name: np.asarray(getattr(left, name)) for name in (*scenes.OBJECT_ATTRIBUTES, "background")}
    parts["place"] = np.asarray(left.position)[..., 0]
    unknown = {name: values.astype(np.float32) == -1 for name, values in parts.items()}
    for name, missing in unknown.items():
        # 5 deviations of a share of so many draws.
        assert abs(missing.mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / missing.size), name
    # Each by itself: any two are left out together in 0.09 of the objects.
    both = np.mean(unknown["color"] & unknown["shape"])
    assert abs(both - 0.09) < 5 * np.sqrt(0.09 * 0.91 / 6000)
    np.testing.assert_array_equal(np.asarray(left.position)[..., 1] == -1, unknown["place"])
    for name in scenes.OBJECT_ATTRIBUTES:
        kept = np.where(unknown[name], getattr(drawn, name), parts[name])
        np.testing.assert_array_equal(kept, getattr(drawn, name))
    np.testing.assert_array_equal(left.present, drawn.present)
    everything = scenes.leave_out(jax.random.key(1), drawn, 1.0)
    assert scenes.decode(scenes.caption(everything)[0]) == ""
    nothing = scenes.leave_out(jax.random.key(1), drawn, 0.0)
    np.testing.assert_array_equal(scenes.caption(nothing), scenes.caption(drawn))


def test_encode_and_decode():
    np.testing.assert_array_equal(scenes.encode("", 4), [scenes.START, scenes.END, scenes.PAD, scenes.PAD])
    assert scenes.decode(scenes.encode("red circle", 8)) == "red circle"
    with pytest.raises(ValueError, match="not in the vocabulary: purple, unicorn"):
        scenes.encode("purple unicorn on black", 8)
    with pytest.raises(ValueError, match="text has 3 words and 4 tokens hold 2"):
        scenes.encode("large red circle", 4)


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"mention must name attributes among .*'weight'"):
        scenes.caption(single(), mention=("weight",))
    with pytest.raises(ValueError, match=r"attribute must be one of .*'place'"):
        scenes.negative(jax.random.key(0), single(), attribute="place")
    with pytest.raises(ValueError, match="describe at most 1 objects"):
        scenes.read(scenes.encode("red circle and blue circle", scenes.length(1)))
