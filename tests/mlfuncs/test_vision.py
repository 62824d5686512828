"""Image operations: total variation by hand, invariances, edges."""

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
