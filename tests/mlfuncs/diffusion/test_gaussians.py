"""Normal distributions in closed form, against SciPy, autodiff and the laws they promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import NamedSharding, PartitionSpec

from mlfuncs import diffusion

KEY = jax.random.key(8)


def test_transition_by_hand():
    # 5 -> 3: down 9/5, ratio 9/25; std sqrt(9 * 16 / 25) = 12/5.
    out = diffusion.ancestral_transition(jnp.array([[26.0, 1.0]]), jnp.array([[1.0, 1.0]]), 5.0, 3.0)
    np.testing.assert_allclose(out["mean"], [[10.0, 1.0]], rtol=1e-6)
    np.testing.assert_allclose(out["std"], [2.4], rtol=1e-6)


def test_transition_ends():
    x, denoised = jax.random.normal(KEY, (2, 3, 4))
    out = diffusion.ancestral_transition(x, denoised, jnp.array([3.0, 2.0, 1.0]), 0.0)
    np.testing.assert_array_equal(out["mean"], denoised)
    np.testing.assert_array_equal(out["std"], np.zeros(3))
    stay = diffusion.ancestral_transition(x, denoised, 2.0, 2.0)
    np.testing.assert_allclose(stay["mean"], x, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(stay["std"], np.zeros(3))
    for ends in ((2.0, 2.0), (2.0, 0.0), (2.0, 1.0)):
        gradients = jax.grad(
            lambda s, n: sum(jnp.sum(v) for v in diffusion.ancestral_transition(x, denoised, s, n).values()),
            argnums=(0, 1),
        )(*ends)
        assert np.all(np.isfinite(gradients))


def test_transition_keeps_the_law_of_the_level():
    """Of a point mass, with its exact denoiser: 5 standard errors, a false alarm in 1 of 10^6."""
    num, sigma, sigma_next = 40_000, 4.0, 1.5
    start, fresh = jax.random.normal(KEY, (2, num, 1))
    out = diffusion.ancestral_transition(0.3 + sigma * start, jnp.full((num, 1), 0.3), sigma, sigma_next)
    x = out["mean"] + out["std"][:, None] * fresh
    assert abs(float(jnp.mean(x)) - 0.3) < 5 * sigma_next / np.sqrt(num)
    np.testing.assert_allclose(jnp.std(x), sigma_next, rtol=5 / np.sqrt(2 * num))
    # It forgets all but the share sigma_next / sigma of the noise.
    assert abs(np.corrcoef(start[:, 0], x[:, 0])[0, 1] - sigma_next / sigma) < 5 / np.sqrt(num)


def test_variances_of_a_transition_add_up():
    sigma = jnp.array([80.0, 5.0, 1.0, 0.01])
    sigma_next = jnp.array([79.9, 0.1, 0.5, 0.002])
    out = diffusion.ancestral_transition(jnp.ones((4, 1)), jnp.zeros((4, 1)), sigma, sigma_next)
    down = sigma * out["mean"][:, 0]
    np.testing.assert_allclose(down**2 + out["std"] ** 2, sigma_next**2, rtol=1e-5)


def test_log_density_against_scipy():
    sample, mean = 3 * jax.random.normal(KEY, (2, 4, 2, 3))
    std = jnp.array([0.01, 0.5, 2.0, 80.0])
    expected = scipy.stats.norm.logpdf(sample, mean, std[:, None, None]).mean(axis=(1, 2))
    np.testing.assert_allclose(diffusion.gaussian_log_prob(sample, mean, std), expected, rtol=1e-5)
    # Standard normal at 0, 1 by hand: -log(2 pi) / 2 - 1/4.
    value = diffusion.gaussian_log_prob(jnp.array([[0.0, 1.0]]), jnp.zeros((1, 2)), jnp.ones(1))
    np.testing.assert_allclose(value, [-np.log(2 * np.pi) / 2 - 0.25], rtol=1e-6)


def test_gradient_of_the_log_density():
    sample, mean = jax.random.normal(KEY, (2, 3, 4))
    std = jnp.array([0.5, 1.0, 2.0])
    gradient = jax.grad(lambda m, s: jnp.sum(diffusion.gaussian_log_prob(sample, m, s)), argnums=(0, 1))(mean, std)
    np.testing.assert_allclose(gradient[0], (sample - mean) / std[:, None] ** 2 / 4, rtol=1e-5)
    expected = jnp.mean((sample - mean) ** 2, axis=1) / std**3 - 1 / std
    np.testing.assert_allclose(gradient[1], expected, rtol=1e-4)
    assert diffusion.gaussian_log_prob(*(v.astype(jnp.bfloat16) for v in (sample, mean, std))).dtype == jnp.float32


def log_density(x, mean, factor, alpha, sigma):
    covariance = alpha**2 * factor @ factor.T + sigma**2 * jnp.eye(x.shape[0])
    return jax.scipy.stats.multivariate_normal.logpdf(x, alpha * mean, covariance)


def test_score_is_the_gradient_of_the_log_density():
    keys = jax.random.split(KEY, 3)
    x, mean = 2 * jax.random.normal(keys[0], (2, 5, 3))
    factors = jax.random.normal(keys[1], (5, 3, 3))
    alpha, sigma = jnp.array([1.0, 0.9, 0.5, 0.1, 0.0]), jnp.array([0.2, 0.4, 1.0, 2.0, 0.5])
    expected = jax.vmap(jax.grad(log_density))(x, mean, factors, alpha, sigma)
    score = diffusion.gaussian_score(x, mean, factors, alpha=alpha, sigma=sigma)
    np.testing.assert_allclose(score, expected, rtol=1e-3, atol=1e-3)
    # Shared mean, factor and levels.
    expected = jax.vmap(lambda x: jax.grad(log_density)(x, mean[0], factors[0], 0.7, 0.5))(x)
    shared = diffusion.gaussian_score(x, mean[0], factors[0], alpha=0.7, sigma=0.5)
    np.testing.assert_allclose(shared, expected, rtol=1e-3, atol=1e-4)
    for changed in ({"alpha": jnp.full(5, 0.7)}, {"sigma": jnp.full(5, 0.5)}):
        given = {"alpha": 0.7, "sigma": 0.5, **changed}
        np.testing.assert_allclose(diffusion.gaussian_score(x, mean[0], factors[0], **given), shared, rtol=1e-4)
    each = diffusion.gaussian_score(x, jnp.tile(mean[0], (5, 1)), jnp.tile(factors[0], (5, 1, 1)), alpha=0.7, sigma=0.5)
    np.testing.assert_allclose(each, shared, rtol=1e-4)


def test_score_by_hand_and_of_points():
    # L = 2, alpha = 0.5, sigma = 1: covariance 2 I; -(3 - 0.5) / 2.
    score = diffusion.gaussian_score(jnp.full((1, 2), 3.0), jnp.ones(2), 2 * jnp.eye(2), alpha=0.5, sigma=1.0)
    np.testing.assert_allclose(score, [[-1.25, -1.25]], rtol=1e-6)
    x, mean = jax.random.normal(KEY, (2, 4, 3))
    point = diffusion.gaussian_score(x, mean, jnp.zeros((3, 3)), alpha=0.5, sigma=0.1)
    np.testing.assert_allclose(point, (0.5 * mean - x) / 0.01, rtol=1e-5)
    regular = diffusion.gaussian_score(x, mean, 2 * jnp.eye(3), sigma=0.0)
    np.testing.assert_allclose(regular, (mean - x) / 4, rtol=1e-5)


def test_denoising_with_the_score_is_the_posterior_mean():
    """Tweedie: x + sigma^2 score = E[x0 | x]."""
    x = jax.random.normal(KEY, (6, 1))
    score = diffusion.gaussian_score(x, jnp.array([0.3]), jnp.array([[0.5]]), sigma=2.0)
    np.testing.assert_allclose(x + 4 * score, 0.3 + 0.25 / 4.25 * (x - 0.3), rtol=1e-4, atol=1e-6)


def test_score_of_an_ill_conditioned_covariance():
    """Condition 10^6 of the covariance, 10^3 of its factor, which is what is decomposed: float32 keeps digits."""
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    factor = rotation * np.array([1.0, 1e-2, 0.0])
    x = np.random.default_rng(1).normal(size=(4, 3))
    covariance = factor @ factor.T + 1e-6 * np.eye(3)
    expected = -np.linalg.solve(covariance, x.T).T
    score = diffusion.gaussian_score(
        jnp.asarray(x, jnp.float32), jnp.zeros(3), jnp.asarray(factor, jnp.float32), sigma=1e-3
    )
    # Relative to the largest: along the flat direction x itself is known to float32.
    np.testing.assert_allclose(score, expected, atol=5e-3 * np.abs(expected).max())


def test_score_has_finite_gradients_where_factors_vanish():
    x = jax.random.normal(KEY, (4, 3))

    def total(x, mean, factor, alpha, sigma):
        return jnp.sum(diffusion.gaussian_score(x, mean, factor, alpha=alpha, sigma=sigma) ** 2)

    for factor, alpha in ((jnp.zeros((3, 3)), 1.0), (jnp.eye(3), 1.0), (jnp.eye(3), 0.0)):
        gradients = jax.grad(total, argnums=(0, 1, 2, 3, 4))(x, jnp.ones(3), factor, alpha, 0.5)
        assert all(np.all(np.isfinite(g)) for g in gradients)


def test_nan_stays_in_its_example_and_shards_agree():
    x = jax.random.normal(KEY, (16, 3)).at[2].set(jnp.nan)
    factor, sigma = jax.random.normal(jax.random.key(1), (3, 3)), jnp.linspace(0.5, 2.0, 16)
    score = lambda x, sigma: diffusion.gaussian_score(x, jnp.zeros(3), factor, sigma=sigma)  # noqa: E731
    plain = score(x, sigma)
    np.testing.assert_array_equal(np.isnan(plain).any(axis=1), np.arange(16) == 2)
    np.testing.assert_array_equal(np.isnan(score(x, 0.5)).any(axis=1), np.arange(16) == 2)
    sharding = NamedSharding(
        jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)), PartitionSpec("data")
    )
    sharded = jax.jit(score)(jax.device_put(x, sharding), jax.device_put(sigma, sharding))
    np.testing.assert_allclose(sharded, plain, rtol=1e-4, atol=1e-5)


X, EYE = jnp.ones((2, 3)), jnp.eye(3)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: diffusion.ancestral_transition(X, X[:1], 2.0, 1.0), "denoised"),
        (lambda: diffusion.ancestral_transition(X, X, 0.0, 0.0), "sigma"),
        (lambda: diffusion.ancestral_transition(X, X, 2.0, 3.0), "sigma_next must be <= sigma"),
        (lambda: diffusion.ancestral_transition(X, X, 2.0, -1.0), "sigma_next"),
        (lambda: diffusion.ancestral_transition(X, X, jnp.ones(3), 1.0), "sigma"),
        (lambda: diffusion.gaussian_log_prob(X, X[:1], jnp.ones(2)), "mean"),
        (lambda: diffusion.gaussian_log_prob(X, X, 1.0), "std"),
        (lambda: diffusion.gaussian_log_prob(X, X, jnp.ones(3)), "std"),
        (lambda: diffusion.gaussian_log_prob(X, X, jnp.array([1.0, 0.0])), "std"),
        (lambda: diffusion.gaussian_score(X[0], X[0], EYE, sigma=1.0), "x must"),
        (lambda: diffusion.gaussian_score(X, jnp.ones(2), EYE, sigma=1.0), "mean"),
        (lambda: diffusion.gaussian_score(X, jnp.ones((3, 3)), EYE, sigma=1.0), "mean"),
        (lambda: diffusion.gaussian_score(X, X, jnp.eye(2), sigma=1.0), "factor"),
        (lambda: diffusion.gaussian_score(X, X, EYE, sigma=-1.0), "sigma"),
        (lambda: diffusion.gaussian_score(X, X, EYE, sigma=jnp.ones(3)), "sigma"),
        (lambda: diffusion.gaussian_score(X, X, EYE, alpha=jnp.ones(3), sigma=1.0), "alpha"),
        (lambda: diffusion.gaussian_score(X, X, jnp.zeros((3, 3)), sigma=0.0), "singular"),
        (lambda: diffusion.gaussian_score(X, X, jnp.ones((3, 3)), sigma=jnp.array([1.0, 0.0])), "singular"),
        (lambda: diffusion.gaussian_score(X, X, EYE, alpha=0.0, sigma=0.0), "singular"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
