"""The adapters a study starts from, what it measures of them, and that merging them is right."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.papers import adaptive_low_rank, training
from tests.experiments.papers.smoke import smoke


def network():
    model = training.perceptron((6, 5))
    return model, model.init(jax.random.key(0))


def test_new_adapters_change_nothing():
    model, params = network()
    factors = adaptive_low_rank.new_factors(jax.random.key(1), params, 3)
    for name, layer in params.items():
        inputs, outputs = layer["kernel"].shape
        assert factors[name]["a"].shape == (3, inputs)
        assert factors[name]["b"].shape == (outputs, 3)
        largest = np.abs(factors[name]["a"]).max() * inputs**0.5
        assert 0.5 < largest <= 1
        assert factors[name]["a"].min() < 0 < factors[name]["a"].max()
    assert adaptive_low_rank.mean_norm(factors) == 0
    x = jax.random.uniform(jax.random.key(2), (4, 64))
    merged = adaptive_low_rank.merged(params, factors)
    np.testing.assert_array_equal(model.apply(merged, x)["logits"], model.apply(params, x)["logits"])


def test_norm_and_merged_kernels_are_those_of_the_product():
    _, params = network()
    factors = adaptive_low_rank.new_factors(jax.random.key(1), params, 3)
    factors = jax.tree.map(lambda f: f + jax.random.normal(jax.random.key(3), f.shape), factors)
    products = {name: np.asarray(f["b"]) @ np.asarray(f["a"]) for name, f in factors.items()}
    expected = np.mean([np.linalg.norm(product) for product in products.values()])
    np.testing.assert_allclose(adaptive_low_rank.mean_norm(factors), expected, rtol=1e-5)
    for name, layer in adaptive_low_rank.merged(params, factors).items():
        np.testing.assert_allclose(layer["kernel"], params[name]["kernel"] + products[name].T, rtol=1e-5, atol=1e-5)


def test_four_quarter_turns_are_none():
    x = jnp.arange(128.0).reshape(2, 64)
    np.testing.assert_array_equal(adaptive_low_rank.turned(x, 4), x)
    corner = jnp.zeros((1, 8, 8)).at[0, 0, 7].set(1.0)  # top right goes to top left
    assert adaptive_low_rank.turned(corner.reshape(1, 64), 1).reshape(8, 8)[0, 0] == 1


def test_smoke(tmp_path):
    smoke("adaptive_low_rank", tmp_path)
