"""Score distillation: every gradient against a closed form (Gaussians, exact scores), and who is moved by whom."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mlfuncs import score_distillation as sd
from tests.mlfuncs.gaussians import (
    denoised,
    divergence_gradient,
    fisher_divergence,
    noised,
    quadrature,
    score,
    shrinkage,
)

KEY = jax.random.key(0)

# Data and generator of every closed form below, far from one another in mean, size and direction.
DATA_MEAN = np.array([1.5, -0.4])
DATA_COVARIANCE = np.array([[1.2, 0.5], [0.5, 0.7]])
MEAN = jnp.array([-0.8, 0.9])
FACTOR = jnp.array([[0.6, -0.2], [0.9, 0.4]])
COVARIANCE = np.asarray(FACTOR @ FACTOR.T, np.float64)

POINTS, WEIGHTS = quadrature(4)
Z, NOISE = POINTS[:, :2], POINTS[:, 2:]


def generate(mean, factor):
    return mean + Z @ factor.T


def expected_gradient(per_example):
    """Exact mean over latents and noise of the gradient that `per_example(samples) -> [N]` gives the generator."""
    return jax.grad(lambda mean, factor: WEIGHTS @ per_example(generate(mean, factor)), argnums=(0, 1))(MEAN, FACTOR)


def assert_gradients(actual, expected, rtol=2e-4):
    for ours, theirs in zip(actual, expected, strict=True):
        theirs = np.asarray(theirs, np.float64)
        np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=rtol * np.abs(theirs).max())


# --- the surrogate


def test_surrogate_by_hand():
    sample, gradient = jnp.array([[1.0, 2.0], [0.0, 5.0]]), jnp.array([[3.0, -4.0], [0.0, 0.0]])
    value, derivative = jax.value_and_grad(lambda x: sd.gradient_surrogate(x, gradient).sum())(sample)
    np.testing.assert_array_equal(sd.gradient_surrogate(sample, gradient), [12.5, 0.0])
    assert value == 12.5
    np.testing.assert_array_equal(derivative, gradient)


def test_surrogate_keeps_every_digit_of_a_small_gradient():
    sample = jax.random.normal(KEY, (3, 4, 2)) * 1e3
    gradient = jax.random.normal(jax.random.key(1), (3, 4, 2)) * 1e-7
    value, derivative = jax.value_and_grad(lambda x: sd.gradient_surrogate(x, gradient).sum())(sample)
    np.testing.assert_array_equal(derivative, gradient)
    np.testing.assert_allclose(value, 0.5 * np.sum(np.asarray(gradient, np.float64) ** 2), rtol=1e-6)


def test_surrogate_is_a_sum_and_its_mean_over_the_batch_carries_the_mean_gradient():
    sample, gradient = jax.random.normal(KEY, (2, 5, 3, 2))
    carried = jax.grad(lambda x: sd.gradient_surrogate(x, gradient).mean())(sample)
    np.testing.assert_allclose(carried, gradient / 5, rtol=1e-6)


def test_surrogate_goes_through_a_generator_by_the_chain_rule_and_not_through_the_gradient():
    gradient = jax.random.normal(KEY, (81, 2))

    def loss(scale, g):
        return sd.gradient_surrogate(scale * Z, scale * g).sum()

    ours, none = jax.grad(loss, argnums=(0, 1))(jnp.float32(2.0), gradient)
    np.testing.assert_allclose(ours, jnp.sum(2 * gradient * Z), rtol=1e-5)
    np.testing.assert_array_equal(none, np.zeros_like(gradient))


def test_the_value_of_the_surrogate_says_nothing_of_the_sample():
    """It is the same wherever the sample lies, and second derivatives are those of the formula: the identity."""
    gradient = jnp.array([[3.0, -4.0]])
    for sample in (jnp.zeros((1, 2)), jnp.full((1, 2), 1e6), jnp.array([[-2.0, 7.0]])):
        np.testing.assert_array_equal(sd.gradient_surrogate(sample, gradient), [12.5])
    hessian = jax.hessian(lambda x: sd.gradient_surrogate(x[None], gradient)[0])(jnp.array([1.0, 2.0]))
    np.testing.assert_array_equal(hessian, np.eye(2))


# --- distribution matching


@pytest.mark.parametrize("sigma", [0.1, 0.7, 3.0])
def test_distribution_matching_is_sigma_squared_times_the_gradient_of_the_divergence(sigma):
    def loss(x):
        x_t = x + sigma * NOISE
        real, fake = denoised(x_t, DATA_MEAN, DATA_COVARIANCE, sigma), denoised(x_t, MEAN, COVARIANCE, sigma)
        return sd.gradient_surrogate(x, sd.distribution_matching_gradient(x, real, fake, normalize=False))

    expected = divergence_gradient(MEAN, FACTOR, DATA_MEAN, DATA_COVARIANCE, sigma)
    assert_gradients(expected_gradient(loss), [sigma**2 * g for g in expected])


def test_distribution_matching_by_hand():
    sample = jnp.array([[1.0, 2.0], [4.0, 0.0]])
    real, fake = jnp.array([[0.0, 5.0], [0.0, 0.0]]), jnp.array([[2.0, 1.0], [8.0, -2.0]])
    # means of |x - real|: 2 and 2
    expected = [[1.0, -2.0], [4.0, -1.0]]
    np.testing.assert_array_equal(sd.distribution_matching_gradient(sample, real, fake), expected)
    np.testing.assert_array_equal(
        sd.distribution_matching_gradient(sample, real, fake, normalize=False), 2 * np.array(expected)
    )


def test_a_descent_step_goes_from_fake_to_real():
    real, fake = jnp.array([[1.0]]), jnp.array([[0.0]])
    assert float(-sd.distribution_matching_gradient(jnp.array([[0.5]]), real, fake)[0, 0]) == 2.0


def test_the_normaliser_does_not_depend_on_units_or_on_the_other_examples():
    sample, real, fake = jax.random.normal(KEY, (3, 4, 3, 2))
    gradient = sd.distribution_matching_gradient(sample, real, fake)
    np.testing.assert_allclose(
        sd.distribution_matching_gradient(100 * sample, 100 * real, 100 * fake), gradient, rtol=1e-5
    )
    one = sd.distribution_matching_gradient(sample[2:3], real[2:3], fake[2:3])
    np.testing.assert_allclose(one, gradient[2:3], rtol=1e-6)


def test_an_example_at_its_real_estimate_has_gradient_zero():
    sample = jnp.array([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]])
    real = jnp.array([[1.0, 2.0], [1.0, 2.0], [1.0, 4.0]])
    fake = jnp.array([[1.0, 2.0], [9.0, 2.0], [9.0, 4.0]])  # 0/0, 8/0, 8/1
    gradient = sd.distribution_matching_gradient(sample, real, fake)
    np.testing.assert_array_equal(gradient, [[0, 0], [0, 0], [8, 0]])
    below = sd.distribution_matching_gradient(sample, sample + 1e-3, fake, eps=0.1)
    np.testing.assert_array_equal(below, np.zeros((3, 2)))


# --- guided variational gradient


def guided_gaussian(kappa, sigma):
    """The Gaussian whose score is the guided one: precisions and natural means are blended."""
    broad = 3.0 * DATA_COVARIANCE
    negative, positive = (np.linalg.inv(noised(c, sigma)) for c in (broad, DATA_COVARIANCE))
    precision = (1 - kappa) * negative + kappa * positive
    mean = np.linalg.solve(precision, (1 - kappa) * negative @ (DATA_MEAN + 1) + kappa * positive @ DATA_MEAN)
    return mean, np.linalg.inv(precision), (DATA_MEAN + 1, broad)


@pytest.mark.parametrize("kappa", [0.0, 0.5, 1.0, 4.0])
def test_guided_gradient_is_that_of_the_divergence_from_the_guided_data(kappa):
    sigma, weight = 0.7, 1.3
    mean, covariance, (negative_mean, negative_covariance) = guided_gaussian(kappa, sigma)

    def loss(x):
        x_t = x + sigma * NOISE
        positive = -sigma * score(x_t, DATA_MEAN, noised(DATA_COVARIANCE, sigma))
        negative = -sigma * score(x_t, negative_mean, noised(negative_covariance, sigma))
        critic = -sigma * score(x_t, MEAN, noised(COVARIANCE, sigma))  # an unconditional generator
        gradient = sd.guided_variational_gradient(positive, negative, critic, critic, scale=kappa, weight=weight)
        return sd.gradient_surrogate(x, gradient)

    expected = divergence_gradient(MEAN, FACTOR, mean, covariance - sigma**2 * np.eye(2), sigma)
    assert_gradients(expected_gradient(loss), [weight * sigma * g for g in expected])


def test_guided_gradient_agrees_with_distribution_matching():
    """At scale 1 it is (D_fake - D_real) / sigma."""
    sample, noise, real, fake, other = jax.random.normal(KEY, (5, 4, 3))
    sigma = jnp.array([0.1, 1.0, 2.0, 10.0])[:, None]
    x_t = sample + sigma * noise
    ours = sd.guided_variational_gradient((x_t - real) / sigma, other, (x_t - fake) / sigma, -other, scale=1.0)
    expected = sd.distribution_matching_gradient(sample, real, fake, normalize=False) / sigma
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_guided_gradient_by_hand():
    arguments = [jnp.full((2, 1), value) for value in (5.0, 1.0, 2.0, 4.0)]
    # positives differ by 3, negatives by -3
    ours = sd.guided_variational_gradient(*arguments, scale=jnp.array([0.0, 3.0]), weight=jnp.array([2.0, 0.5]))
    np.testing.assert_array_equal(ours, [[-6.0], [0.5 * (6 + 9)]])
    np.testing.assert_array_equal(sd.guided_variational_gradient(*arguments, scale=0.5), [[0.0], [0.0]])


def test_one_scale_for_both_leaves_nothing_where_teacher_and_critic_agree():
    positive, negative = jax.random.normal(KEY, (2, 3, 5))
    ours = sd.guided_variational_gradient(positive, negative, positive, negative, scale=jnp.array([0.5, 2.0, 4.0]))
    np.testing.assert_array_equal(ours, np.zeros((3, 5)))


# --- entropic score gradient


@pytest.mark.parametrize("mix", [0.0, 0.5, 1.0, 1.5])
def test_entropic_gradient_is_that_of_its_objective(mix):
    """mix KL(q(x_t) || p_t) + (1 - mix) E_c KL(q(x_t | c) || p_t), the condition being the sample itself."""
    alpha, sigma, weight = 0.8, 0.6, 0.7

    def loss(x):
        x_t = alpha * x + sigma * NOISE
        real = score(x_t, alpha * DATA_MEAN, noised(DATA_COVARIANCE, sigma, alpha))
        marginal = score(x_t, alpha * MEAN, noised(COVARIANCE, sigma, alpha))
        conditional = -NOISE / sigma
        gradient = sd.entropic_score_gradient(real, marginal, conditional, entropy_weight=mix, weight=weight)
        return sd.gradient_surrogate(x_t, gradient)  # on x_t: the chain rule gives alpha

    target = np.linalg.inv(noised(DATA_COVARIANCE, sigma, alpha))
    own = np.linalg.inv(noised(COVARIANCE, sigma, alpha))
    # E_c KL(q(x_t|c) || p_t) = 1/2 E (x - mu)^T alpha^2 target (x - mu) + constant: it has no term in own.
    mean_part = alpha**2 * target @ (np.asarray(MEAN, np.float64) - DATA_MEAN)
    factor_part = alpha**2 * (target - mix * own) @ np.asarray(FACTOR, np.float64)
    assert_gradients(expected_gradient(loss), [weight * mean_part, weight * factor_part])
    if mix == 1:
        divergence = divergence_gradient(MEAN, FACTOR, DATA_MEAN, DATA_COVARIANCE, sigma, alpha)
        assert_gradients([mean_part, factor_part], divergence)


def test_applied_to_the_clean_sample_the_factor_alpha_is_missing():
    alpha = 0.25
    x, real, marginal, conditional = jax.random.normal(KEY, (4, 3, 2))
    gradient = sd.entropic_score_gradient(real, marginal, conditional)
    on_noised = jax.grad(lambda x: sd.gradient_surrogate(alpha * x, gradient).sum())(x)
    on_clean = jax.grad(lambda x: sd.gradient_surrogate(x, gradient).sum())(x)
    np.testing.assert_allclose(on_noised, alpha * on_clean, rtol=1e-6)


def test_entropic_gradient_by_hand():
    real, marginal, conditional = (jnp.full((3, 2), value) for value in (1.0, 3.0, -5.0))
    for mix, bracket in ((0.0, 6.0), (0.25, 4.0), (1.0, -2.0), (2.0, -10.0)):
        ours = sd.entropic_score_gradient(
            real, marginal, conditional, entropy_weight=mix, weight=jnp.array([0.0, 1.0, 2.0])
        )
        np.testing.assert_array_equal(ours, -bracket * np.array([[0.0] * 2, [1.0] * 2, [2.0] * 2]))
    # default 0.5; one entropy weight an example
    np.testing.assert_array_equal(sd.entropic_score_gradient(real, marginal, conditional), np.full((3, 2), -2.0))
    each = sd.entropic_score_gradient(real, marginal, conditional, entropy_weight=jnp.array([0.0, 1.0, 2.0]))
    np.testing.assert_array_equal(each[:, 0], [-6.0, 2.0, 10.0])


def test_entropic_gradient_is_guidance_of_the_critic():
    real, marginal, conditional = jax.random.normal(KEY, (3, 4, 5))
    mix, sigma = 0.3, 1.7
    guided = marginal + (1 - mix) * (conditional - marginal)
    ours = sd.entropic_score_gradient(real, marginal, conditional, entropy_weight=mix)
    np.testing.assert_allclose(ours, guided - real, rtol=1e-5, atol=1e-6)
    noise = sd.guided_variational_gradient(-sigma * real, -sigma * real, -sigma * guided, -sigma * guided, scale=1.0)
    np.testing.assert_allclose(noise, sigma * ours, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mix", [0.5, 1.0])
def test_entropy_widens_the_generator_that_descent_finds(mix):
    """Descent ends where the generator's noised covariance is mix times that of the data: small for a small mix."""
    sigma = 0.3

    def step(state, _):
        mean, factor = state

        def loss(mean, factor):
            x_t = generate(mean, factor) + sigma * NOISE
            covariance = jax.lax.stop_gradient(factor @ factor.T) + sigma**2 * jnp.eye(2)
            marginal = -(x_t - jax.lax.stop_gradient(mean)) @ jnp.linalg.inv(covariance)
            real = score(x_t, DATA_MEAN, noised(DATA_COVARIANCE, sigma))
            gradient = sd.entropic_score_gradient(real, marginal, -NOISE / sigma, entropy_weight=mix)
            return WEIGHTS @ sd.gradient_surrogate(x_t, gradient)

        gradients = jax.grad(loss, argnums=(0, 1))(mean, factor)
        return jax.tree.map(lambda p, g: p - 0.1 * g, state, gradients), None

    (mean, factor), _ = jax.jit(lambda s: jax.lax.scan(step, s, None, length=2000))((MEAN, FACTOR))
    np.testing.assert_allclose(mean, DATA_MEAN, atol=2e-3)
    expected = mix * noised(DATA_COVARIANCE, sigma) - sigma**2 * np.eye(2)
    np.testing.assert_allclose(factor @ factor.T, expected, atol=5e-3)


# --- score identity loss

CONSTANT = 1e4  # a floor above every mean|r - x|: omega is then this number


def identity_loss(x, sigma, alpha):
    x_t = x + sigma * NOISE
    real, fake = denoised(x_t, DATA_MEAN, DATA_COVARIANCE, sigma), denoised(x_t, MEAN, COVARIANCE, sigma)
    return CONSTANT * sd.score_identity_loss(x, real, fake, alpha=alpha, floor=CONSTANT)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 1.2])
def test_identity_gradient_against_the_fisher_divergence(alpha, sigma):
    """Half its gradient, the critic's part included, less (alpha - 1/2) of the part that the critic has no part in."""
    data = (DATA_MEAN, DATA_COVARIANCE, sigma)
    whole = jax.grad(lambda m, f: fisher_divergence(m, f, *data), argnums=(0, 1))(MEAN, FACTOR)
    frozen = jax.grad(lambda m, f: fisher_divergence(m, f, *data, critic=(MEAN, FACTOR)), argnums=(0, 1))(MEAN, FACTOR)
    expected = [w / 2 - (alpha - 0.5) * f for w, f in zip(whole, frozen, strict=True)]
    assert_gradients(expected_gradient(lambda x: identity_loss(x, sigma, alpha)), expected, rtol=1e-3)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 1.2])
def test_identity_value_is_one_minus_alpha_times_the_fisher_divergence(alpha):
    value = WEIGHTS @ identity_loss(generate(MEAN, FACTOR), 1.0, alpha)
    divergence = fisher_divergence(MEAN, FACTOR, DATA_MEAN, DATA_COVARIANCE, 1.0)
    np.testing.assert_allclose(value, (1 - alpha) * divergence, rtol=1e-4, atol=1e-4 * float(divergence))


def test_identity_by_hand():
    x, real, fake = jnp.array([[1.0, 2.0]]), jnp.array([[3.0, 0.0]]), jnp.array([[2.0, 4.0]])
    # r - f = (1, -4), r - x = (2, -2); mean|r - x| = 2
    for alpha, value in ((0.0, (2 + 8) / 2), (1.0, (1 * 1 - 4 * 2) / 2), (1.2, (2 - 1.2 + 4 * (2 - 4.8)) / 2)):
        np.testing.assert_allclose(sd.score_identity_loss(x, real, fake, alpha=alpha), [value], rtol=1e-6)
    np.testing.assert_allclose(sd.score_identity_loss(x, real, fake), [(0.8 - 11.2) / 2], rtol=1e-6)
    np.testing.assert_allclose(sd.score_identity_loss(x, real, fake, alpha=0.0, floor=5.0), [2.0], rtol=1e-6)
    each = sd.score_identity_loss(*[jnp.tile(a, (2, 1)) for a in (x, real, fake)], alpha=jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(each, [5.0, -3.5], rtol=1e-6)


def test_identity_gradient_reaches_sample_and_both_estimates_but_not_the_denominator():
    x, real, fake = (np.asarray(a, np.float64) for a in jax.random.normal(KEY, (3, 4, 5)))
    alpha = 1.2
    omega = np.abs(real - x).mean(axis=1, keepdims=True)
    gradients = jax.grad(lambda *a: sd.score_identity_loss(*a, alpha=alpha).sum(), argnums=(0, 1, 2))(
        *(jnp.asarray(a, jnp.float32) for a in (x, real, fake))
    )
    d = real - fake
    bracket = (real - x) - alpha * d
    expected = (-d / omega, (bracket + (1 - alpha) * d) / omega, (-bracket + alpha * d) / omega)
    assert_gradients(gradients, expected)


def test_identity_edges():
    x = jnp.array([[1.0, 2.0], [1.0, 2.0]])
    fake = jnp.array([[1.0, 2.0], [4.0, 2.0]])
    value, gradients = jax.value_and_grad(lambda *a: sd.score_identity_loss(*a).sum(), argnums=(0, 1, 2))(x, x, fake)
    assert np.isfinite(value)
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in gradients)
    # all three alike: no loss, no gradient; denominators below the floor are the floor
    np.testing.assert_array_equal(sd.score_identity_loss(x, x, x), [0, 0])
    np.testing.assert_allclose(sd.score_identity_loss(x, x, fake), [0, -1.2 * 9 / 1e-5], rtol=1e-5)


# --- the critic


@pytest.mark.parametrize("sigma", [0.2, 1.0, 5.0])
def test_the_critic_learns_the_score_of_the_generator(sigma):
    """Gradient and value over the denoisers m + C (x - m): zero, and the posterior variance, at the exact one."""
    exact = jnp.asarray(shrinkage(COVARIANCE, sigma), jnp.float32)
    total = jnp.asarray(noised(COVARIANCE, sigma), jnp.float32)
    weight = sigma**-2 + 4.0

    def loss(matrix, offset):
        denoise = lambda x, level: MEAN + offset + (x - MEAN) @ matrix.T  # noqa: E731
        return WEIGHTS @ sd.denoising_score_loss(denoise, generate(MEAN, FACTOR), NOISE, jnp.full(81, sigma))

    value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(exact, jnp.zeros(2))
    posterior = sigma**2 * shrinkage(COVARIANCE, sigma)
    np.testing.assert_allclose(value, weight * np.trace(posterior) / 2, rtol=1e-4)
    for gradient in gradients:
        np.testing.assert_allclose(gradient, np.zeros_like(gradient), atol=1e-4 * weight)
    shift, offset = jnp.array([[0.1, -0.2], [0.05, 0.3]]), jnp.array([0.4, -0.1])
    off = jax.grad(loss, argnums=(0, 1))(exact + shift, offset)
    assert_gradients(off, (weight * shift @ total, weight * offset), rtol=1e-3)


def test_denoising_by_hand():
    sample, noise = jnp.array([[1.0, 0.0], [0.0, 0.0]]), jnp.array([[1.0, 2.0], [0.0, 1.0]])
    # x_t = (3, 4) and (0, 1); D = x_t / 2: errors (0.5, 2) and (0, 0.5); weights 1/4 + 4 and 1 + 4
    denoise = lambda x, sigma: x / 2  # noqa: E731
    loss = sd.denoising_score_loss(denoise, sample, noise, jnp.array([2.0, 1.0]))
    np.testing.assert_allclose(loss, [4.25 * 4.25 / 2, 5 * 0.25 / 2], rtol=1e-6)
    other = sd.denoising_score_loss(denoise, sample, noise, jnp.array([2.0, 1.0]), sigma_data=1.0)
    np.testing.assert_allclose(other, [1.25 * 4.25 / 2, 2 * 0.25 / 2], rtol=1e-6)


# --- who is moved by whom


def network(params, x, sigma):
    return jnp.tanh(x @ params["w"] + params["b"] / (1 + sigma[:, None]))


def three_networks():
    keys = jax.random.split(KEY, 3)
    make = lambda k: {"w": jax.random.normal(k, (2, 2)), "b": jax.random.normal(k, (2,))}  # noqa: E731
    return {name: make(k) for name, k in zip(("generator", "teacher", "critic"), keys, strict=True)}


SIGMA = jnp.linspace(0.2, 3.0, 81)


def estimates(params):
    draw = sd.one_step_generator(lambda x, sigma: network(params["generator"], x, sigma))
    x = draw(Z)
    x_t = x + SIGMA[:, None] * NOISE
    return x, x_t, network(params["teacher"], x_t, SIGMA), network(params["critic"], x_t, SIGMA)


def matching_loss(params):
    x, _, real, fake = estimates(params)
    return sd.gradient_surrogate(x, sd.distribution_matching_gradient(x, real, fake)).mean()


def guided_loss(params):
    x, _, real, fake = estimates(params)
    return sd.gradient_surrogate(
        x, sd.guided_variational_gradient(real, 0.5 * real, fake, 0.5 * fake, scale=2.0)
    ).mean()


def entropic_loss(params):
    x, x_t, real, fake = estimates(params)
    return sd.gradient_surrogate(x, sd.entropic_score_gradient(real, fake, -x_t)).mean()


def critic_loss(params):
    x = estimates(params)[0]
    denoise = lambda x, sigma: network(params["critic"], x, sigma)  # noqa: E731
    return sd.denoising_score_loss(denoise, x, NOISE, SIGMA).mean()


def moved(tree):
    return any(float(jnp.abs(leaf).max()) > 1e-6 for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("loss", "learner", "listens_to"),
    [
        (matching_loss, "generator", {"generator", "teacher", "critic"}),
        (guided_loss, "generator", {"generator", "teacher", "critic"}),
        (entropic_loss, "generator", {"generator", "teacher", "critic"}),
        (critic_loss, "critic", {"generator", "critic"}),
    ],
)
def test_gradients_reach_the_learner_alone_and_depend_on_the_others(loss, learner, listens_to):
    params = three_networks()
    gradient = jax.jit(jax.grad(loss))
    gradients = gradient(params)
    for name in params:
        assert moved(gradients[name]) == (name == learner), name
    for name in params:
        perturbed = {**params, name: jax.tree.map(lambda leaf: leaf + 0.1, params[name])}
        change = jax.tree.map(lambda a, b: a - b, gradient(perturbed)[learner], gradients[learner])
        assert moved(change) == (name in listens_to), name


def test_no_gradient_passes_through_the_three_gradients():
    arguments = jax.random.normal(KEY, (4, 3, 2))
    for function in (
        lambda a: sd.distribution_matching_gradient(*a[:3]),
        lambda a: sd.guided_variational_gradient(*a, scale=jnp.abs(a[0, :, 0]), weight=jnp.abs(a[1, :, 0])),
        lambda a: sd.entropic_score_gradient(*a[:3], entropy_weight=jnp.abs(a[3, :, 0])),
    ):
        np.testing.assert_array_equal(jax.grad(lambda a, f=function: f(a).sum())(arguments), np.zeros((4, 3, 2)))


# --- distribution backtracking


def test_index_walks_the_path_once():
    steps = jnp.array([0, 1, 2, 3, 4, 5, 6, 100])
    np.testing.assert_array_equal(sd.backtracking_index(steps, 4, interval=2), [1, 1, 2, 2, 3, 3, 3, 3])
    np.testing.assert_array_equal(sd.backtracking_index(steps, 2, interval=2), [1] * 8)
    np.testing.assert_array_equal(sd.backtracking_index(jnp.array([999, 1000]), 3), [1, 2])
    assert sd.backtracking_index(0, 5).dtype == jnp.int32
    assert sd.backtracking_index(0, 5).shape == ()


def test_index_at_the_ends_of_integers():
    largest = np.iinfo(np.int32).max
    assert int(sd.backtracking_index(largest, 7, interval=1)) == 6
    assert int(sd.backtracking_index(largest, largest, interval=1)) == largest - 1
    assert int(sd.backtracking_index(jnp.uint8(200), 7, interval=1000)) == 1


def test_index_is_not_compiled_in():
    traces = []

    @jax.jit
    def index(step, count, interval):
        traces.append(None)
        return sd.backtracking_index(step, count, interval=interval)

    assert [int(index(step, 5, 10)) for step in (0, 9, 10, 39, 1000)] == [1, 1, 2, 4, 4]
    assert len(traces) == 1


def test_checkpoints_are_selected_by_a_traced_index():
    stack = {"w": jnp.arange(12.0).reshape(3, 2, 2), "b": (jnp.arange(3), np.ones((3, 0)), None)}
    traces = []

    @jax.jit
    def select(index):
        traces.append(None)
        return sd.select_checkpoint(stack, index)

    for i in range(3):
        chosen = select(i)
        np.testing.assert_array_equal(chosen["w"], stack["w"][i])
        assert int(chosen["b"][0]) == i
        assert chosen["b"][1].shape == (0,)
        assert chosen["b"][2] is None
        np.testing.assert_array_equal(sd.select_checkpoint(stack, i)["w"], stack["w"][i])
    assert len(traces) == 1
    # traced indices are clipped, from below too
    assert [int(select(i)["b"][0]) for i in (-1, 3, 100)] == [0, 2, 2]
    assert sd.select_checkpoint({}, 0) == {}


def test_a_scan_over_steps_follows_the_path():
    stack = jnp.array([[10.0], [20.0], [30.0]])

    def step(carry, i):
        return carry, sd.select_checkpoint(stack, sd.backtracking_index(i, 3, interval=3))[0]

    _, targets = jax.lax.scan(step, 0, jnp.arange(8))
    np.testing.assert_array_equal(targets, [20, 20, 20, 30, 30, 30, 30, 30])


def test_gradient_goes_to_the_selected_checkpoint():
    gradient = jax.grad(lambda stack: jnp.sum(sd.select_checkpoint(stack, 1) ** 2))(jnp.arange(6.0).reshape(3, 2))
    np.testing.assert_array_equal(gradient, [[0, 0], [4, 6], [0, 0]])


def test_mismatch_by_hand_and_at_the_edges():
    sample = jnp.zeros((4, 1, 2))
    target = jnp.array([[[3.0, 4.0]], [[3.0, 4.0]], [[0.0, 0.0]], [[0.0, 0.0]]])
    fake = jnp.array([[[3.0, 9.0]], [[3.0, 4.0]], [[0.0, 0.0]], [[1.0, 0.0]]])
    mismatch = sd.score_mismatch(fake, target, sample)
    np.testing.assert_allclose(mismatch, [1.0, 0.0, 0.0, 1e8], rtol=1e-6)
    np.testing.assert_allclose(sd.score_mismatch(fake, target, sample, eps=0.5), [1.0, 0.0, 0.0, 2.0], rtol=1e-6)
    gradients = jax.grad(lambda *a: sd.score_mismatch(*a).sum(), argnums=(0, 1, 2))(fake, target, sample)
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in gradients)


def test_mismatch_falls_along_the_reversed_path():
    """Targets that move from the generator's own distribution to the data: the nearest one mismatches least."""
    sigma = 1.0
    x = generate(MEAN, FACTOR)
    x_t = x + sigma * NOISE
    fake = denoised(x_t, MEAN, COVARIANCE, sigma)
    means = []
    for share in (0.0, 0.25, 0.5, 1.0):
        mean = (1 - share) * np.asarray(MEAN) + share * DATA_MEAN
        covariance = (1 - share) * COVARIANCE + share * DATA_COVARIANCE
        means.append(float(WEIGHTS @ sd.score_mismatch(fake, denoised(x_t, mean, covariance, sigma), x)))
    assert means[0] < 1e-10
    assert all(a < b for a, b in itertools.pairwise(means))


# --- the generator


def test_generator_of_the_exact_denoiser():
    """G(z) = (1 - A) mu + A sigma z for Gaussian data, started from which distillation begins."""
    draw = sd.one_step_generator(lambda x, sigma: denoised(x, DATA_MEAN, DATA_COVARIANCE, 2.5))
    a = shrinkage(DATA_COVARIANCE, 2.5)
    expected = DATA_MEAN @ (np.eye(2) - a).T + 2.5 * np.asarray(Z, np.float64) @ a.T
    np.testing.assert_allclose(draw(Z), expected, rtol=1e-4, atol=1e-5)


def test_generator_passes_level_and_labels():
    seen = {}

    def denoise(x, sigma, labels):
        seen.update(x=x, sigma=sigma, labels=labels)
        return x + labels[:, None, None]

    noise = jax.random.normal(KEY, (3, 2, 1))
    labels = jnp.array([0, 10, 20])
    sample = sd.one_step_generator(denoise)(noise, labels)
    np.testing.assert_array_equal(seen["sigma"], [2.5] * 3)
    np.testing.assert_array_equal(seen["labels"], labels)
    np.testing.assert_allclose(sample, 2.5 * noise + labels[:, None, None], rtol=1e-6)
    sd.one_step_generator(denoise, sigma_init=80.0)(noise, labels=labels)
    np.testing.assert_allclose(seen["x"], 80 * noise, rtol=1e-6)
    traced = jax.jit(lambda s: sd.one_step_generator(denoise, sigma_init=s)(noise, labels))(2.5)
    np.testing.assert_allclose(traced, sample, rtol=1e-6)


def test_distribution_matching_leads_the_generator_to_the_data():
    """Exact critic, 81 quadrature points, descent on mean and factor over three levels."""

    def step(state, _):
        def loss(mean, factor):
            x, total = generate(mean, factor), 0.0
            fixed_mean, fixed = jax.lax.stop_gradient((mean, factor @ factor.T))
            for sigma in (0.2, 1.0, 3.0):
                x_t = x + sigma * NOISE
                shrink = fixed @ jnp.linalg.inv(fixed + sigma**2 * jnp.eye(2))
                fake = fixed_mean + (x_t - fixed_mean) @ shrink.T
                real = denoised(x_t, DATA_MEAN, DATA_COVARIANCE, sigma)
                gradient = sd.distribution_matching_gradient(x, real, fake, normalize=False)
                total += WEIGHTS @ sd.gradient_surrogate(x, gradient)
            return total

        gradients = jax.grad(loss, argnums=(0, 1))(*state)
        return jax.tree.map(lambda p, g: p - 0.2 * g, state, gradients), None

    (mean, factor), _ = jax.jit(lambda s: jax.lax.scan(step, s, None, length=1000))((MEAN, FACTOR))
    np.testing.assert_allclose(mean, DATA_MEAN, atol=1e-3)
    np.testing.assert_allclose(factor @ factor.T, DATA_COVARIANCE, atol=1e-3)


# --- every function

ARRAY_FUNCTIONS = {
    "surrogate": lambda a: sd.gradient_surrogate(*a[:2]),
    "matching": lambda a: sd.distribution_matching_gradient(*a[:3]),
    "guided": lambda a: sd.guided_variational_gradient(*a, scale=2.0),
    "entropic": lambda a: sd.entropic_score_gradient(*a[:3]),
    "identity": lambda a: sd.score_identity_loss(*a[:3]),
    "mismatch": lambda a: sd.score_mismatch(*a[:3]),
    "denoising": lambda a: sd.denoising_score_loss(
        lambda x, s: x / (1 + s.reshape(-1, 1, 1)), a[0], a[1], jnp.ones(a[0].shape[0])
    ),
}


@pytest.mark.parametrize("function", ARRAY_FUNCTIONS.values(), ids=ARRAY_FUNCTIONS)
def test_every_function_under_transformations_and_in_half_precision(function):
    arguments = list(jax.random.normal(KEY, (4, 8, 3, 2)))
    expected = function(arguments)
    assert expected.dtype == jnp.float32
    assert expected.shape in ((8,), (8, 3, 2))
    np.testing.assert_allclose(jax.jit(function)(arguments), expected, rtol=1e-5, atol=1e-6)
    one_by_one = jax.vmap(function)([a[:, None] for a in arguments])
    np.testing.assert_allclose(one_by_one[:, 0], expected, rtol=1e-5, atol=1e-6)
    half = function([a.astype(jnp.bfloat16) for a in arguments])
    assert half.dtype == jnp.float32
    widened = function([a.astype(jnp.bfloat16).astype(jnp.float32) for a in arguments])
    np.testing.assert_allclose(half, widened, rtol=1e-5, atol=1e-6)
    assert function([a[:1] for a in arguments]).shape == (1, *expected.shape[1:])
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = [jax.device_put(a, NamedSharding(mesh, PartitionSpec("data"))) for a in arguments]
    np.testing.assert_allclose(jax.jit(function)(sharded), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("function", ARRAY_FUNCTIONS.values(), ids=ARRAY_FUNCTIONS)
def test_nan_passes_and_stays_in_its_example(function):
    arguments = list(jax.random.normal(KEY, (4, 3, 2, 2)))
    arguments[1] = arguments[1].at[1, 0, 0].set(jnp.nan)
    result = np.asarray(function(arguments)).reshape(3, -1)
    assert np.isnan(result[1]).any()
    assert np.isfinite(result[[0, 2]]).all()


@pytest.mark.parametrize("function", ARRAY_FUNCTIONS.values(), ids=ARRAY_FUNCTIONS)
def test_gradients_are_finite_where_everything_is_zero(function):
    zeros = [jnp.zeros((2, 3, 2))] * 4
    gradients = jax.grad(lambda a: function(a).sum())(zeros)
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in gradients)


X, Y = jnp.ones((2, 3)), jnp.ones((2, 4))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: sd.gradient_surrogate(X, Y), "sample and gradient"),
        (lambda: sd.gradient_surrogate(1.0, 1.0), "sample must have a leading"),
        (lambda: sd.distribution_matching_gradient(X, Y, X), "real_denoised"),
        (lambda: sd.distribution_matching_gradient(X, X, Y), "fake_denoised"),
        (lambda: sd.distribution_matching_gradient(X, X, X, eps=0.0), "eps"),
        (lambda: sd.distribution_matching_gradient(X, X, X, eps=jnp.ones(2)), "eps"),
        (lambda: sd.guided_variational_gradient(X, Y, X, X, scale=1.0), "teacher_negative"),
        (lambda: sd.guided_variational_gradient(X, X, Y, X, scale=1.0), "critic_positive"),
        (lambda: sd.guided_variational_gradient(X, X, X, Y, scale=1.0), "critic_negative"),
        (lambda: sd.guided_variational_gradient(X, X, X, X, scale=jnp.ones(3)), "scale"),
        (lambda: sd.guided_variational_gradient(X, X, X, X, scale=jnp.ones((2, 1))), "scale"),
        (lambda: sd.guided_variational_gradient(X, X, X, X, scale=1.0, weight=jnp.ones(3)), "weight"),
        (lambda: sd.guided_variational_gradient(X, X, X, X, scale=1.0, weight=-1.0), "weight"),
        (lambda: sd.entropic_score_gradient(X, Y, X), "marginal_score"),
        (lambda: sd.entropic_score_gradient(X, X, Y), "conditional_score"),
        (lambda: sd.entropic_score_gradient(X, X, X, entropy_weight=-0.1), "entropy_weight"),
        (lambda: sd.entropic_score_gradient(X, X, X, weight=jnp.ones(3)), "weight"),
        (lambda: sd.entropic_score_gradient(X, X, X, weight=-1.0), "weight"),
        (lambda: sd.score_identity_loss(X, Y, X), "real_denoised"),
        (lambda: sd.score_identity_loss(X, X, Y), "fake_denoised"),
        (lambda: sd.score_identity_loss(X, X, X, floor=0.0), "floor"),
        (lambda: sd.score_identity_loss(X, X, X, floor=-1.0), "floor"),
        (lambda: sd.score_identity_loss(X, X, X, alpha=jnp.ones(3)), "alpha"),
        (lambda: sd.denoising_score_loss(lambda x, s: x, X, Y, jnp.ones(2)), "sample and noise"),
        (lambda: sd.denoising_score_loss(lambda x, s: x, X, X, 1.0), "sigma"),
        (lambda: sd.denoising_score_loss(lambda x, s: x, X, X, jnp.ones(3)), "sigma"),
        (lambda: sd.denoising_score_loss(lambda x, s: x, X, X, jnp.array([1.0, 0.0])), "sigma"),
        (lambda: sd.denoising_score_loss(lambda x, s: x, X, X, jnp.ones(2), sigma_data=0.0), "sigma_data"),
        (lambda: sd.denoising_score_loss(lambda x, s: Y, X, X, jnp.ones(2)), "denoise"),
        (lambda: sd.score_mismatch(X, Y, X), "target_denoised"),
        (lambda: sd.score_mismatch(X, X, Y), "sample"),
        (lambda: sd.score_mismatch(X, X, X, eps=0.0), "eps"),
        (lambda: sd.backtracking_index(-1, 4), "step"),
        (lambda: sd.backtracking_index(1.5, 4), "step"),
        (lambda: sd.backtracking_index(0, 1), "num_checkpoints"),
        (lambda: sd.backtracking_index(0, 4, interval=0), "interval"),
        (lambda: sd.backtracking_index(0, 4, interval=2.5), "interval"),
        (lambda: sd.select_checkpoint({"a": X, "b": jnp.ones(3)}, 0), "stacked_params"),
        (lambda: sd.select_checkpoint({"a": 1.0}, 0), "stacked_params"),
        (lambda: sd.select_checkpoint({"a": jnp.ones((0, 2))}, 0), "stacked_params"),
        (lambda: sd.select_checkpoint({"a": X}, 2), "index"),
        (lambda: sd.select_checkpoint({"a": X}, -1), "index"),
        (lambda: sd.select_checkpoint({"a": X}, 1.0), "index"),
        (lambda: sd.select_checkpoint({"a": X}, jnp.array([0])), "index"),
        (lambda: sd.one_step_generator(lambda x, s: x, sigma_init=0.0), "sigma_init"),
        (lambda: sd.one_step_generator(lambda x, s: x, sigma_init=jnp.ones(2)), "sigma_init"),
        (lambda: sd.one_step_generator(lambda x, s: x)(1.0), "noise"),
        (lambda: sd.one_step_generator(lambda x, s: Y)(X), "denoise"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
