"""Random scenes and their combinations: what is drawn, what is held back, what is asked of a scene."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.worlds import scenes
from tests.experiments.worlds.scenes.helpers import many, single


def test_combinations():
    rows = scenes.combinations()
    assert rows.shape == (5 * 6 * 2 * 3, 4)
    assert len(np.unique(rows, axis=0)) == len(rows)
    some = scenes.combinations(style=["plain"], color=["blue", "red", "blue"])
    assert some.shape == (5 * 2 * 2 * 1, 4)
    assert set(some[:, 1]) == {0, 2}
    assert set(some[:, 3]) == {0}
    with pytest.raises(ValueError, match=r"attribute must be one of .*'colour'"):
        scenes.combinations(colour=["red"])
    with pytest.raises(ValueError, match=r"color must be one of .*'purple'"):
        scenes.combinations(color=["purple"])


def pairs(rows, columns=(0, 1)):
    return {tuple(row) for row in rows[:, columns].tolist()}


@pytest.mark.parametrize("seed", range(5))
def test_splits_share_no_combination_and_training_has_every_value(seed):
    dealt = scenes.splits(seed, held_out=8)
    assert len(pairs(dealt.train)) == 30 - 8
    assert len(pairs(dealt.held_out)) == 8
    assert not pairs(dealt.train) & pairs(dealt.held_out)
    together = np.concatenate(dealt)
    np.testing.assert_array_equal(np.unique(together, axis=0), np.unique(scenes.combinations(), axis=0))
    assert len(together) == 180
    for column, words in enumerate(scenes.OBJECT_ATTRIBUTES.values()):
        assert set(dealt.train[:, column]) == set(range(len(words)))


def test_splits_are_a_function_of_the_seed():
    first, again, other = (scenes.splits(seed, held_out=5) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.train, again.train)
    np.testing.assert_array_equal(first.held_out, again.held_out)
    assert pairs(first.held_out) != pairs(other.held_out)


def test_splits_of_other_attributes_and_rows():
    rows = scenes.combinations(style=["plain", "ringed"], shape=["circle", "square", "cross"])
    dealt = scenes.splits(0, held_out=2, over=("color", "style", "shape"), rows=rows)
    assert len(pairs(dealt.held_out, (1, 3, 0))) == 2
    assert not pairs(dealt.train, (1, 3, 0)) & pairs(dealt.held_out, (1, 3, 0))
    assert len(dealt.train) + len(dealt.held_out) == len(rows)
    assert len(scenes.splits(0, held_out=0).held_out) == 0


def test_what_splits_refuse():
    with pytest.raises(ValueError, match=r"over must name attributes among .*'place'"):
        scenes.splits(0, held_out=1, over=("place",))
    for held_out in (-1, 30):
        with pytest.raises(ValueError, match=r"held_out must be in \[0, .*\] for 30 combinations"):
            scenes.splits(0, held_out=held_out)
    with pytest.raises(ValueError, match="held_out must be in"):  # a value would be gone from training
        scenes.splits(0, held_out=1, over=("color",))
    with pytest.raises(ValueError, match=r"rows must be \[N, 4\]"):
        scenes.splits(0, held_out=0, rows=np.zeros((3, 2), int))


def test_attributes_are_alike_likely_and_rows_are_kept_to():
    drawn = many(3000)
    for name, words in {**scenes.OBJECT_ATTRIBUTES, "background": scenes.BACKGROUNDS}.items():
        counts = np.bincount(np.asarray(getattr(drawn, name)).reshape(-1), minlength=len(words))
        # Six standard deviations of the largest variance: probability below 1e-7 for all.
        assert np.abs(counts / 3000 - 1 / len(words)).max() < 6 * 0.5 / np.sqrt(3000)
    rows = scenes.splits(0, held_out=8).held_out
    some = many(500, rows=rows, objects=3, fewest=1)
    shown = np.stack([some.shape, some.color, some.size, some.style], -1)[np.asarray(some.present)]
    assert pairs(shown, (0, 1, 2, 3)) <= pairs(rows, (0, 1, 2, 3))
    assert len(pairs(shown)) == 8


def test_objects_do_not_touch_and_lie_inside():
    drawn = many(300, objects=4)
    radius = np.array(scenes.description.RADII)[np.asarray(drawn.size)]
    position = np.asarray(drawn.position)
    assert np.all(position - 1.2 * radius[..., None] > 0)
    assert np.all(position + 1.2 * radius[..., None] < 1)
    whole = scenes.masks(drawn, 32, hidden=True)
    np.testing.assert_array_equal(np.asarray((whole > 0.5).sum(1).max()), 1)
    np.testing.assert_array_equal(jnp.stack(scenes.place(drawn), -1)[0], [[0, 0], [0, 2], [2, 0], [2, 2]])
    np.testing.assert_allclose(
        many(3, objects=4, jitter=0.0).position[1], [[0.25, 0.25], [0.25, 0.75], [0.75, 0.25], [0.75, 0.75]]
    )


def test_numbers_and_absence():
    drawn = many(600, objects=3, fewest=1)
    counts = np.bincount(np.asarray(drawn.count), minlength=4)
    assert counts[0] == 0
    assert counts[1:].min() > 140
    absent = ~np.asarray(drawn.present)
    for name in scenes.OBJECT_ATTRIBUTES:
        np.testing.assert_array_equal(np.asarray(getattr(drawn, name)) == -1, absent)
    # In reading order, the absent last.
    assert np.all(np.diff(np.asarray(drawn.present).astype(int), axis=1) <= 0)


def test_a_scene_is_a_function_of_its_key():
    key = jax.random.key(3)
    one, again = scenes.draw(key, objects=3), jax.jit(lambda key: scenes.draw(key, objects=3))(key)
    jax.tree.map(np.testing.assert_array_equal, one, again)
    among = jax.vmap(lambda key: scenes.draw(key, objects=3))(jnp.stack([jax.random.key(1), key]))
    jax.tree.map(lambda many, one: np.testing.assert_array_equal(many[1], one), among, one)


def test_distinct():
    drawn = many(200, objects=3, distinct=("shape", "color"))
    for name in ("shape", "color"):
        values = np.sort(np.asarray(getattr(drawn, name)), axis=1)
        assert np.all(np.diff(values, axis=1) > 0)
    assert np.any(np.asarray(drawn.size[:, 0]) == np.asarray(drawn.size[:, 1]))


def test_change_and_contains():
    scene = single((0, 0, 1, 0), background=2)
    assert bool(scenes.contains(scene, color="red"))
    assert bool(scenes.contains(scene, color="red", shape="circle", background="white"))
    assert not bool(scenes.contains(scene, color="red", shape="square"))
    assert not bool(scenes.contains(scene, color="red", background="black"))
    other = scenes.change(scene, 0, color="blue", background="black")
    assert bool(scenes.contains(other, color="blue", background="black", shape="circle", size="large"))
    two = many(300, objects=2, fewest=0)
    red, squares = (np.asarray(x) == v for x, v in ((two.color, 0), (two.shape, 1)))
    np.testing.assert_array_equal(scenes.contains(two, color="red"), red.any(1))
    np.testing.assert_array_equal(scenes.contains(two, color="red", shape="square"), (red & squares).any(1))
    np.testing.assert_array_equal(scenes.contains(two, background="grey"), two.background == 1)
    np.testing.assert_array_equal(scenes.change(two, 1, style="ringed").style[:, 1], np.full(300, 2))
    with pytest.raises(ValueError, match="which must be one of 1 objects, got 1"):
        scenes.change(scene, 1, color="blue")
    with pytest.raises(ValueError, match=r"attribute must be one of .*'place'"):
        scenes.contains(scene, place="left")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"objects": 5}, r"objects must be in \[1, 4\] on a grid of 2, got 5"),
        ({"objects": 0}, "objects must be in"),
        ({"objects": 2, "fewest": 3}, r"fewest must be in \[0, 2\], got 3"),
        ({"backgrounds": ["pink"]}, "background must be one of .*'pink'"),
        ({"backgrounds": []}, "backgrounds must name at least one"),
        ({"distinct": ["place"]}, "distinct must name attributes among .*'place'"),
        ({"objects": 3, "distinct": ["size"]}, "3 objects can't differ in size, of which there are 2"),
        ({"rows": jnp.zeros((0, 4), int)}, r"rows must be \[N, 4\]"),
        ({"rows": jnp.zeros((2, 3), int)}, r"rows must be \[N, 4\]"),
        (
            {"objects": 2, "distinct": ["color"], "rows": jnp.zeros((2, 4), int)},
            "can't differ in color, of which there are 1",
        ),
    ],
)
def test_what_draw_refuses(settings, says):
    with pytest.raises(ValueError, match=says):
        scenes.draw(jax.random.key(0), **settings)
