"""Monte Carlo moments, calibration and EigenScores: hand-worked values, exact traces, statistics, edges, bad input.

Five-sigma bounds fail by chance with probability 6e-7 a comparison; keys are fixed.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import PartitionSpec as P

from mlfuncs import dropout, uncertainty

KEY = jax.random.key(0)
E2 = float(np.exp(2))


def test_likelihood_by_hand():
    loss = uncertainty.gaussian_negative_log_likelihood(
        jnp.array([1.0, 3.0]), jnp.array([1.0, E2]), jnp.array([3.0, 3.0])
    )
    np.testing.assert_allclose(loss, [4.0, 2.0], rtol=1e-6)  # log 1 + 4 / 1; log e^2 + 0
    # Twice the usual one, less log 2 pi.
    usual = -scipy.stats.norm.logpdf(3.0, 1.0, np.sqrt(2.0))
    ours = uncertainty.gaussian_negative_log_likelihood(1.0, 2.0, 3.0)
    np.testing.assert_allclose(ours, 2 * usual - np.log(2 * np.pi), rtol=1e-6)


def test_likelihood_is_least_at_the_squared_error():
    error = 1.7
    slope = jax.grad(lambda v: uncertainty.gaussian_negative_log_likelihood(error, v, 0.0))
    np.testing.assert_allclose(slope(error**2), 0, atol=1e-6)
    assert slope(1.0) < 0 < slope(5.0)


def test_likelihood_edges():
    for variance in (0.0, -1.0):
        value, (for_mean, for_variance) = jax.value_and_grad(
            lambda m, v: uncertainty.gaussian_negative_log_likelihood(m, v, 0.0), argnums=(0, 1)
        )(1.0, variance)
        np.testing.assert_allclose(value, np.log(1e-6) + 1e6, rtol=1e-5)
        assert np.isfinite(for_mean)
        assert for_variance == 0
    assert np.isnan(uncertainty.gaussian_negative_log_likelihood(0.0, jnp.nan, 0.0))
    half = uncertainty.gaussian_negative_log_likelihood(*[jnp.ones((2, 3), jnp.bfloat16)] * 3)
    assert (half.shape, half.dtype) == ((2, 3), jnp.float32)


def predict(x):
    return x.mean((1, 2)), (x**2).mean((1, 2))


def test_monte_carlo_samples_by_hand_and_prefix_stable():
    x = jax.random.normal(KEY, (3, 6, 2))
    mask = lambda key: dropout.temporal_mask(key, (3, 6), rate=0.4)  # noqa: E731
    draw = lambda **settings: jax.jit(  # noqa: E731
        lambda key, x: uncertainty.monte_carlo_predict(key, predict, x, mask, **settings)
    )(KEY, x)
    means, variances = draw(num_samples=7)
    assert means.shape == variances.shape == (7, 3)
    for sample in (0, 6):
        dropped = dropout.apply_mask(x, mask(jax.random.fold_in(KEY, sample)))
        np.testing.assert_allclose(means[sample], predict(dropped)[0], rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(variances[sample], predict(dropped)[1], rtol=1e-5)
    fewer, _ = draw(num_samples=3)
    np.testing.assert_array_equal(fewer, means[:3])
    chunked, _ = draw(num_samples=7, batch_size=3)
    np.testing.assert_allclose(chunked, means, rtol=1e-6)
    assert jax.eval_shape(lambda: uncertainty.monte_carlo_predict(KEY, predict, x, mask))[0].shape == (20, 3)
    assert np.unique(np.asarray(means)[:, 0]).size > 1


def test_moments_by_hand():
    moments = uncertainty.predictive_moments(jnp.array([[1.0], [3.0], [5.0]]), jnp.array([[1.0], [2.0], [6.0]]))
    assert {name: float(value[0]) for name, value in moments.items()} == {
        "mean": 3.0, "epistemic": 4.0, "aleatoric": 3.0, "predictive": 7.0
    }  # fmt: skip


def test_moments_of_one_sample_and_far_from_zero():
    one = uncertainty.predictive_moments(jnp.array([[2.0]]), jnp.array([[0.5]]))
    assert one["epistemic"][0] == 0
    # E[x^2] - E[x]^2 would lose everything here.
    far = uncertainty.predictive_moments(1e4 + jnp.array([[-1.0], [1.0]]), jnp.zeros((2, 1)))
    np.testing.assert_allclose(far["epistemic"], [2.0], rtol=1e-4)


def test_epistemic_variance_is_unbiased():
    """Mean over 4096 predictions of 5 samples of variance 4; the variance of such an estimate is 2 * 16 / 4."""
    means = 2 * jax.random.normal(KEY, (5, 4096))
    moments = uncertainty.predictive_moments(means, jnp.zeros_like(means))
    assert abs(float(moments["epistemic"].mean()) - 4) <= 5 * np.sqrt(8 / 4096)


def test_calibration_by_hand():
    # Standardised errors 0.5, 1, 2 and 3; the 0.5 interval ends at 0.674, that of 0.9 at 1.645.
    error = uncertainty.regression_calibration_error(
        jnp.zeros(4), jnp.full(4, 4.0), jnp.array([1.0, -2.0, 4.0, 6.0]), levels=(0.5, 0.9)
    )
    np.testing.assert_allclose(error, (abs(0.25 - 0.5) + abs(0.5 - 0.9)) / 2, rtol=1e-5)
    # No variance, all wrong: nothing is covered. All exact: everything is.
    zeros, ones = jnp.zeros(4), jnp.ones(4)
    np.testing.assert_allclose(uncertainty.regression_calibration_error(zeros, zeros, ones), 0.5, rtol=1e-5)
    np.testing.assert_allclose(uncertainty.regression_calibration_error(zeros, zeros, zeros), 0.5, rtol=1e-5)


def test_calibration_of_the_truth_and_of_overconfidence():
    targets = jax.random.normal(KEY, (1 << 14,))
    zeros, ones = jnp.zeros_like(targets), jnp.ones_like(targets)
    # Each coverage is a mean of 2^14 draws: all nine within 5 sigma of their level.
    assert uncertainty.regression_calibration_error(zeros, ones, targets) <= 5 * 0.5 / 128
    half = uncertainty.regression_calibration_error(zeros, ones / 4, targets)
    levels = np.arange(1, 10) / 10
    covered = 2 * scipy.stats.norm.cdf(scipy.stats.norm.ppf((1 + levels) / 2) / 2) - 1
    np.testing.assert_allclose(half, np.mean(levels - covered), atol=5 * 0.5 / 128)


def test_calibration_of_the_global_batch():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    arguments = (*jax.random.normal(KEY, (2, 16)), jax.random.uniform(KEY, (16,)))
    mean, targets, variance = arguments
    shard = partial(uncertainty.regression_calibration_error, axis_name="data")
    sharded = jax.jit(jax.shard_map(shard, mesh=mesh, in_specs=P("data"), out_specs=P()))(mean, variance, targets)
    np.testing.assert_allclose(sharded, uncertainty.regression_calibration_error(mean, variance, targets), rtol=1e-5)


def test_calibration_propagates_nan():
    for place in range(3):
        arguments = [jnp.zeros(3), jnp.ones(3), jnp.zeros(3)]
        arguments[place] = arguments[place].at[1].set(jnp.nan)
        assert np.isnan(uncertainty.regression_calibration_error(*arguments))


def exact(embeddings, alpha):
    z = np.asarray(embeddings, np.float64)
    z = z - z.mean(1, keepdims=True)
    return np.linalg.slogdet(z @ z.T + alpha * np.eye(len(z)))[1] / len(z)


def test_eigen_score_by_hand():
    # One generation: log(|z_c|^2 + alpha), z_c = (-1, 1).
    np.testing.assert_allclose(uncertainty.eigen_score(jnp.array([[1.0, 3.0]])), np.log(2.001), rtol=1e-5)
    # Two orthogonal ones of squared norms 2 and 8.
    z = jnp.array([[1.0, -1.0, 0.0, 0.0], [0.0, 0.0, 2.0, -2.0]])
    np.testing.assert_allclose(uncertainty.eigen_score(z, alpha=1.0), np.log(3 * 9) / 2, rtol=1e-5)


def test_eigen_score_invariances():
    z = jax.random.normal(KEY, (5, 12))
    score = uncertainty.eigen_score(z)
    np.testing.assert_allclose(score, exact(z, 1e-3), rtol=1e-5)
    np.testing.assert_allclose(uncertainty.eigen_score(z[jnp.array([3, 0, 4, 1, 2])]), score, rtol=1e-5)
    np.testing.assert_allclose(uncertainty.eigen_score(z.at[2].add(7.0)), score, rtol=1e-4)
    # Identical generations agree more than different ones, and stay finite, gradients too.
    same = jnp.broadcast_to(z[:1], z.shape)
    value, gradient = jax.jit(jax.value_and_grad(uncertainty.eigen_score))(same)
    assert np.isfinite(value)
    assert value < score
    assert np.all(np.isfinite(gradient))
    assert np.isnan(uncertainty.eigen_score(z.at[0, 0].set(jnp.nan)))
    np.testing.assert_allclose(jax.vmap(uncertainty.eigen_score)(z[None])[0], score, rtol=1e-6)
    assert uncertainty.eigen_score(z.astype(jnp.bfloat16)).dtype == jnp.float32


@pytest.mark.parametrize("alpha", [0.05, 1.0])
def test_coefficients_rebuild_the_logarithm(alpha):
    scale = 3.0
    c = np.asarray(uncertainty.chebyshev_log_coefficients(60, scale=scale, alpha=alpha), np.float64)
    t = np.linspace(0, 1, 101)
    series = np.polynomial.chebyshev.chebval(2 * t - 1, c)
    np.testing.assert_allclose(series, np.log(scale * t + alpha), atol=1e-4)


def test_coefficients_near_the_plain_logarithm():
    # alpha -> 0: c_0 = log s - 2 log 2, c_m = -2 (-1)^m / m.
    c = uncertainty.chebyshev_log_coefficients(3, scale=2.0, alpha=1e-7)
    np.testing.assert_allclose(c, [np.log(2) - 2 * np.log(2), 2, -1, 2 / 3], atol=0.01)


@pytest.mark.parametrize("upper_bound", [None, 60.0])
def test_unit_probes_give_the_exact_trace(upper_bound):
    z = jax.random.normal(KEY, (6, 20)) / 2
    assert np.linalg.eigvalsh(np.cov(z, bias=True) * 20).max() < 60
    probes = np.sqrt(6) * jnp.eye(6)
    score = jax.jit(
        lambda z: uncertainty.chebyshev_eigen_score(z, probes, num_terms=40, alpha=0.5, upper_bound=upper_bound)
    )(z)
    np.testing.assert_allclose(score, exact(z, 0.5), atol=1e-3)


def test_random_probes_are_unbiased_for_the_series():
    """4096 keys of two probes each, 5 standard errors."""
    z = jax.random.normal(KEY, (6, 20)) / 2
    settings = {"num_terms": 10, "alpha": 0.1, "upper_bound": 60.0}
    target = uncertainty.chebyshev_eigen_score(z, np.sqrt(6) * jnp.eye(6), **settings)
    score = lambda key: uncertainty.efficient_eigen_score(key, z, num_probes=2, **settings)  # noqa: E731
    scores = jax.jit(jax.vmap(score))(jax.random.split(KEY, 4096))
    assert scores.std() > 0
    assert abs(float(scores.mean() - target)) <= 5 * float(scores.std()) / 64


def test_estimate_ranks_like_the_exact_score():
    """20 matrices of growing disagreement: rank correlation above 0.95, from one compiled program."""
    spreads = jnp.linspace(0.2, 2.0, 20)
    z = jax.vmap(lambda key, s: s * jax.random.normal(key, (16, 64)))(jax.random.split(KEY, 20), spreads)
    estimates = jax.jit(jax.vmap(lambda z: uncertainty.efficient_eigen_score(KEY, z, num_terms=40)))(z)
    scores = [exact(one, 1e-3) for one in z]
    assert scipy.stats.spearmanr(estimates, scores).statistic > 0.95


def test_estimate_edges():
    constant = jnp.ones((4, 8))  # Sigma = 0: log alpha
    score = lambda z: uncertainty.efficient_eigen_score(KEY, z, num_terms=5)  # noqa: E731
    slope = jax.jit(jax.value_and_grad(score))
    value, gradient = slope(constant)
    np.testing.assert_allclose(value, np.log(1e-3), rtol=1e-4)
    assert np.all(np.isfinite(gradient))
    assert np.isnan(slope(constant.at[0, 0].set(jnp.nan))[0])
    assert np.isfinite(score(jnp.array([[1.0, 2.0, 4.0]])))
    assert np.all(np.isfinite(slope(jax.random.normal(KEY, (4, 8)))[1]))


def test_bad_input():
    two, three = jnp.ones(2), jnp.ones(3)
    with pytest.raises(ValueError, match="mean and variance"):
        uncertainty.gaussian_negative_log_likelihood(two, three, two)
    with pytest.raises(ValueError, match="mean and targets"):
        uncertainty.gaussian_negative_log_likelihood(two, two, three)
    with pytest.raises(ValueError, match="eps"):
        uncertainty.gaussian_negative_log_likelihood(two, two, two, eps=0.0)
    for name, settings in (("num_samples", {"num_samples": 0}), ("batch_size", {"batch_size": 0})):
        with pytest.raises(ValueError, match=name):
            uncertainty.monte_carlo_predict(KEY, predict, jnp.ones((1, 2, 2)), lambda k: jnp.ones(2, bool), **settings)
    with pytest.raises(ValueError, match="means and variances"):
        uncertainty.predictive_moments(jnp.ones((2, 3)), jnp.ones((2, 4)))
    with pytest.raises(ValueError, match="at least one sample"):
        uncertainty.predictive_moments(jnp.ones((0, 3)), jnp.ones((0, 3)))
    for levels in ((), (0.0, 0.5), (0.5, 1.0), (float("nan"),)):
        with pytest.raises(ValueError, match="levels"):
            uncertainty.regression_calibration_error(two, two, two, levels=levels)
    with pytest.raises(ValueError, match="mean and targets"):
        uncertainty.regression_calibration_error(two, two, three)
    with pytest.raises(ValueError, match="at least one prediction"):
        uncertainty.regression_calibration_error(jnp.ones(0), jnp.ones(0), jnp.ones(0))


def test_bad_input_of_eigen_scores():
    z, probes = jnp.ones((3, 4)), jnp.ones((2, 3))
    for score in (
        uncertainty.eigen_score,
        lambda z, **k: uncertainty.chebyshev_eigen_score(z, probes, **k),
        lambda z, **k: uncertainty.efficient_eigen_score(KEY, z, **k),
    ):
        for shape in ((3,), (3, 4, 2), (0, 4), (3, 0)):
            with pytest.raises(ValueError, match=r"embeddings|num_probes"):
                score(jnp.ones(shape))
        for alpha in (0.0, -1.0):
            with pytest.raises(ValueError, match="alpha"):
                score(z, alpha=alpha)
    for shape in ((2, 4), (0, 3), (3,)):
        with pytest.raises(ValueError, match="probes"):
            uncertainty.chebyshev_eigen_score(z, jnp.ones(shape))
    with pytest.raises(ValueError, match="num_terms"):
        uncertainty.chebyshev_eigen_score(z, probes, num_terms=0)
    with pytest.raises(ValueError, match="upper_bound"):
        uncertainty.chebyshev_eigen_score(z, probes, upper_bound=0.0)
    with pytest.raises(ValueError, match="num_probes"):
        uncertainty.efficient_eigen_score(KEY, z, num_probes=0)
    with pytest.raises(ValueError, match="num_terms"):
        uncertainty.chebyshev_log_coefficients(0, scale=1.0, alpha=1.0)
    with pytest.raises(ValueError, match="scale"):
        uncertainty.chebyshev_log_coefficients(3, scale=0.0, alpha=1.0)
