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
from experiments.tasks import captioning, common, conditions
from experiments.tasks.common import TrainState
from experiments.tasks.conditions import Conditions
from experiments.worlds import Trained, World
from mlfuncs import diffusion

FIELDS = (
    *common.EVALUATION_FIELDS,
    "evaluation.steps",
    *(f"diffusion.{name}" for name in ("mean", "std", "sigma_data", "sigma_min", "sigma_max")),
)
FLOOR = "frechet_distance_floor"


def build(config: ml_collections.ConfigDict, world: World, trained: Trained) -> Task:
    common.check(config)
    chosen = conditions.settings(config, world)
    model = network(config, world)
    denoise = models.preconditioned(model, sigma_data=config.diffusion.sigma_data)
    optimizer = common.make_optimizer(config.optimizer, config.steps)
    levels, evaluation = config.diffusion, config.evaluation
    for steps in evaluation.steps:
        if steps < 1:
            raise UserError(f"config.evaluation.steps must be >= 1, got {steps}")
    captioned = chosen.kind == "tokens"
    names = ["frechet_distance", *(captioning.Accuracy.names(world) if captioned else [])]
    common.check_best(config, [f"{name}_{steps}" for name in names for steps in evaluation.steps] + [FLOOR])
    judge = common.Judge(config, world, trained) if config.evaluate_every else None
    accuracy = captioning.Accuracy(config, world, trained) if config.evaluate_every and captioned else None
    told, draw_block = conditions.of_samples(chosen, world), sampler(config, world)

    def init(key: Array) -> TrainState:
        return common.initial_state(model.init(key), optimizer)

    def update(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, dict[str, Array]]:
        level_keys, noise_keys, dropout_keys, flip_keys, condition_keys = common.step_keys(key, batch, 5)
        data = common.examples(world, batch, flip_keys)
        noise = randomness.normal(noise_keys, data.shape[1:])
        draw_level = lambda key: diffusion.sample_training_sigmas(key, (), mean=levels.mean, std=levels.std)  # noqa: E731
        sigma = jax.vmap(draw_level)(level_keys)
        given = conditions.of_batch(chosen, batch)
        given = conditions.drop(condition_keys, given, conditions.empty(world, given), chosen.dropout)

        def losses(params: Any, examples: Any) -> tuple[Array, dict[str, Array]]:
            data, noise, sigma, given, keys = examples
            function = partial(denoise, params, keys=keys, **given)
            return diffusion.edm_loss(function, data, noise, sigma, sigma_data=levels.sigma_data), {}

        examples = (data, noise, sigma, given, dropout_keys)
        means, gradients = common.mean_and_gradients(losses, state.params, examples, config.accumulate)
        return common.apply_gradients(state, gradients, optimizer, config.ema_decay), means

    def draw(state: TrainState, key: Array, num: int, steps: int) -> Array:
        def block(key: Array, first: int, size: int) -> Array:
            return draw_block(state.average, key, told(first, size), chosen.guidance, size, steps)

        return common.draw_in_blocks(block, key, num, evaluation.block)

    def sample(state: TrainState, key: Array, num: int, steps: int) -> np.ndarray:
        return common.pixels(world, draw(state, key, num, steps))

    def evaluate(state: TrainState, key: Array) -> tuple[dict[str, float], dict[str, Panels]]:
        assert judge is not None
        measured = {FLOOR: judge.floor}
        for steps in evaluation.steps:
            drawn = draw(state, key, evaluation.samples, steps)
            values = [judge.distance_of(drawn)]
            values += accuracy(common.pixels(world, drawn), told(0, len(drawn))["tokens"]) if accuracy else []
            measured |= {f"{name}_{steps}": value for name, value in zip(names, values, strict=True)}
        panels = [(f"{steps} steps", sample(state, key, evaluation.pictured, steps)) for steps in evaluation.steps]
        panels.append(("real", common.real_pixels(world, evaluation.pictured)))
        return measured, {"samples": panels}

    return Task(init, update, evaluate, sample, model.axes, steps=max(evaluation.steps, default=1))


def network(config: ml_collections.ConfigDict, world: World) -> models.Model:
    """The network of a config, for the examples of a world and the captions that it may have."""
    captions = world.captions
    return models.build(
        config.model,
        example_shape=world.example_shape,
        num_classes=world.num_classes,
        vocabulary=len(captions.words) if captions else 0,
        token_length=captions.length if captions else 0,
    )


def sampler(config: ml_collections.ConfigDict, world: World) -> Callable[..., Array]:
    """`draw(params, key, conditions, guidance, num, steps)`, compiled: `num` examples by Heun steps from noise.

    `conditions` are {"tokens": [num, L]} or {"labels": [num]}, or {} for a network without any. The scale `guidance` is an
    array, scalar or [num]: another one compiles nothing; it is not looked at where the config has no `condition`.
    """
    chosen, levels = conditions.settings(config, world), config.diffusion
    denoise = models.preconditioned(network(config, world), sigma_data=levels.sigma_data)

    @partial(jax.jit, static_argnums=(4, 5))
    def draw(params: Any, key: Array, given: Conditions, guidance: Array | float, num: int, steps: int) -> Array:
        sigmas = diffusion.karras_sigmas(steps, sigma_min=levels.sigma_min, sigma_max=levels.sigma_max)
        keys = randomness.per_example_keys(key, jnp.arange(num))
        noise = sigmas[0] * randomness.normal(keys, world.example_shape)
        function = partial(denoise, params)
        if chosen.guided:
            return diffusion.sample_heun(
                conditions.guided(function, given, conditions.empty(world, given), guidance), noise, sigmas
            )
        return diffusion.sample_heun(partial(function, **given), noise, sigmas)

    return draw


def conditional_denoiser(run: Any) -> Callable[..., Any]:
    """`denoise(x, sigma, tokens, attention=None, negative_tokens=None, read=False)` of a trained run.

    `models.preconditioned` is the same with the parameters first.
    """
    sigma_data = run.config.diffusion.sigma_data
    return partial(models.preconditioned(network(run.config, run.world), sigma_data=sigma_data), run.state.average)


def denoiser(run: Any) -> Callable[[Array | None], Callable[[Array, Array], Array]]:
    """`labels -> denoise(x, sigma)` of a trained run."""
    return lambda labels: partial(conditional_denoiser(run), labels=labels)
