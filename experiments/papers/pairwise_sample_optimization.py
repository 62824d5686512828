"""Pairwise sample optimisation of a few-step model of digits, towards more ink, against denoising the most inked digits."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax import Array

from experiments import models
from experiments.papers import training
from mlfuncs import consistency, diffusion, metrics, preference, vision

VECTORISED = False

Function = Callable[[Array, Array], Array]  # f(x [B, ...], sigma [B]) -> clean x


class Problem(NamedTuple):
    """A few-step model, and the digits that it is to draw more of."""

    function: Callable[[Any], Function]  # of parameters
    start: Any  # parameters of the model before tuning, also the frozen reference
    levels: Array  # [K + 1] of the sampler, the last one 0
    chosen: Array  # [N, ...] examples of much reward


def run(config: ml_collections.ConfigDict, key: Array) -> dict[str, Any]:
    """Trains `config.run` from the seed of the key, tunes it by `config.method`, and measures what it draws in few steps."""
    if config.method not in ("none", *LOSSES):
        raise ValueError(f"method must be one of {', '.join(('none', *LOSSES))}, got {config.method!r}")
    problem, draw = _problem(config.run, key, config.levels, config.share, config.samples, config.cache_dir)
    params_key, test_key = jax.random.split(key)
    params = problem.start if config.method == "none" else _tune(config, problem, params_key)
    outputs = training.classifier(config.run.evaluation.features, config.cache_dir)
    before, drawn = draw(problem.start, test_key), draw(params, test_key)
    wanted, reward = jnp.mean(ink(problem.chosen)), jnp.mean(ink(drawn))
    return {
        "reward": reward,
        "gap_closed": (reward - jnp.mean(ink(before))) / (wanted - jnp.mean(ink(before))),
        "frechet_distance": metrics.frechet_distance(
            *(outputs(images)["features"] for images in (problem.chosen, drawn))
        ),
        "sharpness": _variation(drawn) / _variation(problem.chosen),
    }


def ink(images: Array) -> Array:
    """Reward [B]: mean darkness of images as models see them, 0 where all is paper and 1 where all is ink."""
    return jnp.mean((jnp.clip(images, -1, 1) + 1) / 2, axis=tuple(range(1, images.ndim)))


def most_inked(images: Array, share: float) -> Array:
    """The given share of images, those with most ink."""
    return images[jnp.argsort(-ink(images))[: max(2, int(share * len(images)))]]


def _variation(images: Array) -> Array:
    return jnp.mean(vision.total_variation(jnp.clip(images, -1, 1)))


@training.kept
def _problem(
    config: ml_collections.ConfigDict, key: Array, levels: tuple[float, ...], share: float, samples: int, cache_dir: str
) -> tuple[Problem, Callable[[Any, Array], Array]]:
    """What all arms of a seed share, and compiled `draw(params, key) -> samples` in few steps."""
    base = training.engine_run(config, key, cache_dir).run
    world, c = base.world, base.config.consistency
    model = models.build(base.config.model, example_shape=world.example_shape, num_classes=world.num_classes)

    def function(params: Any) -> Function:
        network = lambda x, c_noise: model.apply(params, x, c_noise)  # noqa: E731
        return consistency.consistency_function(network, sigma_data=c.sigma_data, sigma_min=c.sigma_min)

    images = world.to_model(jnp.asarray(world.train.read(np.arange(len(world.train)))["image"]))
    chosen = most_inked(images, share)
    problem = Problem(function, base.state.average, jnp.asarray((*levels, 0.0)), chosen)
    return problem, jax.jit(lambda params, key: trajectory(problem, params, key, samples)[-1])


def trajectory(problem: Problem, params: Any, key: Array, num: int) -> Array:
    """States [K + 1, num, ...] of Euler-ancestral sampling, one at each level."""
    f, levels = problem.function(params), problem.levels
    start_key, steps_key = jax.random.split(key)
    start = levels[0] * jax.random.normal(start_key, (num, *problem.chosen.shape[1:]))

    def step(x: Array, given: Any) -> tuple[Array, Array]:
        key, sigma, sigma_next = given
        law = diffusion.ancestral_transition(x, f(x, jnp.full(num, sigma)), sigma, sigma_next)
        x = law["mean"] + jnp.expand_dims(law["std"], range(1, x.ndim)) * jax.random.normal(key, x.shape)
        return x, x

    keys = jax.random.split(steps_key, len(levels) - 1)
    _, states = jax.lax.scan(step, start, (keys, levels[:-1], levels[1:]))
    return jnp.concatenate([start[None], states])


def transition_log_probs(problem: Problem, params: Any, states: Array) -> Array:
    """Log-probabilities [K - 1, B] of the transitions of a trajectory; the last one, to level 0, is no random one."""
    x, following = (part.reshape(-1, *states.shape[2:]) for part in (states[:-2], states[1:-1]))
    sigma, sigma_next = (jnp.repeat(part, states.shape[1]) for part in (problem.levels[:-2], problem.levels[1:-1]))
    law = diffusion.ancestral_transition(x, problem.function(params)(x, sigma), sigma, sigma_next)
    return diffusion.gaussian_log_prob(following, law["mean"], law["std"]).reshape(-1, states.shape[1])


def online_loss(config: ml_collections.ConfigDict, problem: Problem, params: Any, rows: Array, key: Array) -> Array:
    """Two trajectories of the model as it is, the one with more ink preferred in each of its transitions."""
    batch = len(rows)
    states = jax.lax.stop_gradient(trajectory(problem, params, key, 2 * batch))
    reward = ink(states[-1])
    first_preferred = preference.preference_signs(reward[:batch], reward[batch:])["first"] > 0

    def paired(params: Any) -> tuple[Array, Array]:
        found = transition_log_probs(problem, params, states)
        first, second = found[:, :batch], found[:, batch:]
        preferred, other = jnp.where(first_preferred, first, second), jnp.where(first_preferred, second, first)
        return preferred.ravel(), other.ravel()

    (preferred, other), (preferred_reference, other_reference) = paired(params), paired(problem.start)
    return jnp.mean(
        preference.pairwise_sample_loss(
            preferred, preferred_reference, other, other_reference, beta=config.beta, clip=config.clip
        )
    )


def denoising_loss(config: ml_collections.ConfigDict, problem: Problem, params: Any, rows: Array, key: Array) -> Array:
    """The ordinary diffusion loss on digits with much ink, at the levels that a diffusion model is trained at."""
    c, data = config.run.teacher.diffusion, problem.chosen[rows]
    level_key, noise_key = jax.random.split(key)
    sigma = diffusion.sample_training_sigmas(level_key, (len(rows),), mean=c.mean, std=c.std)
    noise = jax.random.normal(noise_key, data.shape)
    return jnp.mean(diffusion.edm_loss(problem.function(params), data, noise, sigma, sigma_data=c.sigma_data))


LOSSES = {"denoising": denoising_loss, "online": online_loss}


def _tune(config: ml_collections.ConfigDict, problem: Problem, key: Array) -> Any:
    """Parameters after `config.steps` updates."""
    rows_key, loss_key = jax.random.split(key)
    rows = training.batches(rows_key, len(problem.chosen), config.batch, config.steps)

    # Arrays go in as arguments: as constants they would make another program of every seed.
    def tuned(start: Any, chosen: Array, rows: Array, key: Array, learning_rate: Array) -> Any:
        given = problem._replace(start=start, chosen=chosen)
        optimizer = optax.chain(
            optax.clip_by_global_norm(config.gradient_norm), optax.adamw(learning_rate, weight_decay=0.0)
        )
        loss = lambda params, rows, key: LOSSES[config.method](config, given, params, rows, key)  # noqa: E731
        return training.fit(loss, start, optimizer, rows, key)[0]

    return jax.jit(tuned)(problem.start, problem.chosen, rows, loss_key, config.learning_rate)
