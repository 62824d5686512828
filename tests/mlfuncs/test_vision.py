"""Image operations: total variation by hand, invariances, edges; patches in both orders, there and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlfuncs import vision

KEY = jax.random.key(0)


def test_total_variation_by_hand():
    # Across: |2 - 1|, |5 - 3| -> 1.5; down: |3 - 1|, |5 - 2| -> 2.5.
    image = jnp.array([[1.0, 2.0], [3.0, 5.0]])[None, :, :, None]
    np.testing.assert_allclose(vision.total_variation(image), [4.0])
    # A second channel that is flat halves both means.
    two = jnp.concatenate([image, jnp.ones_like(image)], axis=-1)
    np.testing.assert_allclose(vision.total_variation(two), [2.0])


def test_each_mean_has_its_own_count():
    # 2 x 3: one unit step across of two per row, none down: 1/2, not a share of all seven differences.
    image = jnp.array([[0.0, 1.0, 1.0], [0.0, 1.0, 1.0]])[None, :, :, None]
    np.testing.assert_allclose(vision.total_variation(image), [0.5])


def test_invariances():
    x = jax.random.normal(KEY, (3, 5, 4, 2))
    value = vision.total_variation(x)
    for other in (x + 3, -x, x[:, ::-1], x[:, :, ::-1], x.swapaxes(1, 2)):
        np.testing.assert_allclose(vision.total_variation(other), value, rtol=1e-5)
    np.testing.assert_allclose(vision.total_variation(3 * x), 3 * value, rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(lambda x: vision.total_variation(x[None])[0])(x), value, rtol=1e-6)


@pytest.mark.parametrize("shape", [(2, 1, 4, 1), (2, 4, 1, 1), (2, 1, 1, 1)])
def test_one_pixel_sides_count_for_nothing(shape):
    x = jax.random.normal(KEY, shape)
    value, gradient = jax.value_and_grad(lambda x: vision.total_variation(x).sum())(x)
    np.testing.assert_allclose(value, np.abs(np.diff(np.asarray(x).reshape(2, -1))).mean(1).sum() if 4 in shape else 0)
    assert np.all(np.isfinite(gradient))


def test_edges():
    assert vision.total_variation(jnp.zeros((0, 4, 4, 1))).shape == (0,)
    assert vision.total_variation(jnp.ones((1, 2, 2, 1), jnp.bfloat16)).dtype == jnp.float32
    np.testing.assert_allclose(vision.total_variation(jnp.array([[[[3]], [[1]]]])), [2.0])  # integers
    flat = jax.grad(lambda x: vision.total_variation(x).sum())(jnp.ones((1, 3, 3, 1)))
    np.testing.assert_array_equal(flat, np.zeros((1, 3, 3, 1)))  # a flat image is a minimum
    with pytest.raises(ValueError, match="images"):
        vision.total_variation(jnp.ones((4, 4, 1)))


def test_patches_by_hand():
    # Pixel (row, column) of channel c is 100 c + 10 row + column.
    rows, columns, channels = np.meshgrid(np.arange(2), np.arange(4), np.arange(2), indexing="ij")
    image = jnp.asarray(100 * channels + 10 * rows + columns)[None]
    by_channel = [[0, 1, 10, 11, 100, 101, 110, 111], [2, 3, 12, 13, 102, 103, 112, 113]]
    by_pixel = [[0, 100, 1, 101, 10, 110, 11, 111], [2, 102, 3, 103, 12, 112, 13, 113]]
    np.testing.assert_array_equal(vision.patchify(image), [by_channel])
    np.testing.assert_array_equal(vision.patchify(image, channels_last=True), [by_pixel])


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("patch", [1, 2])
def test_patches_there_and_back(patch, channels_last):
    x = jnp.arange(2 * 4 * 6 * 3, dtype=jnp.int32).reshape(2, 4, 6, 3)
    tokens = vision.patchify(x, patch=patch, channels_last=channels_last)
    assert tokens.shape == (2, 24 // patch**2, 3 * patch**2)
    back = vision.unpatchify(tokens, height=4, width=6, patch=patch, channels_last=channels_last)
    np.testing.assert_array_equal(back, x)
    assert back.dtype == x.dtype


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: vision.patchify(jnp.ones((1, 4, 6, 1)), patch=4), "4 for 4 x 6"),
        (lambda: vision.patchify(jnp.ones((4, 6, 1))), "x must"),
        (lambda: vision.patchify(jnp.ones((1, 4, 6, 1)), patch=0), "patch"),
        (lambda: vision.unpatchify(jnp.ones((1, 5, 4)), height=4, width=6), "2 x 3.*got 5"),
        (lambda: vision.unpatchify(jnp.ones((1, 6, 5)), height=4, width=6), "multiple of 4.*got 5"),
        (lambda: vision.unpatchify(jnp.ones((1, 6, 4)), height=5, width=6), "2 for 5 x 6"),
        (lambda: vision.unpatchify(jnp.ones((6, 4)), height=4, width=6), "tokens"),
    ],
)
def test_bad_patches(call, match):
    with pytest.raises(ValueError, match=match):
        call()
