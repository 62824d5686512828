"""Score distillation: a one-step generator, and the critic that follows it, from a diffusion run."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax import Array

from experiments import models
from experiments.engine import parts, randomness
from experiments.engine.errors import UserError, unknown
from experiments.engine.task import Batch, Panels, Task
from experiments.tasks import captioning, common, conditions, diffusion
from experiments.tasks.conditions import Conditions
from experiments.tasks.score_distillation import inputs, settings
from experiments.tasks.score_distillation.inputs import Inputs
from experiments.tasks.score_distillation.methods import METHODS, Noised
from experiments.worlds import Trained, World
from mlfuncs import score_distillation


class State(NamedTuple):
    """What a step reads and writes; the teacher and its guidance are here so that another one compiles nothing."""

    step: Array
    params: Any  # of the generator
    optimizer: Any
    average: Any  # exponential moving average of `params`
    critic: Any
    critic_optimizer: Any
    teacher: Any  # never changed; with backtracking, a path of parameters along a first axis, the teacher's the last
    guidance: Array  # scale of the teacher's classifier-free guidance


class _Parts(NamedTuple):
    """What initialisation, updates and sampling share."""

    config: ml_collections.ConfigDict
    world: World
    levels: ml_collections.ConfigDict  # of the teacher's training
    chosen: conditions.Settings
    denoise: Callable[..., Array]  # (params, x, sigma, **conditions), of teacher, critic and generator
    optimizer: optax.GradientTransformation
    critic_optimizer: optax.GradientTransformation

    def generate(self, params: Any, z: Array, given: Conditions) -> Array:
        denoise = partial(self.denoise, params, **given)
        return score_distillation.one_step_generator(denoise, sigma_init=self.config.distillation.sigma_init)(z)

    def draw(self, batch: Batch, keys: Array) -> Inputs:
        return inputs.draw(self.config, self.world, self.levels, self.chosen.kind, batch, keys)

    def critic_losses(self, generator: Any, params: Any, drawn: Inputs) -> tuple[Array, dict[str, Array]]:
        sample = jax.lax.stop_gradient(self.generate(generator, drawn.z, drawn.given))
        nothing = conditions.empty(self.world, drawn.given)
        heard = conditions.drop(drawn.keys, drawn.given, nothing, self.chosen.dropout)
        losses = score_distillation.denoising_score_loss(
            partial(self.denoise, params, **heard), sample, drawn.noise, drawn.sigma, sigma_data=self.levels.sigma_data
        )
        if self.config.method == "forgetting":
            f = self.config.forgetting
            forgets = drawn.given["labels"] == f.label
            losses = jnp.where(forgets, f.forget_coefficient, f.remain_coefficient) * losses
        return losses, {}

    def critic_step(self, generator: Any, batch: Batch, carry: Any, keys: Array) -> Any:
        params, state = carry
        losses = partial(self.critic_losses, generator)
        means, gradients = common.mean_and_gradients(losses, params, self.draw(batch, keys), self.config.accumulate)
        updates, state = self.critic_optimizer.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), means["loss"]

    def generator_losses(self, state: State, params: Any, drawn: Inputs) -> tuple[Array, dict[str, Array]]:
        """Under the teacher and critic of a state."""
        teacher, back = state.teacher, self.config.backtracking
        if back.checkpoints:
            index = score_distillation.backtracking_index(state.step, back.checkpoints + 1, interval=back.interval)
            teacher = score_distillation.select_checkpoint(teacher, index)
        at = Noised(
            config=self.config,
            sample=self.generate(params, drawn.z, drawn.given),
            noise=drawn.noise,
            sigma=drawn.sigma,
            given=drawn.given,
            told=drawn.told,
            nothing=conditions.empty(self.world, drawn.given),
            keys=drawn.keys,
            teacher=partial(self.denoise, teacher),
            critic=partial(self.denoise, state.critic),
            guidance=state.guidance,
        )
        return METHODS[self.config.method](at), {}

    def recorded_path(self, key: Array, params: Any) -> Any:
        """The teacher on its way to the untrained generator's distribution, farthest first: [checkpoints + 1, ...]."""
        config, back = self.config, self.config.backtracking
        batch: Any = {
            "index": parts.positions(config.batch_size),
            **inputs.captions(self.world, config.batch_size),
        }

        def step(carry: Any, index: Array) -> Any:
            keys = common.step_keys(jax.random.fold_in(key, index), batch, 1)[0]
            return self.critic_step(params, batch, carry, keys)

        def checkpoint(carry: Any, first: Array) -> Any:
            carry, _ = jax.lax.scan(step, carry, first + jnp.arange(back.record_steps))
            return carry, carry[0]

        firsts = back.record_steps * jnp.arange(back.checkpoints)
        _, path = jax.lax.scan(checkpoint, (params, self.critic_optimizer.init(params)), firsts)
        return jax.tree.map(lambda leaves, last: jnp.concatenate([leaves[::-1], last[None]]), path, params)


def build(config: ml_collections.ConfigDict, world: World, trained: Trained) -> Task:
    common.check(config)
    if config.method not in METHODS:
        raise unknown("config.method", config.method, METHODS)
    chosen = conditions.settings(config, world)
    run = trained(config.teacher)
    settings.check(config, world, chosen, run)
    c, levels = config.distillation, run.config.diffusion
    model = diffusion.network(config, world)
    optimizer = common.make_optimizer(config.optimizer, config.steps)
    critic_optimizer = common.make_optimizer(config.critic_optimizer, config.steps * c.critic_steps)
    denoise = models.preconditioned(model, sigma_data=levels.sigma_data)
    of = _Parts(config, world, levels, chosen, denoise, optimizer, critic_optimizer)

    def update(state: State, batch: Batch, key: Array) -> tuple[State, dict[str, Array]]:
        *critic_keys, keys = common.step_keys(key, batch, c.critic_steps + 1)
        (critic, critic_state), critic_loss = jax.lax.scan(
            partial(of.critic_step, state.params, batch), (state.critic, state.critic_optimizer), jnp.stack(critic_keys)
        )
        state = state._replace(critic=critic, critic_optimizer=critic_state)
        losses = partial(of.generator_losses, state)
        means, gradients = common.mean_and_gradients(losses, state.params, of.draw(batch, keys), config.accumulate)
        state = common.apply_gradients(state, gradients, optimizer, config.ema_decay)
        extra = {"critic_loss": jnp.mean(critic_loss), "gradient_norm": optax.tree.norm(gradients)}
        return state, {**means, **extra}

    def init(key: Array) -> State:
        copied = lambda: jax.tree.map(jnp.copy, run.state.average)  # noqa: E731 (a step may use up each of them)
        params, critic, teacher = copied(), copied(), copied()
        if config.backtracking.checkpoints:
            teacher = of.recorded_path(key, teacher)
            critic = jax.tree.map(lambda leaves: leaves[0], teacher)
        critic_state, scale = critic_optimizer.init(critic), jnp.float32(chosen.guidance)
        state = common.initial_state(params, optimizer)
        return State(state.step, state.params, state.optimizer, copied(), critic, critic_state, teacher, scale)

    sample, evaluate = _sampling(of, trained)
    return Task(init, update, evaluate, sample, model.axes)


def _sampling(of: _Parts, trained: Trained) -> tuple[Any, Any]:
    """`sample` and `evaluate` of the task."""
    world, evaluation = of.world, of.config.evaluation
    measures = _measures(of.config, world, trained, captioned=of.chosen.kind == "tokens")
    told = conditions.of_samples(of.chosen, world)

    @partial(jax.jit, static_argnums=3)
    def draw_block(params: Any, key: Array, given: Conditions, num: int) -> Array:
        keys = randomness.per_example_keys(key, jnp.arange(num))
        return of.generate(params, randomness.normal(keys, world.example_shape), given)

    def draw(state: State, key: Array, num: int) -> Array:
        def block(key: Array, first: int, size: int) -> Array:
            return draw_block(state.average, key, told(first, size), size)

        return common.draw_in_blocks(block, key, num, evaluation.block)

    def sample(state: State, key: Array, num: int, steps: int) -> np.ndarray:
        if steps != 1:
            raise UserError(f"a one-step generator draws in 1 step, got {steps}")
        return common.pixels(world, draw(state, key, num))

    def evaluate(state: State, key: Array) -> tuple[dict[str, float], dict[str, Panels]]:
        shown, drawn = evaluation.pictured, draw(state, key, evaluation.samples)
        panels = [("1 step", sample(state, key, shown, 1)), ("real", common.real_pixels(world, shown))]
        return measures(drawn, told(0, len(drawn))), {"samples": panels}

    return sample, evaluate


def _measures(
    config: ml_collections.ConfigDict, world: World, trained: Trained, *, captioned: bool
) -> Callable[[Array, Mapping[str, Any]], dict[str, float]]:
    """What samples and what they were told are judged by."""
    names = captioning.Accuracy.names(world) if captioned else []
    common.check_best(config, ["frechet_distance_1", diffusion.FLOOR, *(f"{name}_1" for name in names)])
    if not config.evaluate_every:
        return lambda drawn, given: {}
    judge = common.Judge(config, world, trained)
    accuracy = captioning.Accuracy(config, world, trained) if captioned else None

    def measure(drawn: Array, given: Mapping[str, Any]) -> dict[str, float]:
        values = accuracy(common.pixels(world, drawn), np.asarray(given["tokens"])) if accuracy else []
        measured = {f"{name}_1": value for name, value in zip(names, values, strict=True)}
        return {"frechet_distance_1": judge.distance_of(drawn), diffusion.FLOOR: judge.floor, **measured}

    return measure


def generator(run: Any) -> Callable[..., Array]:
    """`generate(noise, labels=None)` of a trained run without captions; noise is unit normal."""
    levels = run.config.teacher.diffusion
    denoise = models.preconditioned(diffusion.network(run.config, run.world), sigma_data=levels.sigma_data)

    def labelled(x: Array, sigma: Array, labels: Array | None = None) -> Array:
        clean: Array = denoise(run.state.average, x, sigma, labels=labels)
        return clean

    return score_distillation.one_step_generator(labelled, sigma_init=run.config.distillation.sigma_init)
