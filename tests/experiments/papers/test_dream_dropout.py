"""The evolution strategy finds what is best, and stays where nothing differs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.papers import dream_dropout
from tests.experiments.papers.smoke import smoke

SETTINGS = {"generations": 100, "population": 16, "deviation": 0.1, "learning_rate": 0.05}
KEY = jax.random.key(0)


def test_evolve_climbs():
    best = jnp.array([[1.0, -0.5], [0.25, 0.0]])
    found = dream_dropout.evolve(KEY, lambda key, policy: -jnp.sum((policy - best) ** 2), jnp.zeros((2, 2)), **SETTINGS)
    np.testing.assert_allclose(found, best, atol=0.1)


def test_a_generation_lives_through_the_same_chances():
    """With luck that is not shared, and outweighs all else, the search would wander."""

    def fitness(key, policy):
        return policy[0] + 1e3 * jax.random.normal(key)

    assert dream_dropout.evolve(KEY, fitness, jnp.zeros(1), **SETTINGS)[0] > 2


def test_ties_move_nothing():
    found = dream_dropout.evolve(KEY, lambda key, policy: jnp.float32(1), jnp.ones(3), **SETTINGS)
    np.testing.assert_allclose(found, 1, atol=1e-6)


def test_odd_populations_are_refused():
    with pytest.raises(ValueError, match="population must be even"):
        dream_dropout.evolve(KEY, lambda key, policy: 0.0, jnp.ones(3), **{**SETTINGS, "population": 5})


def test_smoke(tmp_path):
    smoke("dream_dropout", tmp_path)
