"""Waves and their noise: what is in them, how it correlates, and what the targets are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.worlds import series

KEY = jax.random.key(0)


def test_noise_is_stationary_and_correlated():
    noise = np.asarray(series.autoregressive_noise(KEY, (20000, 6, 1), coefficient=0.6, deviation=2.0))[..., 0]
    assert noise.shape == (20000, 6)
    np.testing.assert_allclose(noise.std(0), 2.0, rtol=0.03)  # of the first step as of the last
    for lag in (1, 2, 3):
        found = np.mean(noise[:, 1] * noise[:, 1 + lag]) / 4
        np.testing.assert_allclose(found, 0.6**lag, atol=0.03)


def test_features_have_noise_of_their_own():
    noise = np.asarray(series.autoregressive_noise(KEY, (20000, 2, 2), deviation=1.0))
    assert abs(np.mean(noise[:, 0, 0] * noise[:, 0, 1])) < 0.03


def test_waves_without_noise():
    found = series.waves(KEY, 3, steps=24, frequencies=(1, 2, 5), amplitudes=(0.5, 2.0), deviation=0.0)
    assert found.x.shape == (3, 24, 3)
    amplitude, phase = np.asarray(found.amplitude), np.asarray(found.phase)
    assert amplitude.min() >= 0.5
    assert amplitude.max() <= 2.0
    assert len(np.unique(phase)) == 9
    t = np.arange(24)[None, :, None]
    expected = amplitude[:, None] * np.sin(2 * np.pi * np.array([1, 2, 5]) * t / 24 + phase[:, None])
    np.testing.assert_allclose(found.x, expected, atol=1e-5)


def test_noise_is_added():
    quiet, loud = (series.waves(KEY, 500, deviation=deviation) for deviation in (0.0, 0.5))
    np.testing.assert_array_equal(quiet.amplitude, loud.amplitude)
    np.testing.assert_allclose(np.std(np.asarray(loud.x - quiet.x)), 0.5, rtol=0.05)


def test_phases_go_round_the_circle():
    phase = np.asarray(series.waves(KEY, 5000).phase)
    assert abs(np.mean(np.exp(1j * phase))) < 0.02
    assert phase.max() > 6.2


def test_target():
    amplitude = jnp.array([[1.0, 2.0, 0.5, 1.5], [1.0, 2.0, 0.5, 1.6]])
    given = series.Waves(jnp.zeros((2, 4, 4)), amplitude, jnp.array([[9.0, 0.0, 9.0, 9.0], [9.0, np.pi, 9.0, 9.0]]))
    target, deviation = series.amplitude_target(KEY, given, quiet=0.0, loud=0.0)
    np.testing.assert_allclose(target, [2.25, 0.25], atol=1e-6)  # 1 +- 1 + 1/4
    np.testing.assert_array_equal(deviation, [0, 0])


def test_noise_of_the_target():
    given = series.waves(KEY, 20000)
    clean, _ = series.amplitude_target(KEY, given, quiet=0.0, loud=0.0)
    noisy, deviation = series.amplitude_target(KEY, given, quiet=0.1, loud=0.4, threshold=1.5)
    loud = np.asarray(given.amplitude[:, 3]) > 1.5
    np.testing.assert_allclose(deviation, np.where(loud, 0.4, 0.1), rtol=1e-6)
    rest = np.asarray(noisy - clean)
    np.testing.assert_allclose([rest[~loud].std(), rest[loud].std()], [0.1, 0.4], rtol=0.05)


def test_refusals():
    with pytest.raises(ValueError, match=r"coefficient must be in \(-1, 1\), got 1"):
        series.autoregressive_noise(KEY, (2, 3), coefficient=1)
    with pytest.raises(ValueError, match="shape must be"):
        series.autoregressive_noise(KEY, (3,))
    with pytest.raises(ValueError, match="needs 4 features, got 2"):
        series.amplitude_target(KEY, series.waves(KEY, 2, frequencies=(1, 2)))
