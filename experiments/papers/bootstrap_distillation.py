"""Bootstrap distillation of digits: a one-step student learnt from noise alone, and other ways to need few evaluations."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax import Array

from experiments import runs
from experiments.engine import randomness
from experiments.papers import training
from experiments.tasks import common
from experiments.tasks import diffusion as task
from mlfuncs import consistency, diffusion, robust

VECTORISED = False
MEASURED = 8  # levels, evenly over the places of the Karras grid below its top

Student = Callable[[Array, Array], Array]  # (noise [B, ...], sigma [B]) -> signal


class Teacher(NamedTuple):
    """A trained denoiser, its trajectories from the highest level, and students made of its network."""

    run: runs.Run
    denoise: Callable[[Array, Array], Array]
    grid: Array  # [steps + 1] falling levels of the trajectories that are taken for the truth

    @property
    def measured(self) -> slice:
        """Places of the levels that are measured among all but the highest."""
        every = (len(self.grid) - 1) // MEASURED
        return slice(every - 1, None, every)

    @property
    def top(self) -> float:
        return float(self.run.config.diffusion.sigma_max)

    def one_step(self, noise: Array) -> Array:
        """The clean estimate at the highest level, where nothing but noise is seen."""
        return self.denoise(self.top * noise, jnp.full(noise.shape[0], self.top))

    def few_steps(self, noise: Array, steps: int) -> Array:
        """Samples by Euler steps, one evaluation each."""
        levels = self.run.config.diffusion
        sigmas = diffusion.karras_sigmas(steps, sigma_min=levels.sigma_min, sigma_max=levels.sigma_max)
        return diffusion.sample_euler(self.denoise, self.top * noise, sigmas)

    def signals(self, noise: Array) -> Array:
        """Signals [steps, B, ...] of the trajectories of noise [B, ...], by Heun steps, at all levels but the highest."""

        def step(x: Array, pair: tuple[Array, Array]) -> tuple[Array, Array]:
            x = diffusion.ode_step(self.denoise, x, *pair)
            return x, x - pair[1] * noise

        start = self.one_step(noise) + self.top * noise
        return jax.lax.scan(step, start, (self.grid[:-1], self.grid[1:]))[1]

    def student(self, params: Any) -> Student:
        """The teacher's network, to which unit noise is an example at the highest level whatever level it is told.

        With the teacher's own parameters it gives, at the highest level, the teacher's clean estimate.
        """
        network = task.network(self.run.config, self.run.world)
        scale = self.run.config.diffusion.sigma_data

        def signal(noise: Array, sigma: Array) -> Array:
            told = diffusion.edm_coefficients(sigma, sigma_data=scale)["noise"]
            clean: Array = scale * network.apply(params, noise, told)
            return clean

        return signal


def run(config: ml_collections.ConfigDict, key: Array) -> dict[str, float]:
    """One way to sample, `config.sampler`, from a teacher of the same seed."""
    if config.sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {config.sampler!r}")
    if config.steps < MEASURED or config.steps % MEASURED:
        raise ValueError(f"steps must be a multiple of {MEASURED}, the levels that are measured, got {config.steps}")
    train_key, noise_key = jax.random.split(key)
    teacher, judge, noise, truth = _problem(
        config.teacher, key, noise_key, config.steps, config.samples, config.cache_dir
    )
    found = SAMPLERS[config.sampler](config, teacher, noise, truth, train_key)
    errors = _errors(found, truth[-len(found) :])
    measured = {
        "frechet_distance": judge.distance_of(found[-1]),
        "squared_error": errors[-1],
        "frechet_distance_floor": judge.floor,
    }
    if len(found) == MEASURED:
        ratios = [error / base for error, base in zip(errors, _errors(teacher.one_step(noise), truth), strict=True)]
        measured |= {f"squared_error_{place}": error for place, error in enumerate(errors, start=1)}
        measured["worst_error_ratio"] = max(ratios)
    return measured


@training.kept
def _problem(
    config: ml_collections.ConfigDict, key: Array, noise_key: Array, steps: int, samples: int, cache_dir: str
) -> tuple[Teacher, common.Judge, Array, Array]:
    """What all arms of a seed share: the teacher, the judge, noise [N, ...] and signals [MEASURED, N, ...] of the truth."""
    teacher = trained_teacher(config, key, steps, cache_dir)
    judge = training.judge(teacher.run.config, cache_dir)
    noise = _noise(teacher, jnp.arange(samples), noise_key)
    return teacher, judge, noise, jax.jit(teacher.signals)(noise)[teacher.measured]


def trained_teacher(config: ml_collections.ConfigDict, key: Array, steps: int, cache_dir: str) -> Teacher:
    """The teacher of a seed, from the cache of runs."""
    trained = training.engine_run(config, key, cache_dir).run
    levels = trained.config.diffusion
    grid = consistency.karras_levels(steps + 1, sigma_min=levels.sigma_min, sigma_max=levels.sigma_max)[::-1]
    return Teacher(trained, task.conditional_denoiser(trained), grid)


def _errors(signals: Array, truth: Array) -> list[float]:
    """Mean squared errors at every level of truth [L, N, ...]."""
    return [float(error) for error in jnp.mean((signals - truth) ** 2, axis=tuple(range(1, truth.ndim)))]


# All give signals at the levels of `truth`, or samples alone, as [L or 1, N, ...]; the last are what is judged.


def _one_step(config: ml_collections.ConfigDict, teacher: Teacher, noise: Array, truth: Array, key: Array) -> Array:
    del config, key
    return jnp.broadcast_to(teacher.one_step(noise), truth.shape)


def _few_steps(config: ml_collections.ConfigDict, teacher: Teacher, noise: Array, truth: Array, key: Array) -> Array:
    del truth, key
    return teacher.few_steps(noise, config.student.regression_steps)[None]


def _many_steps(config: ml_collections.ConfigDict, teacher: Teacher, noise: Array, truth: Array, key: Array) -> Array:
    del config, teacher, noise, key
    return truth[-1:]


def _distilled(config: ml_collections.ConfigDict, teacher: Teacher, noise: Array, truth: Array, key: Array) -> Array:
    """A student trained by `config.student.method`."""
    del truth
    c = config.student
    fit_key, init_key = jax.random.split(key)
    start = teacher.run.state.average
    if not c.from_teacher:
        start = task.network(teacher.run.config, teacher.run.world).init(init_key)
    losses = {"bootstrap": _bootstrap_loss, "regression": _regression_loss}
    loss = partial(losses[c.method], c, teacher)
    optimizer = optax.adam(optax.cosine_decay_schedule(c.learning_rate, c.steps))
    rows = jnp.broadcast_to(jnp.arange(c.batch), (c.steps, c.batch))
    fit = jax.jit(lambda params, key: training.fit(loss, params, optimizer, rows, key)[0])
    learnt = jax.jit(teacher.student(fit(start, fit_key)))
    # The regression teaches one level alone, that from which the student knows the first estimate.
    levels = [teacher.top] if c.method == "regression" else teacher.grid[1:][teacher.measured]
    return jnp.stack([learnt(noise, jnp.full(len(noise), sigma)) for sigma in levels])


SAMPLERS = {"student": _distilled, "one_step": _one_step, "few_steps": _few_steps, "many_steps": _many_steps}


def _noise(teacher: Teacher, rows: Array, key: Array) -> Array:
    return randomness.normal(randomness.per_example_keys(key, rows), teacher.run.world.example_shape)


def _bootstrap_loss(c: ml_collections.ConfigDict, teacher: Teacher, params: Any, rows: Array, key: Array) -> Array:
    noise_key, level_key = jax.random.split(key)
    noise, student, levels = _noise(teacher, rows, noise_key), teacher.student(params), teacher.run.config.diffusion
    sigma, sigma_next = consistency.sample_level_pairs(
        level_key, len(rows), delta=c.delta, sigma_min=levels.sigma_min, sigma_max=levels.sigma_max
    )
    losses = consistency.bootstrap_loss(student, teacher.denoise, noise, sigma, sigma_next, max_weight=c.max_weight)
    if not c.boundary_weight:
        return jnp.mean(losses)
    boundary = consistency.bootstrap_boundary_loss(student, teacher.denoise, noise, sigma_max=levels.sigma_max)
    return jnp.mean(losses) + c.boundary_weight * jnp.mean(boundary)


def _regression_loss(c: ml_collections.ConfigDict, teacher: Teacher, params: Any, rows: Array, key: Array) -> Array:
    """The student against samples that the teacher draws from the same noise in a few steps."""
    noise = _noise(teacher, rows, key)
    target = jax.lax.stop_gradient(teacher.few_steps(noise, c.regression_steps))
    signal = teacher.student(params)(noise, jnp.full(len(rows), teacher.top))
    return jnp.mean(robust.mean_squared(signal, target))
