"""Equal cost of the networks, and what may not leak through their masks."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.papers import sparse_iso_flop as paper
from experiments.papers import sparse_iso_flop as study
from mlfuncs import sparsity
from tests.experiments.papers.smoke import smoke

OPTIMIZER = optax.chain(optax.add_decayed_weights(0.1), optax.trace(0.9), optax.scale(-0.5))


@pytest.mark.parametrize(("level", "width"), [(0.0, 48), (0.5, 67), (0.75, 96), (0.9, 151)])
def test_wide_sparse_networks_cost_what_the_narrow_dense_one_does(level, width):
    config = paper.get_config().settings
    config.sparsity, config.masks = level, "static"
    assert width == sparsity.iso_flop_width(family="wide", in_features=48, out_features=48, sparsity=level)
    flops = study.network_flops(study.kernel_shapes(width), study.layer_sparsities(config, width))
    assert abs(flops / (64 * 48 + 48 * 48 + 48 * 10) - 1) <= 0.05


def test_dense_outer_layers_cost_more():
    config = paper.get_config().settings
    config.sparsity, config.masks, config.sparse_outer_layers = 0.9, "static", False
    flops = study.network_flops(study.kernel_shapes(151), study.layer_sparsities(config, 151))
    assert flops == 64 * 151 + round(0.1 * 151**2) + 151 * 10


def one_layer(weights, gradients, mask):
    params = {"layer": {"kernel": jnp.asarray(weights), "bias": jnp.zeros(1)}}
    dense = {"layer": {"kernel": jnp.asarray(gradients), "bias": jnp.ones(1)}}
    return params, dense, {"layer": jnp.asarray(mask)}


def test_a_step_moves_active_weights_and_biases_alone():
    params, gradients, masks = one_layer([[2.0], [0.0]], [[1.0], [5.0]], [[True], [False]])
    state = OPTIMIZER.init(params)
    for _ in range(2):
        params, state = study.step(params, state, masks, gradients, OPTIMIZER)
    first = 2 - 0.5 * 1.2
    second = first - 0.5 * (0.9 * 1.2 + 1 + 0.1 * first)
    np.testing.assert_allclose(params["layer"]["kernel"], [[second], [0.0]], rtol=1e-6)
    assert params["layer"]["bias"][0] < 0
    assert study.outside(params, state, masks) == 0


def test_what_rigl_drops_or_grows_starts_from_zero():
    weights = [[4.0], [0.1], [3.0], [0.2], [0.0], [0.0], [0.0]]
    # Of four weights two go: the second and the fourth. Grown: the last one, and the second again.
    gradients = [[9.0], [-5.0], [9.0], [0.0], [1.0], [2.0], [-8.0]]
    params, gradients, masks = one_layer(weights, gradients, [[True]] * 4 + [[False]] * 3)
    state = OPTIMIZER.init(params)
    state = (state[0], state[1]._replace(trace={"layer": {"kernel": jnp.ones((7, 1)), "bias": jnp.ones(1)}}), state[2])
    params, state, masks = study.rewire(params, state, masks, gradients, 0.5)
    np.testing.assert_array_equal(masks["layer"][:, 0], [True, True, True, False, False, False, True])
    np.testing.assert_array_equal(params["layer"]["kernel"][:, 0], [4, 0, 3, 0, 0, 0, 0])
    np.testing.assert_array_equal(state[1].trace["layer"]["kernel"][:, 0], [1, 0, 1, 0, 0, 0, 0])
    assert state[1].trace["layer"]["bias"] == 1


def test_outside_sees_weights_and_momenta():
    params, _, masks = one_layer([[2.0], [0.0]], [[0.0], [0.0]], [[True], [False]])
    state = OPTIMIZER.init(params)
    assert study.outside(params, state, masks) == 0
    leaky = {"layer": {**params["layer"], "kernel": jnp.array([[2.0], [-0.5]])}}
    assert study.outside(leaky, state, masks) == 0.5
    state = (state[0], state[1]._replace(trace=leaky), state[2])
    assert study.outside(params, state, masks) == 0.5


def test_a_corner_keeps_the_scale_of_its_fan_in():
    layer = {"kernel": jnp.ones((8, 4)), "bias": jnp.arange(4.0)}
    part = study.corner(layer, (2, 3))
    np.testing.assert_array_equal(part["kernel"], 2 * np.ones((2, 3)))
    np.testing.assert_array_equal(part["bias"], [0, 1, 2])


def test_smoke(tmp_path):
    smoke("sparse_iso_flop", tmp_path)
