"""Robust distances: hand-worked values, limits, gradients at the edges, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlfuncs import robust

SCALED = [robust.pseudo_huber, robust.cauchy, robust.geman_mcclure]
PLAIN = [robust.mean_squared, robust.mean_absolute]


def residual_of(norm):
    return jnp.array([[0.6, 0.8, 0.0]]) * norm, jnp.zeros((1, 3))


def test_hand_worked_values():
    a, b = jnp.array([[3.0, 4.0], [0.0, 0.0]]), jnp.zeros((2, 2))
    np.testing.assert_allclose(robust.pseudo_huber(a, b, c=12.0), [1.0, 0.0], rtol=1e-6)  # sqrt(25 + 144) - 12
    np.testing.assert_allclose(robust.cauchy(a, b, c=5.0), [np.log(1.5), 0.0], rtol=1e-6)  # log(1 + 25 / 50)
    np.testing.assert_allclose(robust.geman_mcclure(a, b, c=2.5), [1.0, 0.0], rtol=1e-6)  # 50 / (25 + 25)
    np.testing.assert_allclose(robust.mean_squared(a, b), [12.5, 0.0], rtol=1e-6)
    np.testing.assert_allclose(robust.mean_absolute(a, b), [3.5, 0.0], rtol=1e-6)


@pytest.mark.parametrize("function", SCALED)
def test_norm_runs_over_all_axes_of_an_example(function):
    key = jax.random.key(0)
    a, b = jax.random.normal(key, (2, 5, 2, 3, 1))
    np.testing.assert_allclose(function(a, b, c=0.3), function(a.reshape(5, 6), b.reshape(5, 6), c=0.3), rtol=1e-6)


def test_pseudo_huber_keeps_digits_far_below_c():
    # r^2 / (2 c) for r << c; the textbook form would give 0 here.
    a, b = residual_of(1e-5)
    np.testing.assert_allclose(robust.pseudo_huber(a, b, c=1.0), [0.5e-10], rtol=1e-5)


def test_pseudo_huber_limits():
    a, b = residual_of(1e6)
    np.testing.assert_allclose(robust.pseudo_huber(a, b, c=2.0), [1e6 - 2], rtol=1e-6)
    np.testing.assert_allclose(robust.pseudo_huber(a, b, c=0.0), [1e6], rtol=1e-6)


def influence(function, norm, c):
    """d distance / d norm, along a fixed direction."""
    return jax.grad(lambda n: function(*residual_of(n), c=c)[0])(norm)


@pytest.mark.parametrize("norm", [0.01, 0.5, 3.0, 100.0])
def test_influence_functions(norm):
    c = 0.7
    np.testing.assert_allclose(influence(robust.cauchy, norm, c), 2 * norm / (norm**2 + 2 * c**2), rtol=1e-4)
    np.testing.assert_allclose(influence(robust.pseudo_huber, norm, c), norm / np.sqrt(norm**2 + c**2), rtol=1e-4)
    expected = 16 * c**2 * norm / (norm**2 + 4 * c**2) ** 2
    np.testing.assert_allclose(influence(robust.geman_mcclure, norm, c), expected, rtol=1e-3)


def test_cauchy_influence_peaks_at_sqrt_two_c():
    norms = jnp.linspace(0.05, 5.0, 2000)
    values = jax.vmap(lambda n: influence(robust.cauchy, n, 1.0))(norms)
    assert abs(norms[jnp.argmax(values)] - np.sqrt(2)) < 0.01


@pytest.mark.parametrize("function", SCALED)
@pytest.mark.parametrize("norm", [0.0, 1e-30, 1e-8, 1.0, 1e8])
def test_gradients_are_finite(function, norm):
    for c in (1e-4, 1.0, 1e4):
        gradient = jax.grad(lambda a, b, c=c: function(a, b, c=c).sum())(*residual_of(norm))
        assert bool(jnp.all(jnp.isfinite(gradient)))


def test_gradient_at_agreement_with_c_zero_is_zero():
    gradient = jax.grad(lambda a: robust.pseudo_huber(a, jnp.zeros((1, 3)), c=0.0).sum())(jnp.zeros((1, 3)))
    np.testing.assert_array_equal(gradient, np.zeros((1, 3)))


@pytest.mark.parametrize("function", SCALED)
def test_half_precision_is_widened(function):
    a, b = residual_of(0.01)
    # c^2 would underflow in float16.
    value = function(a.astype(jnp.float16), b.astype(jnp.float16), c=1e-4)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, function(a, b, c=1e-4), rtol=1e-2)


@pytest.mark.parametrize("function", SCALED)
def test_nan_passes_and_stays_in_its_example(function):
    a = jnp.array([[jnp.nan, 0.0], [1.0, 0.0]])
    value = function(a, jnp.zeros((2, 2)), c=0.1)
    assert np.isnan(value[0])
    assert np.isfinite(value[1])


@pytest.mark.parametrize("function", SCALED)
def test_scale_per_example_and_traced(function):
    a, b = jax.random.normal(jax.random.key(1), (2, 3, 4))
    scales = jnp.array([0.1, 1.0, 10.0])
    one_by_one = jnp.concatenate([function(a[i : i + 1], b[i : i + 1], c=float(scales[i])) for i in range(3)])
    np.testing.assert_allclose(function(a, b, c=scales), one_by_one, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(lambda c: function(a, b, c=c))(scales), one_by_one, rtol=1e-6)


@pytest.mark.parametrize("function", SCALED)
def test_bad_input(function):
    x = jnp.zeros((2, 3))
    with pytest.raises(ValueError, match="c must be"):
        function(x, x, c=-1.0)
    with pytest.raises(ValueError, match="c must be a scalar"):
        function(x, x, c=jnp.ones(3))
    with pytest.raises(ValueError, match="prediction and target"):
        function(x, jnp.zeros((2, 4)), c=1.0)
    with pytest.raises(ValueError, match="prediction"):
        function(1.0, 2.0, c=1.0)


@pytest.mark.parametrize("function", [robust.cauchy, robust.geman_mcclure])
def test_zero_scale_is_refused(function):
    with pytest.raises(ValueError, match="c must be > 0"):
        function(jnp.zeros((2, 3)), jnp.zeros((2, 3)), c=0.0)


@pytest.mark.parametrize("function", PLAIN)
def test_plain_distances_refuse_other_shapes(function):
    with pytest.raises(ValueError, match="prediction and target"):
        function(jnp.zeros((2, 3)), jnp.zeros((3, 2)))


def test_tukey_fences():
    # Quartiles of 0..8 are 2 and 6.
    values = jnp.arange(9.0).reshape(3, 3)
    assert [float(v) for v in robust.tukey_fences(values)] == [-4.0, 12.0]
    assert [float(v) for v in robust.tukey_fences(values, factor=3.0)] == [-10.0, 18.0]
    assert [float(v) for v in jax.jit(robust.tukey_fences)(values)] == [-4.0, 12.0]
    with pytest.raises(ValueError, match="values"):
        robust.tukey_fences(jnp.zeros(0))
    with pytest.raises(ValueError, match="factor"):
        robust.tukey_fences(values, factor=-1.0)


def test_tukey_fences_find_planted_outliers():
    clean = jax.random.normal(jax.random.key(2), (20_000,))
    low, high = robust.tukey_fences(clean.at[:50].set(40.0), factor=3.0)
    # Outside 3 IQR of a normal lie 2e-6 of its values: more than two of 20,000 has probability below 1e-5.
    assert 50 <= int(jnp.sum((clean.at[:50].set(40.0) > high) | (clean.at[:50].set(40.0) < low))) <= 52


def test_far_residuals_stay_numbers():
    far, zero = jnp.array([[1e12], [jnp.inf]]), jnp.zeros((2, 1))
    np.testing.assert_allclose(robust.pseudo_huber(far, zero, c=0.03), [1e12, np.inf])
    np.testing.assert_allclose(robust.geman_mcclure(far, zero, c=1e-8), [2, 2])
    assert np.isnan(robust.pseudo_huber(jnp.array([[jnp.nan]]), jnp.zeros((1, 1)), c=0.03)[0])
    assert np.isnan(robust.geman_mcclure(jnp.array([[jnp.nan]]), jnp.zeros((1, 1)), c=0.03)[0])


def test_pseudo_huber_against_float64_over_many_scales():
    residual = np.logspace(-12, 12, 97)
    exact = residual**2 / (np.sqrt(residual**2 + 0.03**2) + 0.03)
    ours = robust.pseudo_huber(residual[:, None], np.zeros((97, 1)), c=0.03)
    np.testing.assert_allclose(ours, exact, rtol=1e-6)
    slopes = jax.vmap(jax.grad(lambda r: robust.pseudo_huber(r[None, None], jnp.zeros((1, 1)), c=0.03)[0]))(
        jnp.asarray(residual, jnp.float32)
    )
    np.testing.assert_allclose(slopes, residual / np.sqrt(residual**2 + 0.03**2), rtol=1e-5)
