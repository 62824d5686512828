"""Distilled latent optimisation: noise whose digit meets a control, searched for through a sampler or through one jump."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax import Array

from experiments import models, worlds
from experiments.papers import training
from experiments.tasks import diffusion
from mlfuncs import consistency, guidance
from mlfuncs import diffusion as methods

VECTORISED = False
MODELS = ("teacher", "student")

Error = Callable[[Array, Array], Array]  # samples and targets [B, ...] -> [B]
# Parameters are arguments, so that one compiled program serves all seeds.
Network = Callable[
    ..., Array
]  # of the teacher (params, x, sigma), of the student (params, x, sigma, sigma_to) -> clean estimate
Sampler = Callable[[Any, Array], Array]  # (params, unit normal latent [B, ...]) -> samples [B, ...]
Search = Callable[
    [Array, int, float], Array
]  # (targets [B, ...], number of the draw, learning rate) -> latents [B, ...]


def curve(x: Array) -> Array:
    """Sums of the columns of pictures [B, H, W, 1] in [-1, 1], in pixels that are all ink: [B, W]."""
    return jnp.sum((x[..., 0] + 1) / 2, axis=1)


def intensity_error(x: Array, target: Array) -> Array:
    """Mean squared distance [B] of curves of column sums."""
    return jnp.mean((curve(x) - curve(target)) ** 2, axis=-1)


def outpainting_error(x: Array, target: Array) -> Array:
    """Mean squared error [B] of the left half, which is given."""
    width = x.shape[2]
    return guidance.masked_reconstruction_loss(x, target, jnp.arange(width)[:, None] < width // 2)


CONTROLS = {"intensity": intensity_error, "outpainting": outpainting_error}


def prepare(shared: ml_collections.ConfigDict, key: Array) -> dict[str, Any]:
    """Parameters of a diffusion model, and of the trajectory student that is distilled from it."""
    trained = training.engine_run(shared.teacher, key, shared.cache_dir).run
    data = trained.world.to_model(jnp.asarray(trained.world.train.read(np.arange(len(trained.world.train)))["image"]))
    teacher = trained.state.average
    return {"teacher": teacher, "student": distil(shared, trained.world, teacher, data, jax.random.fold_in(key, 1))}


def distil(shared: ml_collections.ConfigDict, world: worlds.World, teacher: Any, data: Array, key: Array) -> Any:
    """Parameters of a student that starts as the teacher and learns to jump between any two levels of the grid."""
    row_key, init_key, train_key = jax.random.split(key, 3)
    c, grid, lowest = shared.student, level_grid(shared), shared.teacher.diffusion.sigma_min
    denoise, jump_estimate = caller(shared, world, "teacher"), caller(shared, world, "student")

    def loss(params: Any, rows: Array, key: Array, *, teacher: Any, data: Array) -> Array:
        noise_key, level_key = jax.random.split(key)
        sigma, mid, low = (grid[place] for place in jump_places(level_key, c.batch, len(grid)))
        noised = data[rows] + sigma[:, None, None, None] * jax.random.normal(noise_key, data[rows].shape)
        student, own = partial(jump_estimate, params), partial(denoise, teacher)
        losses = consistency.trajectory_distillation_loss(student, own, noised, sigma, mid, low, sigma_min=lowest)
        return jnp.mean(losses)

    start = {**network_of(shared, world, "student").init(init_key), **teacher}
    rows = training.batches(row_key, len(data), c.batch, c.steps)
    optimizer = optax.adam(optax.cosine_decay_schedule(c.learning_rate, c.steps))

    @jax.jit
    def fit(start: Any, rows: Array, key: Array, teacher: Any, data: Array) -> Any:
        return training.fit(partial(loss, teacher=teacher, data=data), start, optimizer, rows, key)[0]

    return fit(start, rows, train_key, teacher, data)


def level_grid(shared: ml_collections.ConfigDict) -> Array:
    """The levels of the student's training, from the highest down."""
    levels = shared.teacher.diffusion
    return methods.karras_sigmas(shared.student.levels, sigma_min=levels.sigma_min, sigma_max=levels.sigma_max)[:-1]


def jump_places(key: Array, batch: int, levels: int) -> tuple[Array, Array, Array]:
    """Places [batch] in a falling grid: a level, the next one, and a uniform one not above that."""
    first_key, last_key = jax.random.split(key)
    first = jax.random.randint(first_key, (batch,), 0, levels - 1)
    return first, first + 1, jax.random.randint(last_key, (batch,), first + 1, levels)


def network_of(shared: ml_collections.ConfigDict, world: worlds.World, model: str) -> models.Model:
    """The teacher's network, or the same with an ear for the level to which a jump leads."""
    config = ml_collections.ConfigDict(shared.teacher.to_dict())
    config.model.target_condition = model == "student"
    return diffusion.network(config, world)


def caller(shared: ml_collections.ConfigDict, world: worlds.World, model: str) -> Network:
    """The teacher as a denoiser, or the student as a trajectory model."""
    denoise = models.preconditioned(network_of(shared, world, model), sigma_data=shared.teacher.diffusion.sigma_data)
    if model == "teacher":
        return denoise
    # Both ends of a jump are heard on one scale, that of the preconditioning.
    return lambda params, x, sigma, sigma_to: denoise(params, x, sigma, c_target=jnp.log(sigma_to) / 4)


def sampler(shared: ml_collections.ConfigDict, network: Network, model: str, calls: int) -> Sampler:
    """A deterministic map from latents to samples that asks the network so many times.

    Nothing is recomputed in its backward pass: networks of this size leave room for all that it needs, and recomputing would
    double the calls of the longer sampler.
    """
    levels = shared.teacher.diffusion
    if model == "teacher":
        sigmas = methods.karras_sigmas(calls, sigma_min=levels.sigma_min, sigma_max=levels.sigma_max)
        return lambda params, latent: methods.sample_euler(partial(network, params), levels.sigma_max * latent, sigmas)
    grid = level_grid(shared)
    # Only levels that the student was trained at, evenly over their places.
    sigmas = grid[np.round(np.linspace(0, len(grid) - 1, calls + 1)[:-1]).astype(int)]

    def sample(params: Any, latent: Array) -> Array:
        start, predict = levels.sigma_max * latent, partial(network, params)
        # The key is not used: nothing is added on the way.
        return consistency.trajectory_sample(
            jax.random.key(0), predict, start, sigmas=sigmas, sigma_min=levels.sigma_min
        )

    return sample


def run(config: ml_collections.ConfigDict, key: Array, given: dict[str, Any]) -> dict[str, float]:
    """Searches latents for both controls, decodes them, and measures what the decoded digits miss and look like."""
    if config.model not in MODELS:
        raise ValueError(f"model must be one of {', '.join(MODELS)}, got {config.model!r}")
    judge = training.judge(config.shared.teacher, config.cache_dir)
    world = judge.world
    network, params = caller(config.shared, world, config.model), given[config.model]
    decode = partial(jax.jit(sampler(config.shared, network, config.model, config.decode_calls)), params)
    test, validation = targets(world, jax.random.fold_in(key, 2), config.targets)
    measured = {
        "search_evaluations": float(config.search_calls * config.search_steps),
        "decode_evaluations": float(config.decode_calls),
    }
    for name, error in CONTROLS.items():
        find = search(config, network, params, error, jax.random.fold_in(key, 3))
        rate = _best_rate(config, find, decode, error, validation)
        found = [find(test, draw, rate) for draw in range(1, config.draws + 1)]
        samples = [decode(latent) for latent in found]
        measured |= {
            f"{name}_error": float(np.mean([error(some, test) for some in samples])),
            f"{name}_frechet_distance": judge.distance_of(jnp.concatenate(samples)),
            # Over that of the shell where normal noise lies.
            f"{name}_latent_norm": float(np.mean([jnp.sqrt(jnp.mean(z**2, axis=(1, 2, 3))) for z in found])),
            f"{name}_learning_rate": rate,
        }
    return measured


def targets(world: worlds.World, key: Array, number: int) -> tuple[Array, Array]:
    """Two sets of so many held-out digits: those that are measured, and those that learning rates are chosen on."""
    rows = np.asarray(jax.random.permutation(key, len(world.test)))[: 2 * number]
    pictures = world.to_model(jnp.asarray(world.test.read(rows)["image"]))
    return pictures[:number], pictures[number:]


def search(config: ml_collections.ConfigDict, network: Network, params: Any, error: Error, key: Array) -> Search:
    """The search of an arm; of one draw all arms have the same starts."""

    def start(target: Array, draw: int) -> Array:
        return jax.random.normal(jax.random.fold_in(key, draw), target.shape)

    if not config.search_steps:
        return lambda target, draw, rate: start(target, draw)
    sample = sampler(config.shared, network, config.model, config.search_calls)

    @jax.jit
    def optimize(params: Any, latent: Array, target: Array, rate: Array | float) -> Array:
        return guidance.optimize_latent(
            partial(sample, params),
            lambda x: error(x, target),
            latent,
            num_steps=config.search_steps,
            learning_rate=rate,
            renormalize=config.renormalize,
        )["latent"]

    return lambda target, draw, rate: optimize(params, start(target, draw), target, rate)


def _best_rate(
    config: ml_collections.ConfigDict, find: Search, decode: Callable[[Array], Array], error: Error, target: Array
) -> float:
    """The learning rate with the least error on targets that are not measured; 0 where nothing is searched for."""
    if not config.search_steps:
        return 0.0
    errors = [float(jnp.mean(error(decode(find(target, 0, rate)), target))) for rate in config.learning_rates]
    return float(config.learning_rates[int(np.argmin(errors))])
