"""Layers that share weights, what the halting head sees, and the rules of exit on cases by hand."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from configs.papers import deterministic_quantile_exit as configs
from experiments.papers import deterministic_quantile_exit as study
from tests.experiments.papers.smoke import smoke


def settings(**changed):
    config = ml_collections.ConfigDict(configs.get_config().settings)
    config.update({"width": 8, "heads": 2, "layers": 3, "draws": 400} | changed)
    return config


def test_all_layers_have_one_block_and_one_head():
    config = settings()
    params = study.initial(config, jax.random.key(0))
    assert {"embed", "places", "block_0", "norm", "last"} == set(params["encoder"])
    assert [layer["kernel"].shape for layer in params["halting"]["hidden"]] == [(16, 16)] * 2
    x = jax.random.normal(jax.random.key(1), (5, 64))
    logits, halting = study.layers(config, params, x)
    assert logits.shape == (3, 5, 10)
    assert halting.shape == (5, 3)
    fewer, _ = study.layers(settings(layers=2), params, x)
    np.testing.assert_allclose(fewer, logits[:2], rtol=1e-4, atol=1e-5)
    assert not np.allclose(logits[0], logits[1], atol=1e-3)


def test_the_halting_head_sees_the_state_before_where_it_is_told_to():
    config = settings()
    params = study.initial(config, jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (5, 64))
    both, one = (study.layers(settings(see_previous=see), params, x)[1] for see in (True, False))
    np.testing.assert_allclose(both[:, 0], one[:, 0], rtol=1e-5)  # before the first layer there is none
    assert not np.allclose(both[:, 1:], one[:, 1:], atol=1e-4)


def test_every_rule_by_hand():
    # Layers predict 1, 2 and 2 for both examples, of class 2 and 1.
    logits = jnp.tile(jax.nn.one_hot(jnp.array([1, 2, 2]), 3)[:, None] * 50, (1, 2, 1))
    halting = jnp.array([[0.4, 0.5, 0.5], [0.6, 0.25, 0.5]])
    config = settings(patience=1)
    found = study.measured(config, jax.random.key(0), logits, halting, jnp.array([2, 1]))
    # Left by then: 0.4, 0.7, 0.85 and 0.6, 0.7, 0.85. At 0.7 either may be a layer later, by rounding.
    np.testing.assert_allclose(found["quantile_0.3_layers"], 1.0)
    np.testing.assert_allclose(found["quantile_0.5_layers"], 1.5)
    np.testing.assert_allclose(found["quantile_0.5_accuracy"], 1.0)
    assert 2.0 <= float(found["quantile_0.7_layers"]) <= 3.0
    np.testing.assert_allclose(found["patience_layers"], 3.0)
    np.testing.assert_allclose(found["patience_accuracy"], 0.5)
    np.testing.assert_allclose([found["first_layer_accuracy"], found["last_layer_accuracy"]], 0.5)
    np.testing.assert_allclose(found["expected_accuracy"], 1.0)  # 0.6 for class 2, and 0.6 for class 1
    # Right by chance: 0.6 and 0.6; of 800 draws the mean is within 4 standard deviations, 0.07.
    np.testing.assert_allclose(found["sampled_accuracy"], 0.6, atol=0.07)
    # Exits 0.4, 0.3, 0.3 and 0.6, 0.1, 0.3 have variances 0.69 and 0.81.
    np.testing.assert_allclose(found["sampled_exit_variance"], 0.75, atol=0.1)


def test_expected_probabilities_weigh_every_layer_once():
    logits = jnp.log(jnp.array([[[0.9, 0.1]], [[0.5, 0.5]], [[0.2, 0.8]]]))
    found = study.expected_probabilities(logits, jnp.array([[0.4, 0.5, 0.1]]))
    first = 0.4 * 0.9 + 0.3 * 0.5 + 0.3 * 0.2
    np.testing.assert_allclose(found, [[first, 1 - first]], rtol=1e-5)


def test_smoke(tmp_path):
    smoke("deterministic_quantile_exit", tmp_path)
