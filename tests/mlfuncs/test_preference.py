"""Losses on pairs: hand-worked values, clipping, where gradients go, ties and NaN, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlfuncs import preference

ZERO = jnp.zeros(1)


def test_sample_loss_by_hand():
    # Ratios 1.05 and 0.98: beta log(1.05 / 0.98) = 50 * 0.0689929 = 3.449643; softplus of its negative.
    loss = preference.pairwise_sample_loss(
        jnp.log(jnp.array([1.05])), ZERO, jnp.log(jnp.array([0.98])) + 2.0, jnp.array([2.0])
    )
    np.testing.assert_allclose(loss, [np.log1p(np.exp(-3.449643))], rtol=1e-4)


def test_equal_ratios_give_log_two():
    for clip in (0.1, None):
        loss = preference.pairwise_sample_loss([3.0, -7.0], [3.0, -7.0], [0.5, 0.5], [0.5, 0.5], clip=clip)
        np.testing.assert_allclose(loss, np.log(2) * np.ones(2), rtol=1e-6)
    np.testing.assert_allclose(preference.pairwise_denoising_loss([0.3], [0.7], [0.3], [0.7]), [np.log(2)], rtol=1e-6)


def test_ratios_are_clipped_where_they_would_overflow():
    far = preference.pairwise_sample_loss([1e4], [-1e4], [-1e4], [1e4], beta=1.0)
    np.testing.assert_allclose(far, [np.log1p(0.9 / 1.1)], rtol=1e-5)  # both at their bounds: log(1 + 0.9 / 1.1)
    unclipped = preference.pairwise_sample_loss([-100.0], [0.0], [100.0], [0.0], beta=50.0, clip=None)
    np.testing.assert_allclose(unclipped, [10_000.0])


def gradients(function, *args, **named):
    return jax.grad(lambda args: function(*args, **named).sum())(args)


def test_the_gradient_ends_at_the_bounds_and_never_enters_the_reference():
    log_probs = jnp.array([0.05, 0.2, -0.2]), jnp.array([-0.05, -0.05, 0.05])
    preferred, first_reference, other, second_reference = gradients(
        preference.pairwise_sample_loss, log_probs[0], jnp.zeros(3), log_probs[1], jnp.zeros(3)
    )
    assert preferred[0] < 0  # descent raises the preferred sample
    assert np.all(other > 0)
    np.testing.assert_array_equal(preferred[1:], [0, 0])
    np.testing.assert_array_equal(first_reference, np.zeros(3))
    np.testing.assert_array_equal(second_reference, np.zeros(3))
    free = gradients(preference.pairwise_sample_loss, log_probs[0], jnp.zeros(3), log_probs[1], jnp.zeros(3), clip=None)
    assert np.all(free[0] < 0)


def test_slope_at_equality_is_half_beta():
    preferred, _, other, _ = gradients(preference.pairwise_sample_loss, ZERO, ZERO, ZERO, ZERO, beta=8.0)
    np.testing.assert_allclose([preferred[0], other[0]], [-4.0, 4.0], rtol=1e-6)
    preferred, other, *references = gradients(
        preference.pairwise_denoising_loss, ZERO, ZERO, ZERO, ZERO, beta=8.0, negative_factor=0.5
    )
    np.testing.assert_allclose([preferred[0], other[0]], [4.0, -2.0], rtol=1e-6)
    np.testing.assert_array_equal(jnp.concatenate(references), [0, 0])


def test_denoising_loss_by_hand():
    # beta [(0.5 - 0.5 * 0.4) - (0.2 - 0.5 * 1.0)] = 2 (0.3 + 0.3) = 1.2
    loss = preference.pairwise_denoising_loss([0.2], [1.0], [0.5], [0.4], beta=2.0, negative_factor=0.5)
    np.testing.assert_allclose(loss, [np.log1p(np.exp(-1.2))], rtol=1e-6)


def test_hinge_loss_by_hand():
    # 1 - 2 (0.5 * 0.8 - 0.1) = 0.4; met in the second pair; met exactly in the third.
    loss = preference.pairwise_hinge_loss([0.1, 0.0, 0.5], [0.8, 9.0, 2.0], beta=2.0, negative_factor=0.5)
    np.testing.assert_allclose(loss, [0.4, 0.0, 0.0], atol=1e-6)
    preferred, other = gradients(
        preference.pairwise_hinge_loss,
        jnp.array([0.1, 0.0, 0.5]),
        jnp.array([0.8, 9.0, 2.0]),
        beta=2.0,
        negative_factor=0.5,
    )
    np.testing.assert_allclose(preferred, [2, 0, 0])
    np.testing.assert_allclose(other, [-1, 0, 0])


@pytest.mark.parametrize("difference", [-1e30, -1e3, -0.1, 0.0, 0.1, 1e3, 1e30])
def test_gradients_are_finite(difference):
    given = jnp.array([difference]), ZERO, -jnp.array([difference]), ZERO
    for function, named in (
        (preference.pairwise_sample_loss, {}),
        (preference.pairwise_sample_loss, {"clip": None}),
        (preference.pairwise_denoising_loss, {}),
    ):
        for part in gradients(function, *given, **named):
            assert bool(jnp.all(jnp.isfinite(part)))
    for part in gradients(preference.pairwise_hinge_loss, given[0], given[1]):
        assert bool(jnp.all(jnp.isfinite(part)))


def test_descent_widens_the_margin_of_a_model():
    """Two outcomes of a categorical model: the preferred one gains probability, and clipping stops it at 1 + epsilon."""
    start = jnp.zeros(2)

    def trained(clip):
        def loss(logits):
            log_prob, reference = jax.nn.log_softmax(logits), jax.nn.log_softmax(start)
            pair = log_prob[:1], reference[:1], log_prob[1:], reference[1:]
            return preference.pairwise_sample_loss(*pair, beta=5.0, clip=clip).sum()

        logits = start
        for _ in range(200):
            logits = logits - 0.05 * jax.grad(loss)(logits)
        return jax.nn.softmax(logits)[0] / 0.5

    ratio = trained(0.1)
    assert 1.1 <= ratio < 1.25  # one step of this size beyond the bound at most
    assert trained(None) > 1.5


def test_settings_per_example_and_traced():
    key = jax.random.key(0)
    a, b, c, d = 0.05 * jax.random.normal(key, (4, 3))
    betas, factors = jnp.array([1.0, 10.0, 50.0]), jnp.array([0.0, 0.5, 2.0])
    for function, args, named in (
        (preference.pairwise_sample_loss, (a, b, c, d), {"beta": betas, "clip": jnp.array([0.05, 0.1, 0.5])}),
        (preference.pairwise_denoising_loss, (a, b, c, d), {"beta": betas, "negative_factor": factors}),
        (preference.pairwise_hinge_loss, (a, b), {"beta": betas, "negative_factor": factors}),
    ):
        each = [
            function(*(x[i : i + 1] for x in args), **{name: float(value[i]) for name, value in named.items()})
            for i in range(3)
        ]
        np.testing.assert_allclose(function(*args, **named), jnp.concatenate(each), rtol=1e-6)
        compiled = jax.jit(lambda args, named, function=function: function(*args, **named))(args, named)
        np.testing.assert_allclose(compiled, jnp.concatenate(each), rtol=1e-6)


def test_half_precision_is_widened_and_nan_stays_in_its_example():
    given = [jnp.array([0.01, jnp.nan], jnp.bfloat16)] + [jnp.zeros(2, jnp.bfloat16)] * 3
    for function, args in (
        (preference.pairwise_sample_loss, given),
        (preference.pairwise_denoising_loss, given),
        (preference.pairwise_hinge_loss, given[:2]),
    ):
        loss = function(*args)
        assert loss.dtype == jnp.float32
        assert np.isfinite(loss[0])
        assert np.isnan(loss[1])


def test_signs():
    signs = preference.preference_signs([1.0, 2.0, 3.0], [2.0, 1.0, 3.0])
    np.testing.assert_array_equal(signs["first"], [-1, 1, -1])  # a tie goes to the second
    np.testing.assert_array_equal(signs["second"], [1, -1, 1])
    assert signs["first"].dtype == jnp.float32
    nan = jnp.array([jnp.nan, 0.0])
    for pair in ((nan, jnp.zeros(2)), (jnp.zeros(2), nan)):
        traced = jax.jit(preference.preference_signs)(*pair)
        np.testing.assert_array_equal(traced["first"], [-1, -1])
        np.testing.assert_array_equal(traced["second"], [1, 1])
    with pytest.raises(ValueError, match="first_reward must be free of NaN"):
        preference.preference_signs(nan, jnp.zeros(2))
    with pytest.raises(ValueError, match="second_reward must be free of NaN"):
        preference.preference_signs(jnp.zeros(2), nan)


@pytest.mark.parametrize(
    ("function", "count", "names"),
    [
        (
            preference.pairwise_sample_loss,
            4,
            ("preferred_log_prob", "preferred_reference", "other_log_prob", "other_reference"),
        ),
        (
            preference.pairwise_denoising_loss,
            4,
            ("preferred_error", "other_error", "preferred_reference_error", "other_reference_error"),
        ),
        (preference.pairwise_hinge_loss, 2, ("preferred_error", "other_error")),
        (preference.preference_signs, 2, ("first_reward", "second_reward")),
    ],
)
def test_shapes(function, count, names):
    x = jnp.zeros(3)
    for place in range(1, count):
        with pytest.raises(ValueError, match=f"{names[0]} and {names[place]} must have one shape"):
            function(*(jnp.zeros(4) if i == place else x for i in range(count)))
    with pytest.raises(ValueError, match=f"{names[0]} must have 1 axes"):
        function(*[jnp.zeros((3, 1))] * count)
    with pytest.raises(ValueError, match=f"{names[0]} must have 1 axes"):
        function(*[0.0] * count)


def test_ranges():
    x = jnp.zeros(3)
    for beta in (0.0, -1.0):
        for function, count in (
            (preference.pairwise_sample_loss, 4),
            (preference.pairwise_denoising_loss, 4),
            (preference.pairwise_hinge_loss, 2),
        ):
            with pytest.raises(ValueError, match="beta must be > 0"):
                function(*[x] * count, beta=beta)
    for clip in (0.0, 1.0, -0.1, 3.0):
        with pytest.raises(ValueError, match="clip must be"):
            preference.pairwise_sample_loss(x, x, x, x, clip=clip)
    with pytest.raises(ValueError, match="negative_factor must be >= 0"):
        preference.pairwise_denoising_loss(x, x, x, x, negative_factor=-1.0)
    with pytest.raises(ValueError, match="negative_factor must be >= 0"):
        preference.pairwise_hinge_loss(x, x, negative_factor=-1.0)
    with pytest.raises(ValueError, match="beta must be a scalar or have shape"):
        preference.pairwise_hinge_loss(x, x, beta=jnp.ones(2))
