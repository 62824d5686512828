"""The update, sampler and evaluation of consistency models, for every method."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax import Array

from experiments import models
from experiments.engine import parts, randomness
from experiments.engine.errors import UserError
from experiments.engine.task import Batch, Panels, Task
from experiments.tasks import common, diffusion
from experiments.tasks.common import TrainState
from experiments.tasks.consistency import choices
from experiments.tasks.consistency.choices import Pairs, Terms, choose
from experiments.worlds import Trained, World
from mlfuncs import consistency

TEACHERS = ("average", "student")
SOLVERS = ("euler", "heun")


def build(config: ml_collections.ConfigDict, world: World, trained: Trained) -> Task:
    c = config.consistency
    draw_pairs = choose(config, "pairs", choices.PAIRS)(config)
    loss_of = choose(config, "loss", choices.LOSSES)
    distance_of = choose(config, "distance", choices.DISTANCES)
    weight_of = choose(config, "weight", choices.WEIGHTS)
    scale_of = choose(config, "robust_scale", choices.ROBUST_SCALES)
    couple = _in_groups(choose(config, "coupling", choices.COUPLINGS), _group_size(config))
    averaged = choose(config, "teacher", {name: name == "average" for name in TEACHERS})
    choose(config, "solver", {name: name for name in SOLVERS})
    common.check(config)
    levels = _evaluation_levels(config)
    common.check_best(config, (f"frechet_distance_{name}" for name in (*levels, "floor")))

    denoiser, pretrained, model_config = None, None, config.model
    if c.initialize_from_teacher or c.loss == "consistency_distillation_loss":
        run = trained(config.teacher)
        if run.world.example_shape != world.example_shape:
            raise UserError(
                f"config.teacher was trained on examples of shape {run.world.example_shape}, "
                f"config.data has {world.example_shape}"
            )
        denoiser = diffusion.denoiser(run)
        if c.initialize_from_teacher:
            # The student is the teacher's network; only its dropout is its own.
            pretrained = run.state.average
            model_config = ml_collections.ConfigDict({**run.config.model.to_dict(), "dropout": config.model.dropout})
    if model_config.get("token_condition", False):
        raise UserError("config.model.token_condition: consistency models are told classes, not captions")
    model = models.build(model_config, example_shape=world.example_shape, num_classes=world.num_classes)
    optimizer = common.make_optimizer(config.optimizer, config.steps)
    judge = common.Judge(config, world, trained) if config.evaluate_every else None

    def function(params: Any, labels: Array | None, keys: Array | None = None) -> Callable[[Array, Array], Array]:
        def network(x: Array, c_noise: Array) -> Array:
            return model.apply(params, x, c_noise, labels=labels, keys=keys)

        return consistency.consistency_function(network, sigma_data=c.sigma_data, sigma_min=c.sigma_min)

    def init(key: Array) -> TrainState:
        params = model.init(key) if pretrained is None else jax.tree.map(jnp.copy, pretrained)
        return common.initial_state(params, optimizer, teacher=averaged)

    def update(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, dict[str, Array]]:
        level_keys, noise_keys, dropout_keys, flip_keys, coupling_keys = common.step_keys(key, batch, 5)
        data = common.examples(world, batch, flip_keys)
        noise = randomness.normal(noise_keys, data.shape[1:])
        noise = couple(coupling_keys, data, noise)
        labels = common.conditions(config, batch)
        pairs: Pairs = draw_pairs(level_keys, state.step)
        scale = scale_of(data[0].size, pairs.num_levels)
        weight = weight_of(pairs.sigma_low, pairs.sigma_high)

        def losses(params: Any, examples: Any) -> tuple[Array, dict[str, Array]]:
            data, noise, (sigma_low, sigma_high, level), weight, labels, keys = examples
            terms = Terms(
                # The same dropout keys in both passes: student and teacher share their masks.
                student=function(params, labels, keys),
                teacher=function(state.teacher, labels, keys) if averaged else None,
                denoise=denoiser(labels) if denoiser else None,
                data=data,
                noise=noise,
                pairs=Pairs(sigma_low, sigma_high, level, pairs.num_levels),
                c=scale,
                distance=distance_of(scale),
                weight=weight,
            )
            return loss_of(config, terms), {}

        examples = (data, noise, (pairs.sigma_low, pairs.sigma_high, pairs.level), weight, labels, dropout_keys)
        means, gradients = common.mean_and_gradients(losses, state.params, examples, config.accumulate)
        state = common.apply_gradients(state, gradients, optimizer, config.ema_decay)
        if averaged:
            decay = consistency.teacher_decay(
                pairs.num_levels, initial_decay=c.initial_decay, initial_steps=c.initial_steps
            )
            state = state._replace(teacher=optax.incremental_update(state.params, state.teacher, 1 - decay))
        return state, {
            **means,
            "gradient_norm": optax.tree.norm(gradients),
            "levels": pairs.num_levels.astype(jnp.float32),
        }

    @jax.jit(static_argnums=(3, 4))
    def draw_block(params: Any, key: Array, first: Array, num: int, sigmas: tuple[float, ...]) -> Array:
        labels = common.sampling_labels(config, world, first, num)
        shape = (num, *world.example_shape)
        return consistency.multistep_sample(key, function(params, labels), shape, sigmas=sigmas, sigma_min=c.sigma_min)

    def draw(state: TrainState, key: Array, num: int, steps: int) -> Array:
        sigmas = levels.get(steps) or _default_levels(steps, c.sigma_min, c.sigma_max)

        def block(key: Array, first: int, size: int) -> Array:
            return draw_block(state.average, key, first, size, sigmas)

        return common.draw_in_blocks(block, key, num, config.evaluation.block)

    def sample(state: TrainState, key: Array, num: int, steps: int) -> np.ndarray:
        return common.pixels(world, draw(state, key, num, steps))

    def evaluate(state: TrainState, key: Array) -> tuple[dict[str, float], dict[str, Panels]]:
        assert judge is not None
        measured = {
            f"frechet_distance_{steps}": judge.distance(partial(draw, state, key, steps=steps)) for steps in levels
        }
        shown = config.evaluation.pictured
        panels = [(f"{steps} step{'s' * (steps > 1)}", sample(state, key, shown, steps)) for steps in levels]
        panels.append(("real", common.real_pixels(world, shown)))
        return {**measured, "frechet_distance_floor": judge.floor}, {"samples": panels}

    return Task(init, update, evaluate, sample, model.axes)


def _evaluation_levels(config: ml_collections.ConfigDict) -> dict[int, tuple[float, ...]]:
    """Sampling levels by number of steps."""
    levels: dict[int, tuple[float, ...]] = {}
    for given in config.evaluation.levels:
        if not isinstance(given, (list, tuple)):
            raise UserError(
                f"config.evaluation.levels must be tuples of levels, e.g. ((80.0,), (80.0, 0.8)), got {given}"
            )
        sigmas = tuple(float(sigma) for sigma in given)
        if not sigmas or list(sigmas) != sorted(set(sigmas), reverse=True) or sigmas[-1] < config.consistency.sigma_min:
            raise UserError(f"config.evaluation.levels must each decrease and stay above sigma_min, got {sigmas}")
        levels[len(sigmas)] = sigmas
    if not levels:
        raise UserError("config.evaluation.levels must name at least one way to sample, e.g. ((80.0,), (80.0, 0.8))")
    return levels


def _default_levels(steps: int, sigma_min: float, sigma_max: float) -> tuple[float, ...]:
    """Levels for a number of steps that the config does not name: a descending Karras grid without its lowest level."""
    grid = consistency.karras_levels(steps + 1, sigma_min=max(sigma_min, 0.002), sigma_max=sigma_max)
    return tuple(float(sigma) for sigma in np.asarray(grid)[:0:-1])


def _group_size(config: ml_collections.ConfigDict) -> int:
    size = config.consistency.coupling_group or config.batch_size
    if size < 1 or config.batch_size % size:
        raise UserError(
            f"config.consistency.coupling_group must divide config.batch_size {config.batch_size}, got {size}"
        )
    return size


def _in_groups(
    coupling: Callable[[Array, Array, Array], Array] | None, size: int
) -> Callable[[Array, Array, Array], Array]:
    """Couples noise to data inside groups of `size` consecutive examples of the global batch, as the paper does per device.

    The result takes a key for each example; that of the first in a group is used.
    """
    if coupling is None:
        return lambda keys, data, noise: noise

    def couple(keys: Array, data: Array, noise: Array) -> Array:
        if data.shape[0] % size:  # a group lies on several devices
            return parts.own(couple(*parts.joined((keys, data, noise))))
        groups = (data.shape[0] // size, size)
        data, grouped = data.reshape(*groups, *data.shape[1:]), noise.reshape(*groups, *noise.shape[1:])
        partner = jax.vmap(coupling)(keys[::size], data, grouped)
        return jax.vmap(lambda values, indices: values[indices])(grouped, partner).reshape(noise.shape)

    return couple
