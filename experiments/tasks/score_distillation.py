"""One-step generators by score distillation: a critic and the generator learn in turn inside one update, without data.

The frozen teacher scores the data, the critic what the generator draws; a method turns the difference into a loss of the
generator (`METHODS`). All three are the teacher's network, and start from its parameters.
"""

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
from experiments.worlds import Trained, World
from mlfuncs import guidance, score_distillation, unlearning

FIELDS = (
    *common.EVALUATION_FIELDS,
    "method",
    "teacher.task",
    *(
        f"distillation.{name}"
        for name in (
            "sigma_init",
            "lowest_level",
            "highest_level",
            "critic_steps",
            "entropy_weight",
            "lowest_guidance",
            "highest_guidance",
            "alpha",
        )
    ),
    *(f"critic_optimizer.{name}" for name in ("name", "learning_rate", "schedule", "warmup_steps", "clip")),
    *(f"backtracking.{name}" for name in ("checkpoints", "record_steps", "interval")),
    *(f"forgetting.{name}" for name in ("label", "override", "share", "remain_coefficient", "forget_coefficient")),
)
RANDOM_OVERRIDE = -1  # another class for every example
RHO = 7.0  # of the grid of levels of Karras et al.


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


class Noised(NamedTuple):
    """Samples of the generator at one level of noise each, and the frozen networks that look at them."""

    config: ml_collections.ConfigDict
    sample: Array  # [B, ...]
    noise: Array  # [B, ...]
    sigma: Array  # [B]
    given: Conditions  # under which the samples were drawn
    told: Conditions  # what the teacher is told instead
    nothing: Conditions
    keys: Array  # [B]
    teacher: Callable[..., Array]  # denoise(x, sigma, **conditions)
    critic: Callable[..., Array]
    guidance: Array

    @property
    def noised(self) -> Array:
        return self.sample + self._per_level(self.sigma) * self.noise

    def fixed(self) -> "Noised":
        """The same without a gradient to the samples, so that the frozen passes keep nothing for one."""
        return self._replace(sample=jax.lax.stop_gradient(self.sample))

    def real(self) -> Array:
        """The teacher's clean estimate, guided where the config has a condition."""
        if "condition" not in self.config:
            return self.teacher(self.noised, self.sigma, **self.told)
        return conditions.guided(self.teacher, self.told, self.nothing, self.guidance)(self.noised, self.sigma)

    def fake(self) -> Array:
        return self.critic(self.noised, self.sigma, **self.given)

    def score(self, denoised: Array) -> Array:
        return (denoised - self.noised) / self._per_level(self.sigma**2)

    def predicted_noise(self, denoised: Array) -> Array:
        return (self.noised - denoised) / self._per_level(self.sigma)

    def _per_level(self, value: Array) -> Array:
        return value.reshape(-1, *(1,) * (self.sample.ndim - 1))


def _matching(normalize: bool, at: Noised) -> Array:
    """Distribution matching, and without its denominator variational score distillation."""
    fixed = at.fixed()
    gradient = score_distillation.distribution_matching_gradient(
        fixed.sample, fixed.real(), fixed.fake(), normalize=normalize
    )
    return score_distillation.gradient_surrogate(at.sample, gradient)


def _guided_variational(at: Noised) -> Array:
    """Variational score distillation under a random guidance scale, the same for teacher and critic."""
    fixed, c = at.fixed(), at.config.distillation
    draw = partial(guidance.sample_guidance_scale, shape=(), low=c.lowest_guidance, high=c.highest_guidance)
    predictions = [
        fixed.predicted_noise(network(fixed.noised, fixed.sigma, **told))
        for network in (fixed.teacher, fixed.critic)
        for told in (fixed.told, fixed.nothing)
    ]
    gradient = score_distillation.guided_variational_gradient(*predictions, scale=jax.vmap(draw)(at.keys))
    return score_distillation.gradient_surrogate(at.sample, gradient)


def _entropic(at: Noised) -> Array:
    """Score distillation that keeps up the entropy over all conditions."""
    fixed = at.fixed()
    marginal = fixed.critic(fixed.noised, fixed.sigma, **fixed.nothing)
    gradient = score_distillation.entropic_score_gradient(
        *(fixed.score(denoised) for denoised in (fixed.real(), marginal, fixed.fake())),
        entropy_weight=at.config.distillation.entropy_weight,
        weight=fixed.sigma**2,  # differences of clean estimates, as in distribution matching
    )
    return score_distillation.gradient_surrogate(at.sample, gradient)


def _identity(at: Noised) -> Array:
    """Score identity distillation, whose gradient goes through the inputs of both networks."""
    alpha = at.config.distillation.alpha
    return score_distillation.score_identity_loss(at.sample, at.real(), at.fake(), alpha=alpha)


def _forgetting(at: Noised) -> Array:
    """Score identity distillation that forgets a class: on its samples the teacher is told another one."""
    c = at.config.forgetting
    return unlearning.score_forgetting_loss(
        at.sample,
        at.noise,
        at.sigma,
        at.given["labels"],
        at.told["labels"],
        at.given["labels"] == c.label,
        teacher=lambda x, sigma, labels: at.teacher(x, sigma, labels=labels),
        critic=lambda x, sigma, labels: at.critic(x, sigma, labels=labels),
        alpha=at.config.distillation.alpha,
        remain_coefficient=c.remain_coefficient,
        forget_coefficient=c.forget_coefficient,
    )


METHODS: dict[str, Callable[[Noised], Array]] = {
    "distribution_matching": partial(_matching, True),
    "entropic": _entropic,
    "forgetting": _forgetting,
    "guided_variational": _guided_variational,
    "identity": _identity,
    "variational": partial(_matching, False),
}
UNCONDITIONAL = ("entropic", "guided_variational")  # ask critic, or critic and teacher, without the condition


def build(config: ml_collections.ConfigDict, world: World, trained: Trained) -> Task:
    common.check(config)
    if config.method not in METHODS:
        raise unknown("config.method", config.method, METHODS)
    chosen = conditions.settings(config, world)
    run = trained(config.teacher)
    _check(config, world, chosen, run)
    c, back, levels = config.distillation, config.backtracking, run.config.diffusion
    model = diffusion.network(config, world)
    denoise = models.preconditioned(model, sigma_data=levels.sigma_data)
    optimizer = common.make_optimizer(config.optimizer, config.steps)
    critic_optimizer = common.make_optimizer(config.critic_optimizer, config.steps * c.critic_steps)
    measures = _measures(config, world, trained, captioned=chosen.kind == "tokens")
    # Levels are uniform in the variable that a sampler's steps divide evenly.
    ends = [getattr(levels, name) ** (1 / RHO) for name in ("sigma_min", "sigma_max")]

    def generate(params: Any, z: Array, given: Conditions) -> Array:
        one = score_distillation.one_step_generator(partial(denoise, params, **given), sigma_init=c.sigma_init)
        return one(z)

    def draw_level(key: Array) -> Array:
        share = jax.random.uniform(key, (), minval=c.lowest_level, maxval=c.highest_level)
        return (ends[0] + share * (ends[1] - ends[0])) ** RHO

    def draw_inputs(keys: Array, batch: Batch) -> tuple[Any, ...]:
        """Everything random of one pass, a row an example."""
        z_keys, noise_keys, level_keys, label_keys, told_keys, other_keys = randomness.split(keys, 6)
        given = {"tokens": batch["tokens"]} if chosen.kind == "tokens" else {}
        if chosen.kind == "labels":
            given = {"labels": _draw_labels(config, world, label_keys)}
        z, noise = (randomness.normal(some, world.example_shape) for some in (z_keys, noise_keys))
        return z, noise, jax.vmap(draw_level)(level_keys), given, _told(config, world, given, told_keys), other_keys

    def critic_losses(generator: Any, params: Any, inputs: Any) -> tuple[Array, dict[str, Array]]:
        z, noise, sigma, given, _, keys = inputs
        sample = jax.lax.stop_gradient(generate(generator, z, given))
        heard = conditions.drop(keys, given, conditions.empty(world, given), chosen.dropout)
        losses = score_distillation.denoising_score_loss(
            partial(denoise, params, **heard), sample, noise, sigma, sigma_data=levels.sigma_data
        )
        if config.method == "forgetting":
            forgets, f = given["labels"] == config.forgetting.label, config.forgetting
            losses = jnp.where(forgets, f.forget_coefficient, f.remain_coefficient) * losses
        return losses, {}

    def critic_step(generator: Any, batch: Batch, carry: Any, keys: Array) -> Any:
        params, state = carry
        losses = partial(critic_losses, generator)
        means, gradients = common.mean_and_gradients(losses, params, draw_inputs(keys, batch), config.accumulate)
        updates, state = critic_optimizer.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), means["loss"]

    def update(state: State, batch: Batch, key: Array) -> tuple[State, dict[str, Array]]:
        *critic_keys, keys = common.step_keys(key, batch, c.critic_steps + 1)
        (critic, critic_state), critic_loss = jax.lax.scan(
            partial(critic_step, state.params, batch), (state.critic, state.critic_optimizer), jnp.stack(critic_keys)
        )
        teacher = state.teacher
        if back.checkpoints:
            index = score_distillation.backtracking_index(state.step, back.checkpoints + 1, interval=back.interval)
            teacher = score_distillation.select_checkpoint(teacher, index)

        def losses(params: Any, inputs: Any) -> tuple[Array, dict[str, Array]]:
            z, noise, sigma, given, told, keys = inputs
            networks = (partial(denoise, teacher), partial(denoise, critic))
            nothing = conditions.empty(world, given)
            at = Noised(
                config, generate(params, z, given), noise, sigma, given, told, nothing, keys, *networks, state.guidance
            )
            return METHODS[config.method](at), {}

        means, gradients = common.mean_and_gradients(losses, state.params, draw_inputs(keys, batch), config.accumulate)
        state = common.apply_gradients(state, gradients, optimizer, config.ema_decay)
        state = state._replace(critic=critic, critic_optimizer=critic_state)
        return state, {
            **means,
            "critic_loss": jnp.mean(critic_loss),
            "gradient_norm": optax.tree.norm(gradients),
        }

    def recorded_path(key: Array, params: Any) -> Any:
        """The teacher on its way to the untrained generator's distribution, farthest first: [checkpoints + 1, ...]."""

        def step(carry: Any, index: Array) -> Any:
            batch: Any = {"index": parts.positions(config.batch_size), **_captions(world, config.batch_size)}
            keys = common.step_keys(jax.random.fold_in(key, index), batch, 1)[0]
            return critic_step(params, batch, carry, keys)

        def checkpoint(carry: Any, first: Array) -> Any:
            carry, _ = jax.lax.scan(step, carry, first + jnp.arange(back.record_steps))
            return carry, carry[0]

        firsts = back.record_steps * jnp.arange(back.checkpoints)
        _, path = jax.lax.scan(checkpoint, (params, critic_optimizer.init(params)), firsts)
        return jax.tree.map(lambda leaves, last: jnp.concatenate([leaves[::-1], last[None]]), path, params)

    def init(key: Array) -> State:
        copied = lambda: jax.tree.map(jnp.copy, run.state.average)  # noqa: E731 (a step may use up each of them)
        params, critic, teacher = copied(), copied(), copied()
        if back.checkpoints:
            teacher = recorded_path(key, teacher)
            critic = jax.tree.map(lambda leaves: leaves[0], teacher)
        state = common.initial_state(params, optimizer)
        return State(
            state.step,
            state.params,
            state.optimizer,
            copied(),
            critic,
            critic_optimizer.init(critic),
            teacher,
            jnp.float32(chosen.guidance),
        )

    told = conditions.of_samples(chosen, world)

    @partial(jax.jit, static_argnums=3)
    def draw_block(params: Any, key: Array, given: Conditions, num: int) -> Array:
        keys = randomness.per_example_keys(key, jnp.arange(num))
        return generate(params, randomness.normal(keys, world.example_shape), given)

    def draw(state: State, key: Array, num: int) -> Array:
        def block(key: Array, first: int, size: int) -> Array:
            return draw_block(state.average, key, told(first, size), size)

        return common.draw_in_blocks(block, key, num, config.evaluation.block)

    def sample(state: State, key: Array, num: int, steps: int) -> np.ndarray:
        if steps != 1:
            raise UserError(f"a one-step generator draws in 1 step, got {steps}")
        return common.pixels(world, draw(state, key, num))

    def evaluate(state: State, key: Array) -> tuple[dict[str, float], dict[str, Panels]]:
        shown, drawn = config.evaluation.pictured, draw(state, key, config.evaluation.samples)
        panels = [("1 step", sample(state, key, shown, 1)), ("real", common.real_pixels(world, shown))]
        return measures(drawn, told(0, len(drawn))), {"samples": panels}

    return Task(init, update, evaluate, sample, model.axes)


def generator(run: Any) -> Callable[..., Array]:
    """`generate(noise, labels=None)` of a trained run without captions; noise is unit normal."""
    levels = run.config.teacher.diffusion
    denoise = models.preconditioned(diffusion.network(run.config, run.world), sigma_data=levels.sigma_data)

    def labelled(x: Array, sigma: Array, labels: Array | None = None) -> Array:
        clean: Array = denoise(run.state.average, x, sigma, labels=labels)
        return clean

    return score_distillation.one_step_generator(labelled, sigma_init=run.config.distillation.sigma_init)


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


def _check(config: ml_collections.ConfigDict, world: World, chosen: conditions.Settings, run: Any) -> None:
    """What can be seen to be wrong before anything is computed."""
    if config.teacher.task != "diffusion":
        raise UserError(f"config.teacher must be a diffusion config, got a {config.teacher.task} config")
    if run.world.example_shape != world.example_shape:
        raise UserError(
            f"config.teacher was trained on examples of shape {run.world.example_shape}, "
            f"config.data has {world.example_shape}"
        )
    if config.model != run.config.model:
        raise UserError("config.model must be that of config.teacher, from whose parameters generator and critic start")
    c, back, levels = config.distillation, config.backtracking, run.config.diffusion
    if not levels.sigma_min <= c.sigma_init <= levels.sigma_max:
        raise UserError(
            f"config.distillation.sigma_init must lie in the levels [{levels.sigma_min}, {levels.sigma_max}] of "
            f"config.teacher, got {c.sigma_init}"
        )
    if not 0 <= c.lowest_level < c.highest_level <= 1:
        raise UserError(
            "config.distillation: lowest_level < highest_level must be shares of the range of levels, in [0, 1], got "
            f"{c.lowest_level} and {c.highest_level}"
        )
    if c.critic_steps < 1:
        raise UserError(f"config.distillation.critic_steps must be >= 1, got {c.critic_steps}")
    if back.checkpoints < 0:
        raise UserError(f"config.backtracking.checkpoints must be >= 0, got {back.checkpoints}")
    for name in ("record_steps", "interval"):
        if back[name] < 1:
            raise UserError(f"config.backtracking.{name} must be >= 1, got {back[name]}")
    if config.method in UNCONDITIONAL and not (chosen.kind and chosen.dropout):
        raise UserError(
            f"config.method {config.method} asks for predictions without a condition: it needs a conditional network "
            "and config.condition.dropout > 0"
        )
    asks_teacher = config.method == "guided_variational" or (chosen.guided and chosen.guidance != 1)
    if asks_teacher and not run.config.get("condition", {}).get("dropout", 0.0):
        raise UserError("config.teacher learnt no prediction without a condition; give it condition.dropout > 0")
    if config.method == "forgetting":
        _check_forgetting(config.forgetting, world, chosen)


def _check_forgetting(f: ml_collections.ConfigDict, world: World, chosen: conditions.Settings) -> None:
    if chosen.kind != "labels" or chosen.guided:
        raise UserError("config.method forgetting needs config.model.class_condition, and no config.condition")
    for name, low in (("label", 0), ("override", RANDOM_OVERRIDE)):
        if not low <= f[name] < world.num_classes:
            raise UserError(f"config.forgetting.{name} must be in [{low}, {world.num_classes - 1}], got {f[name]}")
    if f.label == f.override:
        raise UserError(f"config.forgetting.override must be another class than the forgotten one, got {f.override}")
    if not 0 <= f.share <= 1:
        raise UserError(f"config.forgetting.share must be in [0, 1], got {f.share}")


def _draw_labels(config: ml_collections.ConfigDict, world: World, keys: Array) -> Array:
    """Classes [B], all alike likely; where one is forgotten, that one for a share of the batch and else another."""

    def draw(key: Array) -> Array:
        class_key, share_key = jax.random.split(key)
        label = jax.random.randint(class_key, (), 0, world.num_classes)
        if config.method != "forgetting":
            return label
        f = config.forgetting
        other = jax.random.randint(class_key, (), 0, world.num_classes - 1)
        return jnp.where(jax.random.bernoulli(share_key, f.share), f.label, other + (other >= f.label))

    return jax.vmap(draw)(keys)


def _told(config: ml_collections.ConfigDict, world: World, given: Conditions, keys: Array) -> Conditions:
    """What the teacher is told: the condition of the sample, unless that is to be forgotten."""
    if config.method != "forgetting":
        return given
    f, labels = config.forgetting, given["labels"]
    if f.override != RANDOM_OVERRIDE:
        return {"labels": unlearning.override_labels(labels, f.label, override=f.override)}

    def draw(key: Array, label: Array) -> Array:
        return unlearning.sample_override_labels(key, label[None], f.label, num_classes=world.num_classes)[0]

    return {"labels": jax.vmap(draw)(keys, labels)}


def _captions(world: World, num: int) -> dict[str, np.ndarray]:
    """Captions of the first training examples, where there are any."""
    rows = world.train.read(np.arange(num) % len(world.train)) if world.captions else {}
    return {"tokens": rows["tokens"]} if rows else {}
