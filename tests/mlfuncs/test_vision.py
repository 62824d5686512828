"""Image operations: total variation by hand, invariances, edges; patches in both orders, there and back; anomaly maps."""

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


def test_mixup_by_hand():
    first, second = jnp.array([[0.0, 1.0], [2.0, 3.0]]), jnp.array([[4.0, 5.0], [6.0, 7.0]])
    np.testing.assert_allclose(vision.mixup(first, second, jnp.array([0.25, 1.0])), [[3.0, 4.0], [2.0, 3.0]])
    images = jax.random.normal(KEY, (2, 3, 4, 4, 1))
    np.testing.assert_allclose(vision.mixup(*images, jnp.full(3, 0.5)), images.mean(0), rtol=1e-5, atol=1e-6)
    half = vision.mixup(first.astype(jnp.bfloat16), second.astype(jnp.bfloat16), jnp.zeros(2))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_array_equal(half, second)


@pytest.mark.parametrize("concentration", [0.2, 1.0, 4.0])
def test_mixup_coefficients_follow_the_beta_law(concentration):
    draws = 1000
    values = np.asarray(vision.mixup_coefficients(KEY, draws, concentration=concentration))
    # Moments of Beta(a, a), each within 5 standard errors: wrong alarms in fewer than 1 of 10^6 runs.
    variance = 1 / (4 * (2 * concentration + 1))
    assert abs(values.mean() - 0.5) < 5 * np.sqrt(variance / draws)
    squares = (values - 0.5) ** 2
    assert abs(squares.mean() - variance) < 5 * squares.std() / np.sqrt(draws)
    assert np.all((values >= 0) & (values <= 1))


def test_partial_mixup_mixes_an_exact_share():
    draw = jax.jit(lambda key: vision.mixup_coefficients(key, 20, mixed_fraction=0.25))
    mixed = np.asarray(jax.vmap(draw)(jax.random.split(KEY, 100))) < 1
    np.testing.assert_array_equal(mixed.sum(1), np.full(100, 5))
    # Every example is as likely: 20 counts of Binomial(100, 1/4), each within 5 deviations.
    assert np.all(np.abs(mixed.sum(0) - 25) < 5 * np.sqrt(100 * 0.25 * 0.75))
    np.testing.assert_array_equal(vision.mixup_coefficients(KEY, 3, mixed_fraction=0.0), np.ones(3))
    np.testing.assert_allclose(vision.mixup_coefficients(KEY, 3, concentration=1e8), np.full(3, 0.5), atol=1e-3)
    assert vision.mixup_coefficients(KEY, 0).shape == (0,)
    # The coefficient of an example does not depend on the size of the batch.
    np.testing.assert_allclose(vision.mixup_coefficients(KEY, 8)[:3], vision.mixup_coefficients(KEY, 3), rtol=1e-6)


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
        (lambda: vision.mixup(jnp.ones((2, 3)), jnp.ones((2, 4)), jnp.ones(2)), "second"),
        (lambda: vision.mixup(jnp.ones((2, 3)), jnp.ones((2, 3)), jnp.ones(3)), "coefficients"),
        (lambda: vision.mixup(jnp.ones((2, 3)), jnp.ones((2, 3)), jnp.array([0.5, 1.5])), "coefficients"),
        (lambda: vision.mixup(jnp.ones((2, 3), int), jnp.ones((2, 3), int), jnp.ones(2)), "first must be floats"),
        (lambda: vision.mixup(jnp.float32(1), jnp.float32(1), jnp.ones(1)), "first"),
        (lambda: vision.mixup_coefficients(KEY, -1), "batch"),
        (lambda: vision.mixup_coefficients(KEY, 2, concentration=0.0), "concentration"),
        (lambda: vision.mixup_coefficients(KEY, 2, mixed_fraction=1.1), "mixed_fraction"),
    ],
)
def test_bad_mixup(call, match):
    with pytest.raises(ValueError, match=match):
        call()


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


FEATURES = jax.random.normal(KEY, (4, 2, 6, 3))  # both predictions, the early and the late layer


def test_anomaly_map_by_hand():
    # The early layer is missed by a right angle, sqrt 2; the late one by the opposite direction, 2.
    early, late = jnp.array([[[2.0, 0.0], [1.0, 0.0]]]), jnp.array([[[0.0, 3.0], [0.0, 1.0]]])
    backward, forward = jnp.array([[[0.0, 5.0], [7.0, 0.0]]]), jnp.array([[[0.0, -1.0], [1.0, 0.0]]])
    value = vision.transfer_anomaly_map(forward, backward, early, late, grid=(1, 2))
    np.testing.assert_allclose(value, [[[2 * np.sqrt(2), 0.0]]], rtol=1e-6)


def test_anomaly_map_needs_both_students_to_fail():
    forward, backward, early, late = FEATURES
    both = vision.transfer_anomaly_map(forward, backward, early, late, grid=(2, 3))
    assert both.shape == (2, 2, 3)
    assert float(both.min()) > 0
    for right in ((late, backward), (forward, early), (3 * late, 0.1 * early)):
        np.testing.assert_allclose(vision.transfer_anomaly_map(*right, early, late, grid=(2, 3)), 0, atol=1e-5)
    cosines = [
        jnp.sum(a * b, -1) / jnp.linalg.norm(a, axis=-1) / jnp.linalg.norm(b, axis=-1)
        for a, b in ((forward, late), (backward, early))
    ]
    expected = np.sqrt((2 - 2 * cosines[0]) * (2 - 2 * cosines[1])).reshape(2, 2, 3)
    np.testing.assert_allclose(both, expected, rtol=1e-4)
    flat = lambda f: vision.transfer_anomaly_map(f, early, early, late, grid=(2, 3)).sum()  # noqa: E731
    for prediction in (late, jnp.zeros_like(late)):
        assert np.all(np.isfinite(jax.grad(flat)(prediction)))


def test_box_blur_by_hand_and_its_rim():
    spike = jnp.zeros((1, 5, 5)).at[0, 2, 1].set(9.0)
    expected = np.zeros((1, 5, 5))
    expected[0, 1:4, 0:3] = 1.0
    np.testing.assert_allclose(vision.box_blur(spike, sizes=(3,)), expected, atol=1e-6)
    rim = vision.box_blur(jnp.ones((2, 4, 4)), sizes=(3,))
    np.testing.assert_allclose(rim[:, 0, :2], [[4 / 9, 6 / 9]] * 2, rtol=1e-6)
    np.testing.assert_allclose(rim[:, 1, 1], 1.0, rtol=1e-6)
    x = jax.random.normal(KEY, (2, 9, 7))
    np.testing.assert_array_equal(vision.box_blur(x, sizes=()), x)
    in_two = vision.box_blur(vision.box_blur(x, sizes=(5, 5, 5)), sizes=(5, 5, 7, 7, 7))
    np.testing.assert_allclose(vision.box_blur(x), in_two, atol=1e-6)
    gradient = jax.grad(lambda x: jnp.sum(vision.box_blur(x, sizes=(3,)) * rim[:1]))(jnp.zeros((1, 4, 4)))
    np.testing.assert_allclose(gradient, vision.box_blur(rim[:1], sizes=(3,)), rtol=1e-5)  # symmetric


def test_mean_of_the_highest_pixels():
    maps = jnp.arange(20.0).reshape(2, 2, 5)
    for fraction, expected in ((0.001, [9.0, 19.0]), (0.3, [8.0, 18.0]), (1, [4.5, 14.5]), (0.29999, [8.5, 18.5])):
        np.testing.assert_allclose(vision.top_fraction_mean(maps, fraction=fraction), expected)
    assert vision.top_fraction_mean(jnp.zeros((1, 1, 100)).at[0, 0, :29].set(1), fraction=0.29) == 1  # 0.29 * 100 < 29


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: vision.transfer_anomaly_map(*FEATURES, grid=(2, 4)), "6 places.*2 x 4"),
        (lambda: vision.transfer_anomaly_map(*FEATURES, grid=(6,)), "grid"),
        (lambda: vision.transfer_anomaly_map(*FEATURES[:3], FEATURES[3, :, :2], grid=(2, 3)), "late"),
        (lambda: vision.box_blur(jnp.ones((1, 3, 3)), sizes=(4,)), "odd, got 4"),
        (lambda: vision.box_blur(jnp.ones((1, 3, 3)), sizes=(-1,)), "sizes"),
        (lambda: vision.box_blur(jnp.ones((3, 3))), "maps"),
        (lambda: vision.top_fraction_mean(jnp.ones((1, 3, 3)), fraction=0.0), "fraction"),
        (lambda: vision.top_fraction_mean(jnp.ones((1, 3, 3)), fraction=1.1), "fraction"),
        (lambda: vision.top_fraction_mean(jnp.ones((1, 0, 3))), "maps"),
    ],
)
def test_bad_maps(call, match):
    with pytest.raises(ValueError, match=match):
        call()
