"""Latent consistency training with impulsive outliers: the robust recipe, its parts, and the plain one."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax import Array

from experiments import models
from experiments.papers import training
from mlfuncs import consistency, transport

VECTORISED = False


def run(config: ml_collections.ConfigDict, key: Array) -> dict[str, float]:
    """Trains `config.run`, with outliers of its own for every seed, and measures samples against clean latents."""
    train = ml_collections.ConfigDict(config.run.to_dict())
    train.data.outlier_seed = int(jax.random.key_data(key)[-1])
    found = training.engine_run(train, key, config.cache_dir)
    measured = {name: value for name, value in found.last.items() if name.startswith("frechet_distance_")}
    if config.draws:
        plain, coupled = (_gradient_variance(config, found.run, key, couple) for couple in (False, True))
        measured |= {"gradient_variance": plain, "gradient_variance_coupled": coupled}
    return measured


def _gradient_variance(config: ml_collections.ConfigDict, run: Any, key: Array, couple: bool) -> float:
    """Variance over the noise of the gradient of each example's loss, summed over parameters, averaged over examples."""
    batch_key, level_key, noise_key = jax.random.split(key, 3)
    rows = np.asarray(jax.random.permutation(batch_key, len(run.world.train)))[: config.batch]
    data = run.world.to_model(jnp.asarray(run.world.train.read(rows)["image"]))
    grid = consistency.karras_levels(config.levels)
    probabilities = consistency.lognormal_level_probabilities(grid)
    level = consistency.sample_levels(level_key, probabilities, (config.batch,))

    model = models.build(run.config.model, example_shape=run.world.example_shape, num_classes=run.world.num_classes)

    def loss(params: Any, x: Array, z: Array, level: Array) -> Array:
        f = consistency.consistency_function(lambda x, c_noise: model.apply(params, x, c_noise))
        low, high = grid[level][None], grid[level + 1][None]
        return consistency.consistency_training_loss(f, x[None], z[None], low, high)[0]

    def step(sums: Any, key: Array) -> Any:
        noise = jax.random.normal(key, data.shape)
        if couple:
            noise = noise[transport.minibatch_coupling(data, noise)]
        gradients = jax.vmap(jax.grad(loss), in_axes=(None, 0, 0, 0))(run.state.average, data, noise, level)
        # Sums of g and of |g|^2: variances need no more, and gradients of all draws would not fit.
        first = jax.tree.map(jnp.add, sums[0], gradients)
        return (first, sums[1] + sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradients))), None

    zeros = jax.tree.map(lambda leaf: jnp.zeros((config.batch, *leaf.shape)), run.state.average)
    keys = jax.random.split(noise_key, config.draws)
    (first, squares), _ = jax.jit(lambda keys: jax.lax.scan(step, (zeros, jnp.float32(0)), keys))(keys)
    of_mean = sum(float(jnp.sum((leaf / config.draws) ** 2)) for leaf in jax.tree.leaves(first))
    return (float(squares) / config.draws - of_mean) * config.draws / (config.draws - 1) / config.batch
