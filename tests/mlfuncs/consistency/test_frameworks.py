"""A loss takes a gradient step through a model of any framework: a model is just a function here."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from mlfuncs import consistency

WIDTH, STEPS = 32, 150
DATA = jnp.tile(jnp.array([[0.5, -0.5], [-0.5, 0.5]]), (16, 1))


def features(x, c_noise):
    return jnp.concatenate([x, c_noise[:, None]], axis=-1)


def train(params, apply):
    """Some steps of improved consistency training; the losses of fixed draws before and after."""
    optimizer = optax.adam(2e-2)
    grid = consistency.karras_levels(11)
    probabilities = consistency.lognormal_level_probabilities(grid)

    def loss(params, key):
        noise_key, level_key = jax.random.split(key)
        level = consistency.sample_levels(level_key, probabilities, (len(DATA),))
        function = consistency.consistency_function(lambda x, c_noise: apply(params, x, c_noise))
        noise = jax.random.normal(noise_key, DATA.shape)
        return consistency.consistency_training_loss(function, DATA, noise, grid[level], grid[level + 1]).mean()

    @jax.jit
    def step(params, state, key):
        updates, state = optimizer.update(jax.grad(loss)(params, key), state, params)
        return optax.apply_updates(params, updates), state

    judge = jax.jit(
        lambda params: jnp.mean(jax.vmap(lambda k: loss(params, k))(jax.random.split(jax.random.key(9), 16)))
    )
    before, state = judge(params), optimizer.init(params)
    for key in jax.random.split(jax.random.key(1), STEPS):
        params, state = step(params, state, key)
    return float(before), float(judge(params))


def check(before, after):
    assert np.isfinite(after)
    assert after < 0.9 * before


def test_plain_jax():
    keys = jax.random.split(jax.random.key(0), 2)
    params = {"in": jax.random.normal(keys[0], (3, WIDTH)) / 2, "out": jax.random.normal(keys[1], (WIDTH, 2)) / 4}
    check(*train(params, lambda p, x, c: jax.nn.silu(features(x, c) @ p["in"]) @ p["out"]))


def test_flax_nnx():
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(3, WIDTH, rngs=rngs)
            self.last = nnx.Linear(WIDTH, 2, rngs=rngs)

        def __call__(self, x, c_noise):
            return self.last(jax.nn.silu(self.first(features(x, c_noise))))

    graph, params = nnx.split(Network(nnx.Rngs(0)))
    check(*train(params, lambda p, x, c: nnx.merge(graph, p)(x, c)))


def test_flax_linen():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x, c_noise):
            return nn.Dense(2)(jax.nn.silu(nn.Dense(WIDTH)(features(x, c_noise))))

    network = Network()
    check(*train(network.init(jax.random.key(0), DATA, jnp.ones(len(DATA))), network.apply))


def test_equinox():
    network = eqx.nn.MLP(3, 2, WIDTH, 1, activation=jax.nn.silu, key=jax.random.key(0))
    params, static = eqx.partition(network, eqx.is_array)
    check(*train(params, lambda p, x, c: jax.vmap(eqx.combine(p, static))(features(x, c))))
