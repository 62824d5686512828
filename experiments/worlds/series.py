"""Many short series: waves under autocorrelated noise, and targets that depend on what the waves are."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


class Waves(NamedTuple):
    """Series [N, T, F] and the amplitudes and phases [N, F] of the waves in them."""

    x: Array
    amplitude: Array
    phase: Array


def autoregressive_noise(
    key: Array, shape: tuple[int, ...], *, coefficient: float = 0.6, deviation: float = 1.0
) -> Array:
    """Stationary noise n_t = coefficient * n_{t-1} + innovation along axis 1 of `shape` [N, T, ...].

    Args:
      key: a PRNG key.
      shape: of the noise.
      coefficient: in (-1, 1), the correlation of neighbours.
      deviation: standard deviation of the noise itself, at every step.

    Raises:
      ValueError: `coefficient` outside (-1, 1), or fewer than two axes.
    """
    if not -1 < coefficient < 1:
        raise ValueError(f"coefficient must be in (-1, 1), got {coefficient}")
    if len(shape) < 2:
        raise ValueError(f"shape must be [N, T, ...], got {shape}")
    normal = jnp.moveaxis(jax.random.normal(key, shape), 1, 0)
    shrink = np.sqrt(1 - coefficient**2)

    def step(before: Array, draw: Array) -> tuple[Array, Array]:
        now = coefficient * before + shrink * draw
        return now, now

    # The first value is drawn from the stationary law, so that no step is quieter than another.
    _, later = jax.lax.scan(step, normal[0], normal[1:])
    return deviation * jnp.moveaxis(jnp.concatenate([normal[:1], later]), 0, 1)


def waves(
    key: Array,
    size: int,
    *,
    steps: int = 24,
    frequencies: tuple[int, ...] = (1, 1, 2, 3),
    amplitudes: tuple[float, float] = (0.5, 2.0),
    coefficient: float = 0.6,
    deviation: float = 0.5,
) -> Waves:
    r"""Series :math:`a_f \sin(2 \pi k_f t / T + \varphi_f)` plus autoregressive noise.

    Args:
      key: a PRNG key.
      size: N series.
      steps: T.
      frequencies: k_f, whole turns in T steps, one a feature.
      amplitudes: bounds of the uniform law of a_f; phases are uniform on the circle.
      coefficient: of `autoregressive_noise`.
      deviation: of `autoregressive_noise`.
    """
    amplitude_key, phase_key, noise_key = jax.random.split(key, 3)
    shape = (size, len(frequencies))
    amplitude = jax.random.uniform(amplitude_key, shape, minval=amplitudes[0], maxval=amplitudes[1])
    phase = jax.random.uniform(phase_key, shape, maxval=2 * np.pi)
    angle = 2 * np.pi * np.arange(steps)[:, None] * np.asarray(frequencies) / steps
    clean = amplitude[:, None] * jnp.sin(jnp.asarray(angle, jnp.float32) + phase[:, None])
    noise = autoregressive_noise(noise_key, clean.shape, coefficient=coefficient, deviation=deviation)
    return Waves(clean + noise, amplitude, phase)


def amplitude_target(
    key: Array, given: Waves, *, quiet: float = 0.1, loud: float = 0.4, threshold: float = 1.5
) -> tuple[Array, Array]:
    r"""A regression target with noise that the series tells of, :math:`a_0 + \tfrac12 a_1 \cos\varphi_1 + \tfrac12 a_2`.

    Args:
      key: a PRNG key, of the noise.
      given: waves of four features at least.
      quiet: standard deviation of the noise where the fourth amplitude is at most `threshold`.
      loud: the same above it.
      threshold: of the fourth amplitude.

    Returns:
      targets [N], and the standard deviation [N] of their noise.

    Raises:
      ValueError: fewer than four features.
    """
    a = given.amplitude
    if a.shape[1] < 4:
        raise ValueError(f"the target needs 4 features, got {a.shape[1]}")
    deviation = jnp.where(a[:, 3] > threshold, loud, quiet)
    signal = a[:, 0] + 0.5 * a[:, 1] * jnp.cos(given.phase[:, 1]) + 0.5 * a[:, 2]
    return signal + deviation * jax.random.normal(key, signal.shape), deviation
