"""Gene networks from cells with dropouts: deleting cells test by test, against keeping the zeros or imputing them."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax import Array

from experiments.worlds import genes
from mlfuncs import causal

VECTORISED = False  # the search for the graph runs on the host
TINY = 1e-30  # in place of a zero: no longer one that is deleted, and the same to every sum
METHODS = ("oracle", "conditioning", "all", "keep", "mean")
SEARCHES = ("pc", "ges")


def run(config: ml_collections.ConfigDict, key: Array) -> dict[str, Any]:
    """Graphs of one random network from growing numbers of cells, and false alarms of the test on a chain."""
    data_key, chain_key = jax.random.split(key)
    mechanism, method = genes.MECHANISMS.index(config.mechanism), METHODS.index(config.method)
    sizes = (config.genes, config.edges, max(config.cells))
    edges, true, observed = _draw(data_key, mechanism, jnp.asarray(config.rates), config.slope, sizes=sizes)
    results: dict[str, Any] = {}
    if config.search == "pc":  # the search that tests
        chain = {name: jnp.asarray(config.chain[name]) for name in ("coefficients", "noise_mean", "noise_std", "rate")}
        size = (config.chain.repeats, config.chain.cells)
        results["false_alarms"] = float(
            _false_alarms(chain_key, mechanism, method, config.slope, config.alpha, chain, size)
        )
    truth = causal.equivalence_class(edges)
    for count in config.cells:  # the first so many: more cells are added to the same ones
        data = np.asarray(_seen(method, true[:count], observed[:count]))
        found, told = search(config, data)
        results[f"f1_n{count}"] = f1((found + found.T) > 0, (truth + truth.T) > 0)
        results[f"distance_n{count}"] = hamming_distance(found, truth)
        results |= {f"{name}_n{count}": value for name, value in told.items()}
    return results


def search(config: ml_collections.ConfigDict, data: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
    """A graph with directions where they are implied, int [d, d], and what else the search tells."""
    delete = "all" if config.method == "all" else "conditioning"
    if config.search == "ges":
        gains = partial(causal.zero_deleted_score_changes, data, penalty=config.penalty, delete=delete)
        return causal.greedy_equivalence_search(gains, config.genes), {}
    if config.search != "pc":
        raise ValueError(f"search must be one of {', '.join(SEARCHES)}, got {config.search!r}")
    untestable: list[np.ndarray] = []

    def p_value(i: Any, j: Any, given: Any) -> np.ndarray:
        p = causal.zero_deleted_p_values(data, i, j, given, delete=delete)
        untestable.append(p == 1)
        return p

    skeleton, separating = causal.pc_skeleton(
        p_value, config.genes, alpha=config.alpha, max_conditioning=config.max_conditioning
    )
    share = float(np.mean(np.concatenate(untestable)))
    return causal.orient_skeleton(skeleton, separating), {"untestable": share}


def seen(method: str, true: Array, observed: Array) -> Array:
    """The data [n, d] that a method looks at, with exact zeros only where it is to delete."""
    if method == "oracle":
        return true
    if method == "keep":
        return jnp.where(observed == 0, TINY, observed)
    if method == "mean":
        there = observed != 0
        mean = jnp.sum(observed, axis=0) / jnp.maximum(jnp.sum(there, axis=0), 1)
        return jnp.where(there, observed, jnp.where(mean == 0, TINY, mean))
    if method in ("conditioning", "all"):
        return observed
    raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")


def f1(found: np.ndarray, truth: np.ndarray) -> float:
    """F1 score of the edges of a skeleton, both bool [d, d] and symmetric; 1 where both have none."""
    total = found.sum() + truth.sum()
    return float(2 * (found & truth).sum() / total) if total else 1.0


def hamming_distance(found: np.ndarray, truth: np.ndarray) -> float:
    """Number of pairs of variables between which two graphs differ: in the edge, or in its direction."""
    differ = found != truth
    return float(np.triu(differ | differ.T).sum())


# Mechanisms and methods are numbers here, so that one compiled program serves all arms.


@jax.jit
def _seen(method: Array, true: Array, observed: Array) -> Array:
    return jax.lax.switch(method, [partial(seen, name) for name in METHODS], true, observed)


def _drop(key: Array, mechanism: Array, true: Array, standardised: Array, rate: Array, slope: Array) -> Array:
    probabilities = [partial(genes.dropout_probability, name, slope=slope) for name in genes.MECHANISMS]
    return causal.sample_dropout(key, true, jax.lax.switch(mechanism, probabilities, standardised, rate))


@partial(jax.jit, static_argnames="sizes")
def _draw(
    key: Array, mechanism: Array, rates: Array, slope: Array, *, sizes: tuple[int, int, int]
) -> tuple[Array, Array, Array]:
    """Arrows of a network, its cells and what is observed of them."""
    count, edges, cells = sizes
    network_key, rate_key, cell_key, dropout_key = jax.random.split(key, 4)
    network = genes.random_network(network_key, count, edges)
    rate = jax.random.uniform(rate_key, (count,), minval=rates[0], maxval=rates[1])
    true = network.cells(cell_key, cells)
    observed = _drop(dropout_key, mechanism, true, (true - network.mean) / network.std, rate, slope)
    return network.weights != 0, true, observed


@partial(jax.jit, static_argnums=6)
def _false_alarms(
    key: Array, mechanism: Array, method: Array, slope: Array, alpha: Array, chain: dict[str, Array], size: Any
) -> Array:
    """Share of data sets from a chain a -> b -> c in which a and c are called dependent given b; size: sets, cells."""
    weights = jnp.zeros((3, 3)).at[0, 1].set(chain["coefficients"][0]).at[1, 2].set(chain["coefficients"][1])
    network = genes.Network(weights, chain["noise_mean"], chain["noise_std"])
    given = jnp.array([False, True, False])
    tests = [partial(causal.zero_deleted_independence_test, delete=delete) for delete in ("conditioning", "all")]

    def rejects(key: Array) -> Array:
        cell_key, dropout_key = jax.random.split(key)
        true = network.cells(cell_key, size[1])
        # The chain's values vary by one already, and dropout turns on them as they are, b's shift included.
        data = _seen(method, true, _drop(dropout_key, mechanism, true, true, chain["rate"], slope))
        return jax.lax.switch((method == METHODS.index("all")).astype(int), tests, data, 0, 2, given) < alpha

    return jnp.mean(jax.lax.map(rejects, jax.random.split(key, size[0]), batch_size=10))
