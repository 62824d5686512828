"""Multistep sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlfuncs import consistency

KEY = jax.random.key(5)


def gaussian(mean, spread):
    """The exact consistency function of N(mean, spread^2) data, with boundary at 0."""

    def function(x, sigma):
        sigma = sigma.reshape(-1, *[1] * (x.ndim - 1))
        return mean + spread / jnp.sqrt(spread**2 + sigma**2) * (x - mean)

    return function


@pytest.mark.parametrize("sigmas", [(80.0,), (80.0, 0.8), (80.0, 20.0, 2.0, 0.1)])
def test_exact_model_gives_the_data_distribution(sigmas):
    num = 40_000
    x = consistency.multistep_sample(KEY, gaussian(0.3, 0.5), (num, 1), sigmas=sigmas, sigma_min=0.0)[:, 0]
    # 5 standard errors; the prior at sigma 80 misses the mean by mean * spread / 80 = 0.002.
    assert abs(float(jnp.mean(x)) - 0.3) < 5 * 0.5 / np.sqrt(num) + 0.002
    assert abs(float(jnp.std(x)) - 0.5) < 5 * 0.5 / np.sqrt(2 * num) + 0.002


def test_noise_of_later_levels():
    # f returns 0, so that the last x before the last jump is pure noise of variance sigma^2 - sigma_min^2.
    seen = consistency.multistep_sample(
        KEY, lambda x, sigma: jnp.where(sigma[:, None] > 10, 0.0, x), (50_000, 1), sigmas=(80.0, 5.0), sigma_min=3.0
    )
    np.testing.assert_allclose(jnp.std(seen), 4.0, rtol=5 / np.sqrt(2 * 50_000))


def test_last_level_at_sigma_min_adds_no_noise():
    once = consistency.multistep_sample(KEY, gaussian(0.0, 1.0), (4, 3), sigmas=(80.0,))
    again = consistency.multistep_sample(
        KEY, lambda x, s: jnp.where(s[:, None] > 1, gaussian(0.0, 1.0)(x, s), x), (4, 3), sigmas=(80.0, 0.002)
    )
    np.testing.assert_allclose(once, again, rtol=2e-5)


def test_sample_depends_on_its_index_alone():
    few = consistency.multistep_sample(KEY, gaussian(0.0, 1.0), (3, 2, 2), sigmas=(80.0, 1.0))
    many = consistency.multistep_sample(KEY, gaussian(0.0, 1.0), (10, 2, 2), sigmas=(80.0, 1.0))
    np.testing.assert_allclose(few, many[:3], rtol=1e-6)


def test_compiled_and_traced_levels():
    levels = jnp.array([80.0, 2.0])
    eager = consistency.multistep_sample(KEY, gaussian(0.0, 1.0), (3, 2), sigmas=levels)
    compiled = jax.jit(lambda s: consistency.multistep_sample(KEY, gaussian(0.0, 1.0), (3, 2), sigmas=s))(levels)
    np.testing.assert_allclose(eager, compiled, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"sigmas": ()}, "sigmas"),
        ({"sigmas": (1.0, 2.0)}, "decrease"),
        ({"sigmas": (80.0, 0.001)}, "sigmas"),
        ({"sigmas": 80.0}, "sigmas"),
        ({"sigma_min": -1.0}, "sigma_min"),
        ({"shape": ()}, "shape"),
    ],
)
def test_bad_input(arguments, match):
    arguments = {"shape": (2, 2), **arguments}
    with pytest.raises(ValueError, match=match):
        consistency.multistep_sample(KEY, gaussian(0.0, 1.0), **arguments)


@pytest.mark.parametrize("sigma_min", [0.002, 0.005, 0.01])
def test_a_float32_grid_may_end_at_sigma_min(sigma_min):
    grid = consistency.karras_levels(4, sigma_min=sigma_min)[::-1]
    x = consistency.multistep_sample(KEY, gaussian(0.0, 1.0), (2, 3), sigmas=grid, sigma_min=sigma_min)
    assert bool(jnp.all(jnp.isfinite(x)))
