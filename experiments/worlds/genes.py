"""Gene expression with dropouts: a linear network over a random graph, cells drawn from it, and what the assay misses."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import ndtri
from jax.typing import ArrayLike

from mlfuncs import causal

MECHANISMS = ("random", "truncated", "logistic")


class Network(NamedTuple):
    """Linear structural equations z_j = sum_i weights[i, j] z_i + e_j with normal e_j."""

    weights: Array  # [d, d], of an acyclic graph
    noise_mean: Array  # [d]
    noise_std: Array  # [d]

    @property
    def adjacency(self) -> Array:
        """Bool [d, d], symmetric: which genes are linked."""
        return (self.weights != 0) | (self.weights != 0).T

    @property
    def _total(self) -> Array:
        """[d, d]: total effect of e_i on z_j."""
        identity = jnp.eye(len(self.noise_std))
        return jnp.linalg.solve(identity - self.weights, identity)

    @property
    def mean(self) -> Array:
        """[d] expectations of the genes."""
        return self.noise_mean @ self._total

    @property
    def std(self) -> Array:
        """[d] standard deviations of the genes."""
        return jnp.sqrt(self.noise_std**2 @ self._total**2)

    def cells(self, key: Array, count: int) -> Array:
        """[count, d] values of independent cells."""
        noise = self.noise_mean + self.noise_std * jax.random.normal(key, (count, len(self.noise_std)))
        return jnp.matmul(noise, self._total, precision=jax.lax.Precision.HIGHEST)


def random_network(key: Array, genes: int, edges: int) -> Network:
    """A network over a uniform random order of the genes and `edges` uniform pairs of them.

    Weights of either sign and size in [0.25, 1], noise of mean in [-1, 1] and standard deviation in [1, 2], all uniform:
    the simulation of arXiv:2403.15500.
    """
    pairs = genes * (genes - 1) // 2
    if not 0 <= edges <= pairs:
        raise ValueError(f"edges must be in [0, {pairs}] for {genes} genes, got {edges}")
    order_key, pair_key, size_key, sign_key, mean_key, std_key = jax.random.split(key, 6)
    chosen = jax.random.permutation(pair_key, pairs) < edges
    sizes = jax.random.uniform(size_key, (pairs,), minval=0.25, maxval=1.0) * jax.random.rademacher(sign_key, (pairs,))
    upper = jnp.zeros((genes, genes)).at[jnp.triu_indices(genes, 1)].set(jnp.where(chosen, sizes, 0.0))
    order = jax.random.permutation(order_key, genes)
    return Network(
        weights=upper[order][:, order],
        noise_mean=jax.random.uniform(mean_key, (genes,), minval=-1.0, maxval=1.0),
        noise_std=jax.random.uniform(std_key, (genes,), minval=1.0, maxval=2.0),
    )


def dropout_probability(mechanism: str, standardised: Array, rate: ArrayLike, *, slope: ArrayLike = 2.0) -> Array:
    """Probability [n, d] that a value is missed; about `rate` on average for values that are standard normal.

    Args:
      mechanism: "random", whatever the value; "truncated", all below the quantile `rate`; "logistic", the lower the
        likelier.
      standardised: [n, d] values in standard deviations from the mean of their gene.
      rate: share of missed values in (0, 1), a number or [d].
      slope: of the logistic curve, > 0.
    """
    rate = jnp.asarray(rate)
    if mechanism == "random":
        return jnp.broadcast_to(rate, standardised.shape)
    if mechanism == "truncated":
        return (standardised < ndtri(rate)).astype(jnp.float32)
    if mechanism == "logistic":
        # The logistic curve as a normal one of variance 8 / pi, whose mean over a normal value is known.
        offset = -ndtri(rate) * jnp.sqrt(8 / jnp.pi + slope**2)
        return causal.logistic_dropout_probability(standardised, slope, offset)
    raise ValueError(f"mechanism must be one of {', '.join(MECHANISMS)}, got {mechanism!r}")
