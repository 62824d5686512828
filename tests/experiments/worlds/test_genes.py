"""Gene networks: random graphs as asked for, cells that obey the equations, dropout by each mechanism at its rate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.worlds import genes

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def networks():
    """200 networks of 8 genes and 12 edges."""
    return jax.jit(jax.vmap(lambda key: genes.random_network(key, 8, 12)))(jax.random.split(KEY, 200))


def test_networks_are_acyclic_with_as_many_edges_as_asked(networks):
    weights = np.asarray(networks.weights)
    linked = weights != 0
    np.testing.assert_array_equal(linked.sum((1, 2)), 12)
    assert not np.linalg.matrix_power(linked.astype(int), 8).any()  # no path of 8 steps among 8 genes: no cycle
    assert np.all((np.abs(weights[linked]) >= 0.25) & (np.abs(weights[linked]) <= 1))
    assert np.all((np.abs(networks.noise_mean) <= 1) & (networks.noise_std >= 1) & (networks.noise_std <= 2))
    with pytest.raises(ValueError, match="edges"):
        genes.random_network(KEY, 4, 7)


def test_every_pair_in_either_direction_and_sign_is_as_likely(networks):
    weights = np.asarray(networks.weights)
    pairs = ~np.eye(8, dtype=bool)
    # An edge from i to j in 12 / 56 of the networks.
    share, expected = (weights != 0).mean(0)[pairs], 12 / 56
    assert np.all(np.abs(share - expected) <= 5 * np.sqrt(expected * (1 - expected) / 200))
    assert abs((weights[weights != 0] > 0).mean() - 0.5) <= 5 * 0.5 / np.sqrt(200 * 12)


def test_cells_obey_the_equations():
    """What the parents leave of each gene is noise of the network's mean and spread, uncorrelated between genes."""
    count = 1 << 15

    @jax.jit
    def drawn(network_key, key):
        network = genes.random_network(network_key, 6, 9)
        return network, network.mean, network.std, network.cells(key, count)

    network, mean, spread, cells = (jax.tree.map(np.asarray, part) for part in drawn(KEY, jax.random.key(1)))
    cells = cells.astype(np.float64)
    noise = cells - cells @ np.asarray(network.weights, np.float64)
    std = np.asarray(network.noise_std)
    assert np.all(np.abs(noise.mean(0) - network.noise_mean) <= 5 * std / np.sqrt(count))
    np.testing.assert_allclose(noise.std(0), std, rtol=5 / np.sqrt(2 * count))
    correlation = np.corrcoef(noise.T) - np.eye(6)
    assert np.abs(correlation).max() <= 5 / np.sqrt(count)
    np.testing.assert_allclose((cells.mean(0) - mean) / spread, 0, atol=5 / np.sqrt(count))
    np.testing.assert_allclose(cells.std(0), spread, rtol=5 / np.sqrt(2 * count))


def test_a_chain_by_hand():
    weights = jnp.zeros((3, 3)).at[0, 1].set(2.0).at[1, 2].set(-3.0)
    network = genes.Network(weights, jnp.array([1.0, 0.5, 0.0]), jnp.array([1.0, 2.0, 0.5]))
    np.testing.assert_array_equal(network.adjacency, np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], bool))
    np.testing.assert_allclose(network.mean, [1.0, 2.5, -7.5], rtol=1e-6)
    np.testing.assert_allclose(network.std, np.sqrt([1.0, 8.0, 72.25]), rtol=1e-6)


@pytest.mark.parametrize("mechanism", genes.MECHANISMS)
def test_dropout_happens_at_its_rate(mechanism):
    z = jax.random.normal(KEY, (1 << 16, 3))
    rate = jnp.array([0.4, 0.5, 0.7])
    probability = np.asarray(genes.dropout_probability(mechanism, z, rate))
    # The logistic curve is fitted to a normal one: 0.02 off at most.
    np.testing.assert_allclose(probability.mean(0), rate, atol=0.02 if mechanism == "logistic" else 5 * 0.5 / 2**8)


def test_what_each_mechanism_looks_at():
    z = jnp.array([[-1.0, 1.0], [-0.1, 0.1]])
    np.testing.assert_allclose(genes.dropout_probability("random", z, 0.3), np.full((2, 2), 0.3), rtol=1e-6)
    np.testing.assert_array_equal(genes.dropout_probability("truncated", z, 0.5), [[1, 0], [1, 0]])
    # At rate one half the curve has no offset.
    expected = 1 / (1 + np.exp(3 * np.asarray(z)))
    np.testing.assert_allclose(genes.dropout_probability("logistic", z, 0.5, slope=3.0), expected, rtol=1e-5)
    with pytest.raises(ValueError, match="mechanism"):
        genes.dropout_probability("biological", z, 0.5)
