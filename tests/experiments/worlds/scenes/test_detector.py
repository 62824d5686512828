"""The detector inverts the renderer, and finds nothing where there is nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.worlds import scenes
from tests.experiments.worlds.scenes.helpers import detected, differing, every_single, many, pictures_of, seen, single

SIZES = [16, 32, 64]


def check(drawn, found, size):
    wrong = differing(drawn, found)
    assert not len(wrong), (
        wrong,
        [scenes.decode(scenes.caption(jax.tree.map(lambda x: x[wrong[0]], s))) for s in (drawn, found)],
    )
    miss = np.abs(np.asarray(found.position - drawn.position))[np.asarray(drawn.present)]
    assert miss.max() < 0.2 / size


@pytest.mark.parametrize("size", SIZES)
def test_every_single_object(size):
    drawn = every_single(seed=size)
    assert len(drawn.background) == 5 * 6 * 2 * 3 * 5
    if size == 64:  # the easy case, and slow: every seventh, which has all values of all attributes
        drawn = jax.tree.map(lambda x: x[::7], drawn)
    check(drawn, seen(drawn, size), size)


def test_every_single_object_where_pixels_are_few():
    """At 16 pixels, at other places within a pixel; with more asked for than there is."""
    for seed in range(4):
        drawn = every_single(seed=100 + seed)
        check(drawn, seen(drawn, 16), 16)
    more = seen(drawn, 16, objects=4)
    check(drawn, more._replace(**{name: getattr(more, name)[:, :1] for name in scenes.Scene._fields[:-1]}), 16)
    assert not np.any(more.present[:, 1:])
    assert np.all(np.asarray(more.shape[:, 1:]) == -1)


@pytest.mark.parametrize("size", SIZES)
def test_scenes_of_many_objects(size):
    drawn = many(300 if size < 64 else 100, seed=size, objects=4, fewest=0)
    assert set(np.unique(drawn.count)) == {0, 1, 2, 3, 4}
    check(drawn, seen(drawn, size), size)


def test_neighbours_of_one_colour_stay_apart():
    drawn = many(200, objects=4, rows=scenes.combinations(color=["green"], size=["large"]))
    check(drawn, seen(drawn, 16), 16)


def test_nothing_is_found_where_there_is_nothing():
    grounds = np.arange(len(scenes.BACKGROUNDS))
    blank = many(len(grounds))._replace(present=np.zeros((len(grounds), 1), bool), background=grounds)
    for size in SIZES:
        found = seen(blank, size)
        assert not np.any(found.present)
        np.testing.assert_array_equal(found.background, grounds)
        assert all(np.all(getattr(found, name) == -1) for name in scenes.OBJECT_ATTRIBUTES)


def test_noise_is_nothing():
    noise = jax.random.uniform(jax.random.key(0), (200, 16, 16, 3))
    found = detected(noise, 4)
    assert int(found.present.sum()) <= 2
    assert np.all(found.background == -1)
    plain = (
        np.ones((2, 16, 16, 3), np.float32) * np.array([[0.8, 0.2, 0.2], [0.28, 0.28, 0.28]], np.float32)[:, None, None]
    )
    found = detected(plain, 4)  # all red, and a grey that is none of the grounds
    assert not np.any(found.present)
    assert np.all(found.background == -1)


def test_a_form_that_is_no_shape_is_nothing():
    nothing = single()._replace(present=jnp.array([False]))
    red = jnp.array([0.8, 0.2, 0.2])
    bar = scenes.render(nothing, 32).at[12:20, 2:30].set(red)
    dot = scenes.render(nothing, 32).at[10:12, 10:12].set(red)
    found = detected(jnp.stack([bar, dot]), 1)
    assert not np.any(found.present)
    assert np.all(found.background == 0)


def test_pictures_that_are_nearly_right():
    """Noise of a twentieth of the range at 32 pixels: what samplers give. All but a few are read."""
    drawn = many(200, objects=4, fewest=1, seed=3)
    noise = 0.05 * np.random.default_rng(0).standard_normal((200, 32, 32, 3))
    found = detected(np.clip(pictures_of(drawn, 32) + noise, 0, 1).astype(np.float32), 4)
    assert len(differing(drawn, found)) <= 10


def test_order_is_that_of_reading():
    positions = jnp.array([[0.75, 0.75], [0.25, 0.75], [0.75, 0.25], [0.25, 0.25]])
    scene = scenes.Scene(
        jnp.arange(4), jnp.arange(4), jnp.zeros(4, int), jnp.zeros(4, int), positions, jnp.ones(4, bool), jnp.array(1)
    )
    np.testing.assert_array_equal(detected(scenes.render(scene, 32)[None], 4).shape[0], [3, 1, 2, 0])


def test_leading_axes_and_tracing():
    drawn = jax.tree.map(lambda x: x.reshape(2, 3, *x.shape[1:]), many(6, objects=2, fewest=1))
    found = jax.jit(lambda scene: scenes.detect(scenes.render(scene, 16), objects=2))(drawn)
    assert found.position.shape == (2, 3, 2, 2)
    for name in ("shape", "color", "size", "style", "present", "background"):
        np.testing.assert_array_equal(getattr(found, name), getattr(drawn, name))


def test_what_it_refuses():
    for shape in ((16, 16), (16, 16, 1), (16, 12, 3)):
        with pytest.raises(ValueError, match=r"picture must be \[\.\.\., S, S, 3\]"):
            scenes.detect(jnp.zeros(shape))
    with pytest.raises(ValueError, match="picture must be floats"):
        scenes.detect(jnp.zeros((16, 16, 3), jnp.uint8))
    with pytest.raises(ValueError, match="size must be"):
        scenes.detect(jnp.zeros((4, 4, 3)))
    with pytest.raises(ValueError, match="objects must be at least 1"):
        scenes.detect(jnp.zeros((16, 16, 3)), objects=0)


def test_the_hue_of_pictures_sharp_or_blurred():
    drawn = jax.tree.map(lambda x: x[::3], every_single(seed=7))
    pictures = pictures_of(drawn, 16)
    np.testing.assert_array_equal(scenes.hue(pictures), drawn.color[:, 0])
    # Means over neighbours are what a generator of one step may draw; the detector sees no shape in most of them.
    near = (pictures + np.roll(pictures, 1, 1) + np.roll(pictures, 1, 2) + np.roll(pictures, (1, 1), (1, 2))) / 4
    np.testing.assert_array_equal(scenes.hue(near), drawn.color[:, 0])
    assert np.all(np.asarray(scenes.hue(np.repeat(pictures[:4, ..., :1], 3, -1))) == -1)
    # Of two colours the larger; a single pixel is too little.
    two = np.full((16, 16, 3), 0.3, np.float32)
    two[:4, :4, 0] += 0.6
    two[8:, 8:, 2] += 0.6
    assert scenes.COLORS[int(scenes.hue(two))] == "blue"
    one = np.full((16, 16, 3), 0.3, np.float32)
    one[3, 3, 0] += 0.6
    assert scenes.hue(one) == -1
    assert scenes.hue(one, least=0.001) == 0
