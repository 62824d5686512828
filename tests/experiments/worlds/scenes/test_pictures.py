"""Renderings: values, edges, masks that say which pixels are whose, what overlaps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.worlds import scenes
from tests.experiments.worlds.scenes.helpers import every_single, many, single

RED = (0.8, 0.2, 0.2)


def test_a_red_square_by_hand():
    # Half the side is 0.85 * 0.19 * 32 = 5.168 pixels: 4.832 .. 27.168 pixels from either side of the middle.
    picture = np.asarray(scenes.render(single((1, 0, 1, 0), background=1), 32))
    assert picture.shape == (32, 32, 3)
    np.testing.assert_allclose(picture[11:21, 11:21], np.broadcast_to(RED, (10, 10, 3)), atol=1e-6)
    np.testing.assert_allclose(picture[:10], 0.5, atol=1e-6)
    np.testing.assert_allclose(picture[:, 22:], 0.5, atol=1e-6)
    edge = 0.168 * np.array(RED) + (1 - 0.168) * 0.5
    np.testing.assert_allclose(picture[10, 16], edge, atol=1e-5)
    np.testing.assert_allclose(picture[16, 21], edge, atol=1e-5)


@pytest.mark.parametrize("size", [16, 32, 64])
def test_masks_agree_with_pixels(size):
    drawn = every_single()
    pictures = jax.jit(lambda scene: scenes.render(scene, size))(drawn)
    covered = np.asarray(jax.jit(lambda scene: scenes.masks(scene, size))(drawn))[:, 0]
    empty = scenes.render(drawn._replace(present=jnp.zeros_like(drawn.present)), size)
    pictures, empty = np.asarray(pictures), np.asarray(empty)
    assert pictures.min() >= 0
    assert pictures.max() <= 1 + 1e-6
    assert covered.min() == 0
    assert np.all(covered.max(axis=(1, 2)) > (0.8 if size == 16 else 1 - 1e-6))
    # Outside, the ground; inside, the object's saturation; between, in proportion.
    np.testing.assert_array_equal(pictures[covered == 0], empty[covered == 0])
    spread = pictures.max(-1) - pictures.min(-1)
    np.testing.assert_allclose(spread, 0.6 * covered, atol=1e-5)
    hue = np.argmax(scenes.pictures.CHROMA @ (pictures - pictures.mean(-1, keepdims=True))[covered == 1].T, axis=0)
    colors = np.broadcast_to(np.asarray(drawn.color)[:, :, None], covered.shape)[covered == 1]
    np.testing.assert_array_equal(hue, colors)


def test_areas():
    """Coverage sums to the area: edges are anti-aliased, not cut."""
    radius = 0.19
    areas = [np.pi, (2 * 0.85) ** 2, 1.2**2 * 3 * np.sqrt(3) / 4, 2 * 1.1**2, 2 * 2 * 0.8 - 0.8**2]
    for shape, area in enumerate(areas):
        for position in ((0.5, 0.5), (0.51, 0.487)):
            covered = scenes.masks(single((shape, 0, 1, 0), position), 64)
            np.testing.assert_allclose(float(covered.mean()), area * radius**2, rtol=0.02)


def test_later_objects_lie_over_earlier_ones():
    below, above = single((0, 0, 1, 0), (0.5, 0.45)), single((1, 2, 1, 0), (0.5, 0.6))
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]) if a.ndim else a, below, above)
    visible, whole = scenes.masks(both, 32), scenes.masks(both, 32, hidden=True)
    np.testing.assert_allclose(whole, jnp.concatenate([scenes.masks(below, 32), scenes.masks(above, 32)]), atol=1e-6)
    np.testing.assert_allclose(visible[1], whole[1], atol=1e-6)
    np.testing.assert_allclose(visible[0], whole[0] * (1 - whole[1]), atol=1e-6)
    assert float(jnp.sum(whole[0] - visible[0])) > 10
    picture = scenes.render(both, 32)
    np.testing.assert_allclose(
        picture[whole[1] == 1], np.broadcast_to((0.2, 0.2, 0.8), (int((whole[1] == 1).sum()), 3)), atol=1e-6
    )


def test_one_attribute_changed_changes_the_object_alone():
    scene = jax.tree.map(lambda x: x[0], many(1, objects=3, grid=2))
    edited = scenes.change(scene, 1, color=scenes.COLORS[(int(scene.color[1]) + 1) % 6])
    difference = np.abs(np.asarray(scenes.render(edited, 32) - scenes.render(scene, 32))).max(-1)
    region = np.asarray(scenes.masks(scene, 32))[1]
    np.testing.assert_array_equal(difference > 1e-6, region > 1e-6)
    moved = scene._replace(background=(scene.background + 1) % 5)
    difference = np.abs(np.asarray(scenes.render(moved, 32) - scenes.render(scene, 32))).max(-1)
    assert np.all(difference[np.asarray(scenes.masks(scene, 32)).sum(0) > 1 - 1e-6] < 1e-5)


def test_batches_are_scenes_one_by_one():
    drawn = many(6, objects=2, fewest=0)
    stacked = jax.tree.map(lambda x: x.reshape(2, 3, *x.shape[1:]), drawn)
    each = jnp.stack([scenes.render(jax.tree.map(lambda x, i=i: x[i], drawn), 16) for i in range(6)])
    np.testing.assert_allclose(scenes.render(stacked, 16).reshape(each.shape), each, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(lambda s: scenes.render(s, 16))(drawn), each, atol=1e-6)
    assert scenes.masks(stacked, 16).shape == (2, 3, 2, 16, 16)


def test_absent_objects_leave_no_trace():
    drawn = many(1, objects=4, fewest=0, seed=1)._replace(present=jnp.zeros((1, 4), bool))
    assert np.all(np.asarray(scenes.masks(drawn, 16)) == 0)


def test_pictures_have_gradients_in_positions():
    def darkness(position):
        return jnp.sum(scenes.render(single((0, 0, 1, 0), position)._replace(background=jnp.array(4)), 16))

    gradient = jax.grad(darkness)(jnp.array([0.5, 0.5]) + 0.5 / 16)  # a pixel at the very centre
    assert bool(jnp.all(jnp.isfinite(gradient)))
    assert gradient[0] < 0  # the ground gets lighter downwards, and more of it is hidden there
    assert abs(gradient[1]) < 0.05 * abs(gradient[0])


def test_size_is_checked():
    for size in (7, 16.5, True, -16):
        with pytest.raises(ValueError, match="size must be a whole number of pixels >= 8"):
            scenes.render(single(), size)
        with pytest.raises(ValueError, match="size must be a whole number of pixels >= 8"):
            scenes.masks(single(), size)
