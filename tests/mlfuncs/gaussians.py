"""Gaussian data and generators, whose scores and divergences are known: what score distillation is tested on."""

import itertools

import jax.numpy as jnp
import numpy as np


def quadrature(dimensions, nodes=3):
    """Points [N, dimensions] and weights [N] for a unit normal: exact for polynomials up to degree 2 nodes - 1."""
    x, w = np.polynomial.hermite_e.hermegauss(nodes)
    w = w / w.sum()
    points = np.array(list(itertools.product(x, repeat=dimensions)))
    weights = np.array(list(itertools.product(w, repeat=dimensions))).prod(axis=1)
    return jnp.asarray(points, jnp.float32), jnp.asarray(weights, jnp.float32)


def noised(covariance, sigma, alpha=1.0):
    return alpha**2 * np.asarray(covariance, np.float64) + sigma**2 * np.eye(len(covariance))


def score(x, mean, covariance):
    """Score of N(mean, covariance), x [N, D]."""
    precision = np.linalg.inv(np.asarray(covariance, np.float64))
    return -(x - jnp.asarray(mean, jnp.float32)) @ jnp.asarray(precision, jnp.float32)


def shrinkage(covariance, sigma):
    """A of the exact denoiser D(x) = mean + A (x - mean)."""
    return np.asarray(covariance, np.float64) @ np.linalg.inv(noised(covariance, sigma))


def denoised(x, mean, covariance, sigma):
    """The exact denoiser of N(mean, covariance) data, x [N, D], one level."""
    mean = jnp.asarray(mean, jnp.float32)
    return mean + (x - mean) @ jnp.asarray(shrinkage(covariance, sigma).T, jnp.float32)


def divergence_gradient(mean, factor, target_mean, target_covariance, sigma, alpha=1.0):
    """Of KL(generator || target) in mean and factor, generator N(mean, factor factor^T), both at (alpha, sigma)."""
    mean, factor = np.asarray(mean, np.float64), np.asarray(factor, np.float64)
    target = np.linalg.inv(noised(target_covariance, sigma, alpha))
    own = np.linalg.inv(noised(factor @ factor.T, sigma, alpha))
    return alpha**2 * target @ (mean - target_mean), alpha**2 * (target - own) @ factor


def fisher_divergence(mean, factor, target_mean, target_covariance, sigma, critic=None):
    """E|r - f|^2 of the exact clean estimates; `critic` (mean, factor) holds f at those of another generator."""
    critic_mean, critic_factor = (mean, factor) if critic is None else critic
    eye = jnp.eye(len(mean))
    real = jnp.asarray(shrinkage(target_covariance, sigma), jnp.float32)
    critic_covariance = critic_factor @ critic_factor.T
    fake = critic_covariance @ jnp.linalg.inv(critic_covariance + sigma**2 * eye)
    gap = real - fake
    offset = gap @ mean + (eye - real) @ jnp.asarray(target_mean, jnp.float32) - (eye - fake) @ critic_mean
    return offset @ offset + jnp.trace(gap @ (factor @ factor.T + sigma**2 * eye) @ gap.T)
