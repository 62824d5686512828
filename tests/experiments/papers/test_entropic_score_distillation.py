"""Closed forms of both problems: divergence and scores of Gaussians, denoised mixtures, shares of modes."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.papers import entropic_score_distillation as study
from mlfuncs import diffusion, guidance, score_distillation
from tests.experiments.papers.smoke import smoke


def test_divergence_of_gaussians():
    unit = {"mean": jnp.zeros(2), "factor": jnp.eye(2)}
    other = {"mean": jnp.array([1.0, 0.0]), "factor": jnp.diag(jnp.array([2.0, 1.0]))}
    # Along the first axis log 2 + (1 + 1) / 8 - 1/2 of one and (4 + 1 - 1) / 2 - log 2 of the other.
    np.testing.assert_allclose(study.gaussian_divergence(unit, other), np.log(2) - 0.25, rtol=1e-5)
    np.testing.assert_allclose(study.gaussian_divergence(other, unit), 2 - np.log(2), rtol=1e-5)
    np.testing.assert_allclose(study.log_volume(other["factor"]), np.log(4), rtol=1e-6)
    # The factor is known up to a rotation.
    turned = unit | {"factor": jnp.array([[0.6, -0.8], [0.8, 0.6]])}
    np.testing.assert_allclose(study.gaussian_divergence(turned, unit), 0, atol=1e-6)


def test_a_mixture_of_one_mode_is_a_gaussian():
    x = jnp.array([[0.3, -1.0], [2.0, 0.5]])
    sigma, mode = jnp.array([0.5, 2.0]), jnp.array([[1.0, 2.0]])
    denoised = study.mixture_denoise(x, sigma, mode, jnp.ones(1), 0.7)
    score = diffusion.gaussian_score(x, mode[0], 0.7 * jnp.eye(2), sigma=sigma)
    np.testing.assert_allclose(denoised, x + sigma[:, None] ** 2 * score, rtol=1e-5)


def test_a_mixture_shares_a_point_by_weight():
    modes, weights = jnp.array([[1.0, 0.0], [-1.0, 0.0]]), jnp.array([0.75, 0.25])
    # As far from either; shrunk towards 0.75 - 0.25 of the first by 4 / (4 + 1).
    denoised = study.mixture_denoise(jnp.array([[0.0, 1.0]]), jnp.array([2.0]), modes, weights, 1.0)
    np.testing.assert_allclose(denoised, [[0.4, 0.2]], rtol=1e-6)


def test_guidance_of_the_critic_is_the_entropic_gradient():
    x, real, marginal, conditional = jax.random.normal(jax.random.key(0), (4, 3, 2))
    sigma = jnp.array([0.5, 1.0, 2.0])
    square = sigma[:, None] ** 2
    fake = guidance.classifier_free_guidance(x + square * marginal, x + square * conditional, scale=0.75)
    found = score_distillation.distribution_matching_gradient(x, x + square * real, fake, normalize=False)
    expected = score_distillation.entropic_score_gradient(
        real, marginal, conditional, entropy_weight=0.25, weight=sigma**2
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_mode_statistics():
    modes = jnp.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    samples = jnp.array([[[1.0, 0.0], [0.0, 1.0]], [[10.0, 1.0], [1.0, 0.0]]])
    found = study.mode_statistics(samples, modes)
    np.testing.assert_allclose(found["entropy"], -0.75 * np.log(0.75) - 0.25 * np.log(0.25), rtol=1e-6)
    np.testing.assert_allclose(found["entropy_of_a_view"], np.log(2) / 2, rtol=1e-6)
    assert found["modes_hit"] == 2
    np.testing.assert_allclose(found["first_mode_share"], 0.75)
    np.testing.assert_allclose(found["mode_distance"], 1.0)


def test_a_smoke_run_of_both_problems(tmp_path):
    smoke("entropic_score_distillation", tmp_path)
