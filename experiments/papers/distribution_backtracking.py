"""Distribution backtracking: a student far from the data follows degraded teachers home, or asks the teacher at once."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax import Array

from experiments import models
from mlfuncs import diffusion, metrics, score_distillation

VECTORISED = True
DIMENSIONS = 2
MODES = 8


def mixture(key: Array, size: int, *, radius: float, std: float) -> Array:
    """Draws [size, 2] from eight normal modes of one deviation, evenly on a circle about the origin."""
    mode_key, noise_key = jax.random.split(key)
    angles = 2 * math.pi / MODES * jax.random.randint(mode_key, (size,), 0, MODES)
    centres = radius * jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    return centres + std * jax.random.normal(noise_key, (size, DIMENSIONS))


def empirical_denoise(x: Array, sigma: Array, data: Array) -> Array:
    """Exact clean estimate of x [B, D] at levels [B], where the data are N points [N, D] alike."""
    distances = jnp.sum((x[:, None] - data) ** 2, axis=-1)
    return jax.nn.softmax(-distances / (2 * sigma[:, None] ** 2), axis=-1) @ data


def updates_until(curve: Array, threshold: Array, *, before: Array | int, every: int) -> Array:
    """Updates until a curve [N], measured every so many of them, first is at the threshold; NaN where it never is."""
    below = curve <= threshold
    return jnp.where(jnp.any(below), before + every * (jnp.argmax(below) + 1), jnp.nan)


def trailing_mean(values: Array, window: int) -> Array:
    """Means over the last `window` of values [N] at every place, over all there are at the first places."""
    # Not from sums of all: a curve that once was huge leaves no digits for what comes after.
    places = jnp.arange(values.size)[:, None] - jnp.arange(window)
    return jnp.sum(jnp.where(places < 0, 0.0, values[places]), axis=1) / jnp.sum(places >= 0, axis=1)


def prepare(shared: ml_collections.ConfigDict, key: Array) -> dict[str, Any]:
    """A teacher trained near the data, an untrained student far from them, and how close direct distillation gets."""
    teacher_key, student_key, init_key, distil_key = jax.random.split(key, 4)
    optimizer = optax.adam(optax.cosine_decay_schedule(shared.teacher_learning_rate, shared.teacher_steps))

    def step(carry: Any, key: Array) -> tuple[Any, None]:
        data_key, loss_key = jax.random.split(key)
        data = mixture(data_key, shared.batch, **shared.mixture)
        return _critic_step(shared, optimizer, carry, data, loss_key), None

    teacher = _denoiser(shared).init(init_key)
    keys = jax.random.split(teacher_key, shared.teacher_steps)
    (teacher, _), _ = jax.lax.scan(step, (teacher, optimizer.init(teacher)), keys)
    student = _student(shared).init(student_key)
    # The last layer's bias is all that sets it apart from a network as it usually starts.
    student["last"]["bias"] += jnp.asarray(shared.offset)
    start = {"teacher": teacher, "student": student}
    direct = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), teacher)
    return start | {"direct": distil(shared, start, direct, distil_key, steps=shared.updates, interval=1)}


def run(config: ml_collections.ConfigDict, key: Array, shared: dict[str, Any]) -> dict[str, Array]:
    """Distils along a recorded path of teachers, or from the teacher alone, within one number of updates."""
    fixed, direct, recorded = config.shared, shared["direct"], config.checkpoints * config.recording_interval
    found = direct
    if config.checkpoints:
        distil_key = jax.random.split(key, 4)[3]  # that of `prepare`
        path = record(config, shared, jax.random.fold_in(distil_key, 0))
        if not config.follow:
            path = jax.tree.map(lambda leaf: leaf[jnp.array([0, -1])], path)
        found = distil(fixed, shared, path, distil_key, steps=fixed.updates - recorded, interval=config.interval)

    # A mean over measurements: the first chance dip of one is no arrival.
    curve, aim = (trailing_mean(each["distance"], fixed.window) for each in (found, direct))
    iterations = updates_until(curve, aim[-1], before=recorded, every=fixed.every)
    return {
        "iterations": iterations,
        "iterations_ratio": iterations / updates_until(aim, aim[-1], before=0, every=fixed.every),
        "final_distance": curve[-1],
        "mismatch": found["mismatch"],
        "initial_distance": found["initial_distance"],
    }


def record(config: ml_collections.ConfigDict, start: dict[str, Any], key: Array) -> Any:
    """Teachers fine-tuned on the untrained student's samples, stacked with the most degraded first and the teacher last."""
    fixed, teacher = config.shared, start["teacher"]
    optimizer = optax.adam(config.recording_learning_rate)

    def step(carry: Any, key: Array) -> tuple[Any, None]:
        seed_key, loss_key = jax.random.split(key)
        sample = _generate(fixed, start["student"], seed_key, fixed.batch)
        return _critic_step(fixed, optimizer, carry, sample, loss_key), None

    def stretch(carry: Any, key: Array) -> tuple[Any, Any]:
        carry, _ = jax.lax.scan(step, carry, jax.random.split(key, config.recording_interval))
        return carry, carry[0]

    keys = jax.random.split(key, config.checkpoints)
    _, degraded = jax.lax.scan(stretch, (teacher, optimizer.init(teacher)), keys)
    return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest])[::-1], teacher, degraded)


def distil(
    fixed: ml_collections.ConfigDict, start: dict[str, Any], path: Any, key: Array, *, steps: int, interval: int
) -> dict[str, Array]:
    """Moves the student by the score differences of critic and path -> {"distance": curve, "mismatch", ...}.

    The critic starts as the first of the path, and the targets are the others in turn.
    """
    steps_key, data_key, test_key, mismatch_key = jax.random.split(key, 4)
    checkpoints = jax.tree.leaves(path)[0].shape[0]
    student_optimizer = optax.adam(fixed.student_learning_rate)
    critic_optimizer = optax.adam(fixed.critic_learning_rate)
    data = mixture(data_key, fixed.draws, **fixed.mixture)

    def noised(student: Any, key: Array) -> tuple[Array, Array, Array]:
        seed_key, level_key, noise_key = jax.random.split(key, 3)
        sample = _generate(fixed, student, seed_key, fixed.batch)
        sigma = _levels(fixed, level_key)
        return (
            sample,
            jax.lax.stop_gradient(sample) + sigma[:, None] * jax.random.normal(noise_key, sample.shape),
            sigma,
        )

    def loss(student: Any, critic: Any, index: Array, key: Array) -> Array:
        sample, *given = noised(student, key)
        real = _denoise(fixed, score_distillation.select_checkpoint(path, index), *given)
        gradient = score_distillation.distribution_matching_gradient(sample, real, _denoise(fixed, critic, *given))
        return jnp.mean(score_distillation.gradient_surrogate(sample, gradient))

    def distance(student: Any) -> Array:
        return metrics.frechet_distance(_generate(fixed, student, test_key, fixed.draws), data)

    def step(carry: Any, given: tuple[Array, Array]) -> tuple[Any, None]:
        (student, student_state), critic = carry
        number, key = given
        student_key, seed_key, loss_key = jax.random.split(key, 3)
        index = score_distillation.backtracking_index(number, checkpoints, interval=interval)
        gradients = jax.grad(loss)(student, critic[0], index, student_key)
        updates, student_state = student_optimizer.update(gradients, student_state)
        student = optax.apply_updates(student, updates)
        sample = _generate(fixed, student, seed_key, fixed.batch)
        return ((student, student_state), _critic_step(fixed, critic_optimizer, critic, sample, loss_key)), None

    def stretch(carry: Any, given: tuple[Array, Array]) -> tuple[Any, Array]:
        carry, _ = jax.lax.scan(step, carry, given)
        return carry, distance(carry[0][0])

    student, critic = start["student"], score_distillation.select_checkpoint(path, 0)
    # The critic starts as a target, from which nothing could be told: what it is to become is the judge of both arms.
    first = score_distillation.backtracking_index(0, checkpoints, interval=interval)
    sample, noisy, sigma = noised(student, mismatch_key)
    target = _denoise(fixed, score_distillation.select_checkpoint(path, first), noisy, sigma)
    others = _generate(fixed, student, jax.random.fold_in(mismatch_key, 0), fixed.draws)
    own = empirical_denoise(noisy, sigma, others)
    stretches = steps // fixed.every
    given = jnp.arange(steps), jax.random.split(steps_key, steps)
    given = jax.tree.map(lambda leaf: leaf.reshape(stretches, fixed.every, *leaf.shape[1:]), given)
    carry = (student, student_optimizer.init(student)), (critic, critic_optimizer.init(critic))
    _, curve = jax.lax.scan(stretch, carry, given)
    return {
        "distance": curve,
        "initial_distance": distance(student),
        "mismatch": jnp.mean(score_distillation.score_mismatch(own, target, sample)),
    }


def _critic_step(
    fixed: ml_collections.ConfigDict, optimizer: optax.GradientTransformation, carry: Any, sample: Array, key: Array
) -> Any:
    """One update of a denoiser and its optimiser's state on samples [B, 2]."""
    level_key, noise_key = jax.random.split(key)
    sigma, noise = _levels(fixed, level_key), jax.random.normal(noise_key, sample.shape)

    def loss(params: Any) -> Array:
        denoise = functools.partial(_denoise, fixed, params)
        losses = score_distillation.denoising_score_loss(denoise, sample, noise, sigma, sigma_data=fixed.sigma_data)
        return jnp.mean(losses)

    params, state = carry
    updates, state = optimizer.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state


def _levels(fixed: ml_collections.ConfigDict, key: Array) -> Array:
    """Levels [batch], evenly over the places of a grid that is finest near its lowest."""
    grid = diffusion.karras_sigmas(fixed.levels, sigma_min=fixed.sigma_min, sigma_max=fixed.sigma_max)[:-1]
    return grid[jax.random.randint(key, (fixed.batch,), 0, fixed.levels)]


def _generate(fixed: ml_collections.ConfigDict, params: Any, key: Array, size: int) -> Array:
    return _student(fixed).apply(params, jax.random.normal(key, (size, DIMENSIONS)))["logits"]


def _denoise(fixed: ml_collections.ConfigDict, params: Any, x: Array, sigma: Array) -> Array:
    def network(x: Array, level: Array) -> Array:
        return _denoiser(fixed).apply(params, jnp.concatenate([x, level[:, None]], axis=-1))["logits"]

    return diffusion.preconditioned_denoise(network, x, sigma, sigma_data=fixed.sigma_data)


def _denoiser(fixed: ml_collections.ConfigDict) -> models.Model:
    return _perceptron(tuple(fixed.widths), DIMENSIONS + 1)


def _student(fixed: ml_collections.ConfigDict) -> models.Model:
    return _perceptron(tuple(fixed.widths), DIMENSIONS)


@functools.cache
def _perceptron(widths: tuple[int, ...], inputs: int) -> models.Model:
    config = ml_collections.ConfigDict({"name": "perceptron", "widths": widths, "activation": "gelu"})
    return models.build(config, example_shape=(inputs,), num_classes=DIMENSIONS)
