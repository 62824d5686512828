"""Diffusion in the EDM form: a denoiser trained on lognormal noise levels, sampled with Heun steps."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax import Array

from experiments import models
from experiments.engine import randomness
from experiments.engine.errors import UserError
from experiments.engine.task import Batch, Panels, Task
from experiments.tasks import common
from experiments.tasks.common import TrainState
from experiments.worlds import Trained, World
from mlfuncs import diffusion

FIELDS = (
    *common.EVALUATION_FIELDS,
    "evaluation.steps",
    *(f"diffusion.{name}" for name in ("mean", "std", "sigma_data", "sigma_min", "sigma_max")),
)


def build(config: ml_collections.ConfigDict, world: World, trained: Trained) -> Task:
    model = models.build(config.model, example_shape=world.example_shape, num_classes=world.num_classes)
    optimizer = common.make_optimizer(config.optimizer, config.steps)
    levels, evaluation = config.diffusion, config.evaluation
    common.check(config)
    for steps in evaluation.steps:
        if steps < 1:
            raise UserError(f"config.evaluation.steps must be >= 1, got {steps}")
    common.check_best(config, (f"frechet_distance_{name}" for name in (*evaluation.steps, "floor")))
    judge = common.Judge(config, world, trained) if config.evaluate_every else None

    def init(key: Array) -> TrainState:
        return common.initial_state(model.init(key), optimizer)

    def update(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, dict[str, Array]]:
        level_keys, noise_keys, dropout_keys, flip_keys = common.step_keys(key, batch, 4)
        data = common.examples(world, batch, flip_keys)
        noise = randomness.normal(noise_keys, data.shape[1:])
        draw_level = lambda key: diffusion.sample_training_sigmas(key, (), mean=levels.mean, std=levels.std)  # noqa: E731
        sigma = jax.vmap(draw_level)(level_keys)

        def losses(params: Any, examples: Any) -> tuple[Array, dict[str, Array]]:
            data, noise, sigma, labels, keys = examples
            denoise = _denoiser(model, params, levels.sigma_data, labels, keys)
            return diffusion.edm_loss(denoise, data, noise, sigma, sigma_data=levels.sigma_data), {}

        examples = (data, noise, sigma, common.conditions(config, batch), dropout_keys)
        means, gradients = common.mean_and_gradients(losses, state.params, examples, config.accumulate)
        return common.apply_gradients(state, gradients, optimizer, config.ema_decay), means

    @jax.jit(static_argnums=(3, 4))
    def draw_block(params: Any, key: Array, first: Array, num: int, steps: int) -> Array:
        sigmas = diffusion.karras_sigmas(steps, sigma_min=levels.sigma_min, sigma_max=levels.sigma_max)
        keys = randomness.per_example_keys(key, jnp.arange(num))
        noise = sigmas[0] * randomness.normal(keys, world.example_shape)
        denoise = _denoiser(model, params, levels.sigma_data, common.sampling_labels(config, world, first, num))
        return diffusion.sample_heun(denoise, noise, sigmas)

    def draw(state: TrainState, key: Array, num: int, steps: int) -> Array:
        def block(key: Array, first: int, size: int) -> Array:
            return draw_block(state.average, key, first, size, steps)

        return common.draw_in_blocks(block, key, num, evaluation.block)

    def sample(state: TrainState, key: Array, num: int, steps: int) -> np.ndarray:
        return common.pixels(world, draw(state, key, num, steps))

    def evaluate(state: TrainState, key: Array) -> tuple[dict[str, float], dict[str, Panels]]:
        assert judge is not None
        measured = {
            f"frechet_distance_{steps}": judge.distance(partial(draw, state, key, steps=steps))
            for steps in evaluation.steps
        }
        panels = [(f"{steps} steps", sample(state, key, evaluation.pictured, steps)) for steps in evaluation.steps]
        panels.append(("real", common.real_pixels(world, evaluation.pictured)))
        return {**measured, "frechet_distance_floor": judge.floor}, {"samples": panels}

    return Task(init, update, evaluate, sample, model.axes)


def _denoiser(
    model: models.Model, params: Any, sigma_data: float, labels: Array | None, keys: Array | None = None
) -> Callable[[Array, Array], Array]:
    def network(x: Array, c_noise: Array) -> Array:
        return model.apply(params, x, c_noise, labels=labels, keys=keys)

    return lambda x, sigma: diffusion.preconditioned_denoise(network, x, sigma, sigma_data=sigma_data)


def denoiser(run: Any) -> Callable[[Array | None], Callable[[Array, Array], Array]]:
    """`labels -> denoise(x, sigma)` of a trained run."""
    model = models.build(run.config.model, example_shape=run.world.example_shape, num_classes=run.world.num_classes)
    return lambda labels: _denoiser(model, run.state.average, run.config.diffusion.sigma_data, labels)
