"""Noise-level grids, curricula, proposals: spot values, statistics, exactness over long runs, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlfuncs import consistency


def test_karras_levels_spot_values():
    expected = [0.002, 0.16975276, 2.51521898, 17.5278320, 80.0]
    np.testing.assert_allclose(consistency.karras_levels(5), expected, rtol=1e-6)
    np.testing.assert_array_equal(consistency.karras_levels(1), np.float32([0.002]))
    np.testing.assert_allclose(consistency.karras_levels(513)[256], 2.515, rtol=1e-3)


def test_karras_levels_gaps_are_precise():
    levels = np.asarray(consistency.karras_levels(1281), np.float64)
    ramp = np.linspace(0.002 ** (1 / 7), 80 ** (1 / 7), 1281) ** 7
    np.testing.assert_allclose(np.diff(levels), np.diff(ramp), rtol=1e-3)


@pytest.mark.parametrize("num_levels", [2, 11, 160, 161])
def test_padded_levels_with_a_traced_number(num_levels):
    padded = jax.jit(lambda n: consistency.karras_levels(n, size=161))(num_levels)
    assert padded.shape == (161,)
    np.testing.assert_allclose(padded[:num_levels], consistency.karras_levels(num_levels), rtol=2e-5)
    np.testing.assert_array_equal(padded[num_levels - 1 :], np.float32(80))
    np.testing.assert_array_equal(padded[0], np.float32(0.002))


def test_doubling_discretization_over_the_paper_run():
    steps = jnp.array([0, 49_999, 50_000, 350_000, 399_999, 400_000, 10_000_000])
    expected = [11, 11, 21, 1281, 1281, 1281, 1281]
    np.testing.assert_array_equal(consistency.doubling_discretization(steps, 400_000), expected)


def test_doubling_discretization_against_exact_integers():
    steps = np.arange(0, 6100)
    period = 6000 // 5  # log2(160 / 10) + 1 periods
    expected = [min(10 * 2 ** (k // period), 160) + 1 for k in steps.tolist()]
    got = jax.jit(lambda k: consistency.doubling_discretization(k, 6000, initial_steps=10, final_steps=160))(steps)
    np.testing.assert_array_equal(got, expected)
    assert got.dtype == jnp.int32


def test_doubling_discretization_with_a_ratio_that_is_no_power_of_two():
    # log2(15) + 1 = 4.9 periods of 203 steps; the last doubling is cut at 150.
    got = consistency.doubling_discretization(
        jnp.array([0, 203, 406, 609, 812, 999]), 1000, initial_steps=10, final_steps=150
    )
    np.testing.assert_array_equal(got, [11, 21, 41, 81, 151, 151])


def test_progressive_discretization():
    got = consistency.progressive_discretization(jnp.array([0, 1, 50, 100, 1000]), 100)
    np.testing.assert_array_equal(got, [2, 16, 107, 151, 151])


def test_progressive_discretization_against_float64():
    total, s0, s1 = 6001, 2, 150
    steps = np.arange(total + 1)
    exact = np.ceil(np.sqrt(steps / total * ((s1 + 1) ** 2 - s0**2) + s0**2) - 1) + 1
    np.testing.assert_array_equal(consistency.progressive_discretization(steps, total), exact)


def test_teacher_decay():
    np.testing.assert_allclose(
        consistency.teacher_decay(jnp.array([2, 3, 151])), 0.9 ** (2 / np.array([1, 2, 150])), 1e-6
    )
    assert np.all(np.diff(consistency.teacher_decay(jnp.arange(2, 160))) > 0)


def test_adaptive_robust_scale():
    np.testing.assert_allclose(consistency.adaptive_robust_scale(jnp.array([11, 641])), [0.03216, 0.000238], rtol=2e-3)
    np.testing.assert_allclose(consistency.adaptive_robust_scale(2), np.exp(-0.72), rtol=1e-6)


def test_lognormal_probabilities_follow_the_density():
    sigmas = consistency.karras_levels(1281)
    probabilities = consistency.lognormal_level_probabilities(sigmas)
    np.testing.assert_allclose(jnp.sum(probabilities), 1, rtol=1e-5)
    edges = np.log(np.asarray(sigmas, np.float64))
    middle, width = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
    density = np.exp(-(((middle + 1.1) / 2) ** 2) / 2) * width
    np.testing.assert_allclose(probabilities, density / density.sum(), rtol=2e-3)


def test_lognormal_probabilities_in_the_tails():
    # Seven standard deviations out on either side, where erf itself is exactly 1 or -1 in float32.
    for mean in (-15.0, 15.0):
        probabilities = consistency.lognormal_level_probabilities(jnp.array([0.5, 1.0, 2.0]), mean=mean, std=2.0)
        assert bool(jnp.all(probabilities > 0))
        heavier = 0 if mean < 0 else 1
        assert probabilities[heavier] > 0.9


@pytest.mark.parametrize(
    "proposal", [consistency.lognormal_level_probabilities, consistency.uniform_level_probabilities]
)
def test_padding_gets_no_probability(proposal):
    padded = proposal(consistency.karras_levels(11, size=20))
    np.testing.assert_allclose(padded[:10], proposal(consistency.karras_levels(11)), rtol=1e-5)
    np.testing.assert_array_equal(padded[10:], 0)


def test_uniform_probabilities():
    np.testing.assert_allclose(consistency.uniform_level_probabilities(consistency.karras_levels(5)), [0.25] * 4)


def test_sample_levels_frequencies():
    probabilities = consistency.lognormal_level_probabilities(consistency.karras_levels(11, size=14))
    draws = 100_000
    counts = jnp.bincount(consistency.sample_levels(jax.random.key(3), probabilities, (draws,)), length=13)
    deviation = jnp.sqrt(probabilities * (1 - probabilities) / draws)
    # 5 standard errors on 10 frequencies: a false alarm has probability below 6e-6.
    assert bool(jnp.all(jnp.abs(counts / draws - probabilities) <= 5 * deviation))
    np.testing.assert_array_equal(counts[10:], 0)


def test_sample_levels_skips_empty_intervals():
    draws = consistency.sample_levels(jax.random.key(0), jnp.array([0.0, 0.5, 0.0, 0.5, 0.0]), (5000,))
    assert set(np.unique(draws).tolist()) == {1, 3}
    assert draws.dtype == jnp.int32
    np.testing.assert_array_equal(consistency.sample_levels(jax.random.key(0), jnp.array([2.0]), (7,)), 0)


def test_sample_levels_per_example_keys_do_not_depend_on_the_batch():
    keys = jax.random.split(jax.random.key(0), 16)
    probabilities = consistency.uniform_level_probabilities(consistency.karras_levels(9))
    draw = jax.vmap(lambda key: consistency.sample_levels(key, probabilities, ()))
    np.testing.assert_array_equal(draw(keys)[4:8], draw(keys[4:8]))


def test_shrinking_gap_worked_out_in_float64():
    sigma = np.array([0.01, 0.5, 2.0, 10.0])
    # 2 (1 - (1 + 8 / (1 + e^2)) / 16) = 1.7557971
    np.testing.assert_allclose(consistency.shrinking_gap(sigma, 3), [0.0068875, 0.3743648, 1.7557971, 9.3747730], 1e-6)
    np.testing.assert_allclose(consistency.shrinking_gap(sigma, 0), [0, 0, 0.0463766, 4.9981841], rtol=1e-5)
    compiled = jax.jit(lambda stage: consistency.shrinking_gap(sigma, stage))(3)
    np.testing.assert_allclose(compiled, consistency.shrinking_gap(sigma, 3), rtol=1e-6)


def test_shrinking_gap_shrinks_to_nothing():
    sigma = jnp.array([0.01, 1.0, 50.0])
    lows = jax.vmap(lambda stage: consistency.shrinking_gap(sigma, stage))(jnp.arange(12))
    assert bool(jnp.all(jnp.diff(lows, axis=0) >= 0))
    assert bool(jnp.all(lows <= sigma))
    np.testing.assert_allclose(lows[-1], sigma, rtol=2e-3)


def test_weights():
    low, high = jnp.array([0.0, 1.0]), jnp.array([0.5, 3.0])
    np.testing.assert_allclose(consistency.inverse_gap_weight(low, high), [2.0, 0.5])
    np.testing.assert_allclose(consistency.unit_weight(low, high), [1.0, 1.0])


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: consistency.karras_levels(0), "num_levels"),
        (lambda: consistency.karras_levels(5, sigma_min=0.0), "sigma_min"),
        (lambda: consistency.karras_levels(5, sigma_max=0.001), "sigma_max"),
        (lambda: consistency.karras_levels(5, rho=0.0), "rho"),
        (lambda: consistency.karras_levels(5, size=4), "size"),
        (lambda: jax.jit(consistency.karras_levels)(5), "num_levels"),
        (lambda: consistency.doubling_discretization(0, 7), "total_steps"),
        (lambda: consistency.doubling_discretization(0, 100, initial_steps=0), "initial_steps"),
        (lambda: consistency.doubling_discretization(0, 100, initial_steps=5, final_steps=4), "final_steps"),
        (lambda: consistency.doubling_discretization(-1, 100), "step"),
        (lambda: consistency.progressive_discretization(0, 0), "total_steps"),
        (lambda: consistency.progressive_discretization(0, 10, final_steps=1), "final_steps"),
        (lambda: consistency.teacher_decay(10, initial_decay=0.0), "initial_decay"),
        (lambda: consistency.teacher_decay(10, initial_steps=0), "initial_steps"),
        (lambda: consistency.adaptive_robust_scale(1), "num_levels"),
        (lambda: consistency.lognormal_level_probabilities(jnp.ones(3), std=0.0), "std"),
        (lambda: consistency.lognormal_level_probabilities(jnp.ones(1)), "sigmas"),
        (lambda: consistency.lognormal_level_probabilities(jnp.ones((3, 3))), "sigmas"),
        (lambda: consistency.lognormal_level_probabilities(jnp.array([2.0, 1.0])), "increasing"),
        (lambda: consistency.lognormal_level_probabilities(jnp.array([1.0, 2.0]), mean=1e3), "tail"),
        (lambda: consistency.uniform_level_probabilities(jnp.array([1.0])), "sigmas"),
        (lambda: consistency.sample_levels(jax.random.key(0), jnp.zeros(3), (2,)), "probabilities"),
        (lambda: consistency.sample_levels(jax.random.key(0), jnp.array([-0.1, 1.1]), (2,)), "probabilities"),
        (lambda: consistency.sample_levels(jax.random.key(0), jnp.ones((2, 2)), (2,)), "probabilities"),
        (lambda: consistency.shrinking_gap(jnp.array([-1.0]), 0), "sigma"),
        (lambda: consistency.shrinking_gap(jnp.array([1.0]), 0, decay=1.0), "decay"),
        (lambda: consistency.inverse_gap_weight(jnp.ones(2), jnp.ones(2)), "sigma_low"),
        (lambda: consistency.inverse_gap_weight(jnp.ones(2), 2 * jnp.ones(3)), "sigma_high"),
        (lambda: consistency.unit_weight(jnp.ones(2), jnp.ones(3)), "sigma_high"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_a_grid_in_the_tail_is_refused_where_the_papers_difference_is_nothing():
    with pytest.raises(ValueError, match="tail"):
        consistency.lognormal_level_probabilities(jnp.array([1e8, 1e9, 1e10]))


def test_bounds_and_decay_may_be_traced():
    traced = jax.jit(lambda low: consistency.karras_levels(5, sigma_min=low))(0.002)
    np.testing.assert_allclose(traced, consistency.karras_levels(5), rtol=1e-5)
    decay = jax.jit(lambda decay: consistency.teacher_decay(11, initial_decay=decay))(0.9)
    np.testing.assert_allclose(decay, consistency.teacher_decay(11), rtol=1e-6)
