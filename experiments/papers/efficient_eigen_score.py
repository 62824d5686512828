"""Efficient EigenScore: the stochastic Chebyshev estimate against the exact score, in value, order and time."""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax import Array

from mlfuncs import uncertainty

VECTORISED = False  # it takes the time


def run(config: ml_collections.ConfigDict, key: Array) -> dict[str, Any]:
    """Matrices of one size with spectra that fall at different rates, scored both ways."""
    exact: list[float] = []
    estimates: dict[int, list[float]] = {terms: [] for terms in config.terms}
    seconds: dict[Any, list[float]] = {"exact": [], **{terms: [] for terms in config.terms}}
    for index in range(config.matrices):
        matrix_key, probe_key = jax.random.split(jax.random.fold_in(key, index))
        embeddings = decaying(
            matrix_key, generations=config.generations, features=config.features, decays=config.decays, top=config.top
        )
        exact.append(_timed(seconds["exact"], lambda z: _exact(z, alpha=config.alpha), embeddings))
        for terms in config.terms:
            estimate = functools.partial(_estimate, num_probes=config.probes, num_terms=terms, alpha=config.alpha)
            estimates[terms].append(_timed(seconds[terms], estimate, probe_key, embeddings))
    # The first call of each compiled.
    median = {name: float(np.median(taken[1:] or taken)) for name, taken in seconds.items()}
    results: dict[str, Any] = {"score_deviation": float(np.std(exact)), "exact_milliseconds": 1e3 * median["exact"]}
    for terms in config.terms:
        results[f"error_{terms}"] = float(np.mean(np.abs(np.subtract(estimates[terms], exact))))
        results[f"rank_correlation_{terms}"] = rank_correlation(np.array(estimates[terms]), np.array(exact))
        results[f"speed_{terms}"] = median["exact"] / median[terms]
    return results


_exact = jax.jit(uncertainty.eigen_score)
_estimate = jax.jit(uncertainty.efficient_eigen_score, static_argnames=("num_probes", "num_terms"))


def _timed(seconds: list[float], function: Callable[..., Array], *args: Array) -> float:
    begin = time.perf_counter()
    value = float(function(*args))  # waits for it
    seconds.append(time.perf_counter() - begin)
    return value


@functools.partial(jax.jit, static_argnames=("generations", "features", "decays", "top"))
def decaying(key: Array, *, generations: int, features: int, decays: tuple[float, float], top: float) -> Array:
    """Embeddings [K, D] whose i-th direction varies as i^-r, r uniform in `decays`, with largest eigenvalue about `top`."""
    decay_key, value_key = jax.random.split(key)
    decay = jax.random.uniform(decay_key, (), minval=decays[0], maxval=decays[1])
    scale = jnp.arange(1.0, features + 1) ** (-decay / 2)
    rows = jax.random.normal(value_key, (generations, features)) * scale

    def power(v: Array, _: None) -> tuple[Array, None]:
        v = rows @ (rows.T @ v)
        return v / jnp.linalg.norm(v), None

    v, _ = jax.lax.scan(power, jnp.ones(generations), None, length=30)
    largest = jnp.sum((rows.T @ v) ** 2) / jnp.sum(v**2)
    return rows * jnp.sqrt(top / largest)


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's, of [N] values without ties."""
    one, other = (np.argsort(np.argsort(values)).astype(float) for values in (first, second))
    return float(np.corrcoef(one, other)[0, 1])
