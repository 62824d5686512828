import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from experiments.papers import teacher_hacking
from tests.experiments.papers.smoke import smoke


def test_smoke(tmp_path):
    arms = smoke("teacher_hacking", tmp_path)
    for records in arms.values():
        assert records["0"]["proxy"] >= 0
        assert records["0"]["golden_ratio"] >= 1


def test_all_contexts_are_there_once():
    contexts = np.asarray(teacher_hacking.one_hot(3, 2))
    assert contexts.shape == (9, 6)
    np.testing.assert_array_equal(contexts.reshape(9, 2, 3).sum(-1), 1)
    assert len(np.unique(contexts, axis=0)) == 9


def test_the_golden_distance_at_a_level_of_the_proxy():
    proxy, golden = jnp.array([0.4, 0.2, 0.1, 0.15]), jnp.array([1.0, 0.5, 0.6, 0.9])
    at = lambda level: float(teacher_hacking.at_level(proxy, golden, level))  # noqa: E731
    np.testing.assert_allclose([at(0.3), at(0.2), at(0.125)], [0.75, 0.5, 0.575], rtol=1e-6)
    assert np.isnan([at(0.05), at(0.5)]).all()


def test_fixed_contexts_are_few_and_fresh_ones_are_any():
    def drawn(fraction):
        config = ml_collections.ConfigDict({"steps": 200, "batch": 8, "stored": 10, "fresh_fraction": fraction})
        return np.asarray(teacher_hacking.sources(config, jax.random.key(0), 64))

    fixed, half, fresh = (drawn(fraction) for fraction in (0.0, 0.5, 1.0))
    assert len(np.unique(fixed)) == 10
    # No context of 64 is missed in 1,600 fair draws: with probability above 1 - 1e-9.
    assert len(np.unique(fresh)) == 64
    # Of 1,600 examples 800 are fresh: farther than 120 from it with probability below 1e-8.
    outside = np.isin(half, np.unique(fixed), invert=True).mean()
    assert abs(1600 * outside - 800 * 54 / 64) < 120
