"""Masked modelling: errors and rankings by hand, counts and contents of masks, statistics, sharding, bad input."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from mlfuncs import masked_modeling, vision

KEY = jax.random.key(0)
MESH = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
RANDOM = np.random.default_rng(0)
PREDICTED, NOISE = RANDOM.normal(size=(2, 8, 16)).astype(np.float32)


def test_patch_error_by_hand():
    # 2 x 4 pixels in two patches of 2 x 2.
    images = jnp.array([[1.0, 2.0, 5.0, 6.0], [3.0, 4.0, 7.0, 8.0]])[None, :, :, None]
    prediction = jnp.array([[[1.0, 2.0, 3.0, 6.0], [0.0, 0.0, 0.0, 0.0]]])  # off by 2 in one of four values
    error = masked_modeling.patch_error(prediction, images, jnp.array([[True, False]]), patch_size=2)
    np.testing.assert_allclose(error, [[1.0, 0.0]])
    # 5, 6, 7, 8: mean 6.5, unbiased variance 5 / 3.
    settings = {"patch_size": 2, "normalise_target": True}
    error = masked_modeling.patch_error(jnp.zeros((1, 2, 4)), images, jnp.array([[False, True]]), **settings)
    np.testing.assert_allclose(error, [[0.0, (5 / 4) / (5 / 3)]], rtol=1e-5)


def test_normalised_targets_forget_the_scale_and_the_level_of_a_patch():
    images, mask = jax.random.normal(KEY, (2, 4, 4, 3)), jnp.ones((2, 4), bool)
    prediction = jnp.asarray(RANDOM.normal(size=(2, 4, 12)), jnp.float32)
    error = partial(masked_modeling.patch_error, prediction, mask=mask, patch_size=2, normalise_target=True)
    np.testing.assert_allclose(error(50 * images + 7), error(images), rtol=1e-4)
    flat = error(jnp.ones((2, 4, 4, 3)))
    np.testing.assert_allclose(flat, np.mean(np.square(prediction), axis=-1), rtol=1e-5)
    one = masked_modeling.patch_error(
        jnp.ones((1, 4, 1)), images[:1, :2, :2, :1], mask[:1], patch_size=1, normalise_target=True
    )
    np.testing.assert_array_equal(one, np.ones((1, 4)))  # one value has no variance


def test_what_is_visible_does_not_matter():
    images, mask = jnp.ones((1, 2, 4, 1)), jnp.array([[True, False]])
    prediction = jnp.zeros((1, 2, 4)).at[0, 1].set(jnp.inf)
    total = lambda p: masked_modeling.patch_error(p, images, mask, patch_size=2).sum()  # noqa: E731
    value, slope = jax.value_and_grad(total)(prediction)
    assert value == 1
    np.testing.assert_allclose(slope, [[[-0.5] * 4, [0] * 4]])


def code_ranking(d, e, eps=1e-6):
    """All ordered pairs, both branches, in float64."""
    total, pairs = 0.0, 0
    for i in range(len(d)):
        for j in range(len(d)):
            if e[i] != e[j]:
                sigmoid = 1 / (1 + np.exp(-(float(d[j]) - float(d[i]))))
                total -= np.log((sigmoid if e[j] > e[i] else 1 - sigmoid) + eps)
                pairs += 1
    return total / max(pairs, 1)


def test_ranking_agrees_with_all_ordered_pairs():
    errors = np.round(np.abs(NOISE) * 3) / 3  # with ties
    expected = [code_ranking(d, e) for d, e in zip(PREDICTED, errors, strict=True)]
    np.testing.assert_allclose(masked_modeling.relative_difficulty(PREDICTED, errors), expected, rtol=1e-5)
    mask = NOISE > 0
    expected = [code_ranking(d[m], e[m]) for d, e, m in zip(PREDICTED, errors, mask, strict=True)]
    np.testing.assert_allclose(masked_modeling.relative_difficulty(PREDICTED, errors, mask=mask), expected, rtol=1e-5)


def test_ranking_depends_on_order_alone():
    value = masked_modeling.relative_difficulty(PREDICTED, NOISE)
    for predicted, errors in ((PREDICTED + 9, NOISE), (PREDICTED, np.exp(NOISE)), (PREDICTED[:, ::-1], NOISE[:, ::-1])):
        np.testing.assert_allclose(masked_modeling.relative_difficulty(predicted, errors), value, rtol=1e-4)
    right = masked_modeling.relative_difficulty(100 * NOISE, NOISE)
    wrong = masked_modeling.relative_difficulty(-100 * NOISE, NOISE)
    assert np.all(right < 0.1)
    assert np.all((wrong > 10) & (wrong <= 1e-5 - np.log(1e-6)))  # bounded by the epsilon


def test_ranking_without_pairs_is_zero_and_gradients_are_finite():
    total = lambda d, e, **more: masked_modeling.relative_difficulty(d, e, **more).sum()  # noqa: E731
    two = jnp.array([[3.0, -3.0]])
    for predicted, errors, more in (
        (two, jnp.ones((1, 2)), {}),
        (two[:, :1], jnp.ones((1, 1)), {}),
        (two, two, {"mask": jnp.array([[True, False]])}),
    ):
        value, slope = jax.value_and_grad(total)(predicted, errors, **more)
        assert value == 0
        np.testing.assert_array_equal(slope, np.zeros_like(predicted))
    slopes = jax.grad(total, argnums=(0, 1))(jnp.array([[1e4, -1e4, 0.0]]), jnp.array([[0.0, 1.0, 2.0]]))
    assert np.all(np.isfinite(slopes[0]))
    np.testing.assert_array_equal(slopes[1], np.zeros((1, 3)))  # errors are constants
    # What is masked out may be anything; what counts is never hidden.
    broken = jnp.array([[1.0, 2.0, jnp.nan]])
    assert np.isnan(masked_modeling.relative_difficulty(jnp.ones((1, 3)), broken))
    fine = masked_modeling.relative_difficulty(broken, broken, mask=jnp.array([[True, True, False]]))
    np.testing.assert_allclose(fine, np.log1p(np.exp(-1.0)), rtol=1e-5)


def test_absolute_difficulty_by_hand():
    # 1, 2, 3 standardise to -1, 0, 1.
    value = masked_modeling.absolute_difficulty([[0.0, 0.0, 0.0], [-1.0, 0.0, 1.0]], [[1.0, 2.0, 3.0]] * 2)
    np.testing.assert_allclose(value, [2 / 3, 0.0], rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(masked_modeling.absolute_difficulty([[3.0, 1.0]], [[5.0, 5.0]]), [5.0])
    np.testing.assert_allclose(masked_modeling.absolute_difficulty([[3.0]], [[5.0]]), [9.0])
    constant = jax.grad(lambda e: masked_modeling.absolute_difficulty(jnp.ones((1, 2)), e).sum())(jnp.ones((1, 2)))
    np.testing.assert_array_equal(constant, np.zeros((1, 2)))


def test_share_of_hard_patches_grows_linearly():
    shares = jax.jit(lambda epoch: masked_modeling.hard_fraction(epoch, 4))(jnp.arange(6))
    np.testing.assert_allclose(shares, [0.125, 0.25, 0.375, 0.5, 0.5, 0.5])
    np.testing.assert_allclose(masked_modeling.hard_fraction(0, 1, final=1.0), 1.0)


def code_mask(predicted, noise, hidden, hard):
    """One image, by sorting in NumPy."""
    order = np.argsort(-predicted, kind="stable")
    others = np.sort(order[hard:])
    chosen = np.concatenate([order[:hard], others[np.argsort(-noise[others], kind="stable")][: hidden - hard]])
    mask = np.zeros(len(predicted), bool)
    mask[chosen] = True
    return mask


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.5, 1.0])
def test_masks_hold_the_hardest_and_then_the_noisiest(fraction):
    predicted, noise = np.round(PREDICTED), np.round(NOISE * 2)  # with ties
    hidden, hard = 12, int(12 * fraction)
    expected = [code_mask(p, n, hidden, hard) for p, n in zip(predicted, noise, strict=True)]
    mask = masked_modeling.hard_patch_mask(predicted, noise, hard_fraction=fraction)
    np.testing.assert_array_equal(mask, expected)
    assert np.all(mask.sum(1) == hidden)
    # Patches have no order of their own: moved together, their masks move along (without ties).
    order = RANDOM.permutation(16)
    moved = masked_modeling.hard_patch_mask(PREDICTED[:, order], NOISE[:, order], hard_fraction=fraction)
    np.testing.assert_array_equal(
        moved, masked_modeling.hard_patch_mask(PREDICTED, NOISE, hard_fraction=fraction)[:, order]
    )


def test_counts_survive_rounding_and_traced_fractions_are_not_compiled_in():
    traces = []
    predicted, noise = RANDOM.normal(size=(2, 1, 100))

    @jax.jit
    def hard(fraction):
        traces.append(None)
        # With this noise the random part is the easiest patches, and the hard part is counted by what is left.
        return masked_modeling.hard_patch_mask(predicted, -predicted, mask_ratio=0.5, hard_fraction=fraction)

    hardest = np.argsort(-predicted[0])
    for fraction in (0.0, 0.02, 0.14, 0.58, 0.7, 0.94, 1.0):
        expected = round(50 * fraction)  # whole numbers all
        for mask in (
            hard(fraction),
            masked_modeling.hard_patch_mask(predicted, -predicted, mask_ratio=0.5, hard_fraction=fraction),
        ):
            assert mask.sum() == 50
            assert mask[0, hardest[:expected]].all()
            assert not mask[0, hardest[expected:50]].any()
    assert len(traces) == 1
    assert masked_modeling.hard_patch_mask(predicted, noise, mask_ratio=0.6).sum() == 60


def test_edges_of_masks():
    assert not masked_modeling.hard_patch_mask(PREDICTED, NOISE, mask_ratio=0.0, hard_fraction=1.0).any()
    assert not masked_modeling.hard_patch_mask(PREDICTED[:, :1], NOISE[:, :1], mask_ratio=0.0).any()
    with pytest.raises(ValueError, match="visible"):
        masked_modeling.hard_patch_mask(PREDICTED[:, :1], NOISE[:, :1])
    # The count holds whatever a diverged predictor or odd noise brings.
    broken, odd = PREDICTED.copy(), NOISE.copy()
    broken[:, 3], odd[:, 5], odd[:, 6], odd[:, 7] = np.nan, np.nan, -np.inf, np.inf
    for fraction in (0.0, 0.5, 1.0):
        mask = masked_modeling.hard_patch_mask(broken, odd, hard_fraction=fraction)
        assert np.all(mask.sum(1) == 12)
    assert not mask[:, 3].any()


def test_random_masks_are_uniform_and_hard_patches_certain():
    predicted = jnp.tile(jnp.arange(8.0), (4000, 1))
    mask = masked_modeling.sample_hard_patch_mask(KEY, predicted, mask_ratio=0.5, hard_fraction=0.5)
    assert np.all(mask[:, 6:])  # two of four by difficulty
    shares = np.asarray(mask[:, :6]).mean(0)
    # Two of the other six: six shares, 4.5 standard deviations each: wrong for fewer than 1 in 20,000 keys.
    assert np.all(np.abs(shares - 1 / 3) < 4.5 * np.sqrt((1 / 3) * (2 / 3) / 4000))


def test_sampled_masks_do_not_depend_on_the_batch_or_the_devices():
    sample = partial(masked_modeling.sample_hard_patch_mask, KEY, hard_fraction=0.25)
    mask = sample(PREDICTED)
    np.testing.assert_array_equal(sample(PREDICTED[:3]), mask[:3])
    across = jax.shard_map(partial(sample, axis_name="data"), mesh=MESH, in_specs=P("data"), out_specs=P("data"))
    np.testing.assert_array_equal(jax.jit(across)(PREDICTED), mask)
    other = masked_modeling.sample_hard_patch_mask(jax.random.key(1), PREDICTED, hard_fraction=0.25)
    assert not np.array_equal(other, mask)


def test_half_precision_is_widened():
    half = jnp.ones((1, 2), jnp.bfloat16)
    assert masked_modeling.relative_difficulty(half, half).dtype == jnp.float32
    assert masked_modeling.absolute_difficulty(half, half).dtype == jnp.float32
    error = masked_modeling.patch_error(
        jnp.ones((1, 1, 4), jnp.bfloat16), jnp.ones((1, 2, 2, 1)), half[:, :1], patch_size=2
    )
    assert error.dtype == jnp.float32


IMAGES = jnp.ones((2, 4, 4, 1))
PATCHES = vision.patchify(IMAGES)
SHOWN = jnp.ones((2, 4), bool)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: masked_modeling.patch_error(PATCHES, IMAGES, SHOWN, patch_size=3), "patch_size.*3 for"),
        (lambda: masked_modeling.patch_error(PATCHES, IMAGES[0], SHOWN, patch_size=2), "images"),
        (lambda: masked_modeling.patch_error(PATCHES, IMAGES, SHOWN, patch_size=0), "patch_size"),
        (lambda: masked_modeling.patch_error(PATCHES, IMAGES, SHOWN, patch_size=4), r"\(2, 1, 16\).*\(2, 4, 4\)"),
        (lambda: masked_modeling.patch_error(PATCHES[:1], IMAGES, SHOWN, patch_size=2), "prediction"),
        (lambda: masked_modeling.patch_error(PATCHES, IMAGES, SHOWN[:, :3], patch_size=2), r"mask.*\(2, 4\).*\(2, 3\)"),
        (lambda: masked_modeling.patch_error(PATCHES, IMAGES, SHOWN, patch_size=2, eps=0.0), "eps"),
        (lambda: masked_modeling.relative_difficulty(PREDICTED, NOISE[:, :3]), "reconstruction_loss"),
        (lambda: masked_modeling.relative_difficulty(PREDICTED[0], NOISE[0]), "predicted"),
        (lambda: masked_modeling.relative_difficulty(PREDICTED, NOISE, mask=SHOWN), "mask"),
        (lambda: masked_modeling.relative_difficulty(PREDICTED[:, :0], NOISE[:, :0]), "at least one patch"),
        (lambda: masked_modeling.relative_difficulty(PREDICTED, NOISE, eps=-1.0), "eps"),
        (lambda: masked_modeling.absolute_difficulty(PREDICTED, NOISE[:3]), "reconstruction_loss"),
        (lambda: masked_modeling.hard_fraction(-1, 5), "epoch"),
        (lambda: masked_modeling.hard_fraction(0, 0), "total_epochs"),
        (lambda: masked_modeling.hard_fraction(0, 5, final=1.5), "final"),
        (lambda: masked_modeling.hard_patch_mask(PREDICTED, NOISE, mask_ratio=1.0), "mask_ratio"),
        (lambda: masked_modeling.hard_patch_mask(PREDICTED, NOISE, mask_ratio=-0.1), "mask_ratio"),
        (lambda: masked_modeling.hard_patch_mask(PREDICTED, NOISE, mask_ratio=0.95), "visible, got 0.95 of 16"),
        (lambda: masked_modeling.hard_patch_mask(PREDICTED, NOISE, hard_fraction=1.5), "hard_fraction"),
        (lambda: masked_modeling.hard_patch_mask(PREDICTED, NOISE, hard_fraction=-0.5), "hard_fraction"),
        (lambda: masked_modeling.hard_patch_mask(PREDICTED, NOISE[:3]), "noise"),
        (lambda: masked_modeling.sample_hard_patch_mask(KEY, PREDICTED[0]), "predicted"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
