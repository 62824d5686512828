"""Pictures of a product: what they share, where their defects are, and how large these are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from experiments.worlds import defects

KEY = jax.random.key(0)
SIZE = 64


@pytest.fixture(scope="module")
def made():
    return jax.jit(defects.product)(KEY)


@pytest.fixture(scope="module")
def tested(made):
    draw = jax.jit(lambda key: defects.mixed(key, made, 30, SIZE, contrast=0.3))
    return jax.tree.map(np.asarray, draw(jax.random.key(1)))


def test_a_product_is_one_shape_in_all_cells(made):
    for name in ("shape", "color", "size", "style"):
        assert len(np.unique(getattr(made.scene, name))) == 1
    np.testing.assert_allclose(made.scene.position[:2], [[1 / 6, 1 / 6], [1 / 6, 1 / 2]], rtol=1e-6)
    covered = np.asarray(defects.scenes.masks(made.scene, SIZE)) > 0
    assert np.all(covered.sum(0) <= 1)  # shapes do not touch
    angle, period, strength = map(float, made.ground)
    assert 0 <= angle <= np.pi
    assert 0.1 <= period <= 0.25
    assert 0.1 <= strength <= 0.2


def test_stripes_stand_at_right_angles_to_their_direction():
    grey = defects.scenes.draw(KEY, backgrounds=("grey",))._replace(present=jnp.zeros(1, bool))
    draw = jax.jit(lambda angle, key, grey: defects.picture(key, grey, defects.Ground(angle, 0.25, 0.2), SIZE))
    along, down = (np.asarray(draw(jnp.float32(angle), KEY, grey)) for angle in (0, np.pi / 2))
    for shown, axis in ((along, 0), (down, 1)):
        lines = shown.mean((axis, 2))
        assert abs(lines.max() - 0.7) < 0.02
        np.testing.assert_allclose(lines[16:], lines[:-16], atol=0.02)  # four periods
    # 12,288 values of noise: their deviation is within 4 % of 0.03 in more than 99.9 % of draws.
    assert abs(np.std(along - along.mean(0, keepdims=True)) / defects.NOISE - 1) < 0.05


def test_a_fifth_is_good_and_the_rest_has_one_defect_each(tested):
    pictures, masks = tested
    assert pictures.shape == (30, SIZE, SIZE, 3)
    assert pictures.min() >= 0
    assert pictures.max() <= 1
    areas = masks.sum((1, 2))
    np.testing.assert_array_equal(areas[:6], 0)
    given = areas[6:].reshape(6, 4)
    np.testing.assert_array_equal(given[:, :3], np.tile(defects.AREAS[:3], (6, 1)))
    np.testing.assert_array_equal(given[[0, 1, 3, 4], 3], 256)
    assert np.all((given[[2, 5], 3] > 100) & (given[[2, 5], 3] < 256))  # missing shapes
    assert all(scipy.ndimage.label(mask, np.ones((3, 3)))[1] == 1 for mask in masks[6:])


@pytest.fixture(scope="module")
def draw(made):
    return jax.jit(lambda key, kind: defects.faulty(key, made, kind, jnp.int32(64), SIZE, contrast=0.3))


@pytest.mark.parametrize("kind", ["blob", "scratch", "missing"])
def test_pixels_change_in_the_mask_alone(made, draw, kind):
    shown, mask = draw(KEY, jnp.int32(defects.KINDS.index(kind)))
    # What it would be without the defect has the same stripes and noise.
    good = jax.jit(defects.picture, static_argnums=3)(jax.random.split(KEY, 5)[0], made.scene, made.ground, SIZE)
    change = np.abs(shown - good).max(-1)
    if kind == "missing":  # a rim of pixels is covered in part
        mask = scipy.ndimage.binary_dilation(mask)
    np.testing.assert_allclose(change[~mask], 0, atol=1e-6)
    assert change[mask].mean() > 0.08


def test_scratches_are_long_and_blobs_round():
    def spread(kind):
        mask = np.asarray(defects.region(KEY, jnp.int32(defects.KINDS.index(kind)), jnp.int32(64), SIZE))
        values = np.linalg.eigvalsh(np.cov(np.argwhere(mask).T))
        return np.sqrt(values[1] / values[0])

    assert spread("blob") < 1.2
    assert 4 < spread("scratch") < 8  # sqrt(32) widths


def test_other_pictures_are_of_no_product():
    shown = jax.jit(lambda key: defects.varied(key, 6, SIZE))(KEY)
    assert shown.shape == (6, SIZE, SIZE, 3)
    colours = np.asarray(shown).mean((1, 2))
    assert np.all(np.abs(colours[1:] - colours[0]).max(-1) > 1e-3)
