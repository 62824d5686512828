"""Entropic score distillation: a Gaussian fitted with exact scores, and views that all want to be the same mode."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax import Array

from experiments import models
from mlfuncs import diffusion, dropout, guidance, score_distillation

VECTORISED = True
DIMENSIONS = 2


def run(config: ml_collections.ConfigDict, key: Array) -> dict[str, Array]:
    """One of the two problems under one entropy weight."""
    problems = {"gaussian": gaussian, "views": views}
    return problems[config.problem](config, key)


def gaussian(config: ml_collections.ConfigDict, key: Array) -> dict[str, Array]:
    """Fits the mean and factor of a normal distribution to another by their exact scores, noised points at a time."""
    toy = config.gaussian
    target_key, start_key, steps_key = jax.random.split(key, 3)

    def uniform(key: Array) -> dict[str, Array]:
        mean_key, factor_key = jax.random.split(key)
        square = jax.random.uniform(factor_key, (DIMENSIONS, DIMENSIONS))
        return {"mean": jax.random.uniform(mean_key, (DIMENSIONS,)), "factor": square}

    target, start = uniform(target_key), uniform(start_key)
    target["factor"] += jnp.eye(DIMENSIONS)
    start["mean"] = target["mean"] + toy.distance * start["mean"]
    optimizer = optax.adamw(toy.learning_rate, weight_decay=0.0)

    def loss(params: dict[str, Array], key: Array) -> Array:
        level_key, seed_key, noise_key = jax.random.split(key, 3)
        # Levels of a batch are those of one noise schedule drawn at random, as in the authors' toy.
        betas = jax.random.uniform(level_key, (toy.batch,), minval=toy.beta_min, maxval=toy.beta_max)
        alpha = diffusion.alpha_bars(betas)
        sigma = jnp.sqrt((1 - alpha) / alpha)
        sample = params["mean"] + jax.random.normal(seed_key, (toy.batch, DIMENSIONS)) @ params["factor"].T
        noise = jax.random.normal(noise_key, sample.shape)
        noised = alpha[:, None] * sample + sigma[:, None] * noise
        fixed, own = jax.lax.stop_gradient((noised, params))
        score = functools.partial(diffusion.gaussian_score, fixed, alpha=alpha, sigma=sigma)
        # The score of a point; the toy's score distillation sampling subtracts the noise itself, whose mean is 0 too.
        point = noise if toy.plain else -noise / sigma[:, None]
        gradient = score_distillation.entropic_score_gradient(
            score(**target),
            score(**own),
            point,
            entropy_weight=config.entropy_weight,
            weight=(1 - alpha) * sigma,
        )
        return jnp.mean(score_distillation.gradient_surrogate(noised, gradient))

    def step(carry: Any, key: Array) -> tuple[Any, None]:
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, key), state, params)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(steps_key, toy.steps)
    (params, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), keys)
    return {
        "divergence": gaussian_divergence(params, target),
        "log_volume_gap": log_volume(params["factor"]) - log_volume(target["factor"]),
        "mean_error": jnp.linalg.norm(params["mean"] - target["mean"]),
    }


def log_volume(factor: Array) -> Array:
    """Log determinant of the covariance that a square factor makes."""
    return 2 * jnp.linalg.slogdet(factor)[1]


def gaussian_divergence(first: dict[str, Array], second: dict[str, Array]) -> Array:
    """KL divergence of one normal distribution from another, each a mean [D] and a factor [D, D] of its covariance."""
    whitened = jnp.linalg.solve(second["factor"], first["factor"])
    shift = jnp.linalg.solve(second["factor"], first["mean"] - second["mean"])
    volumes = log_volume(second["factor"]) - log_volume(first["factor"])
    return (jnp.sum(whitened**2) + jnp.sum(shift**2) - shift.size + volumes) / 2


def mixture_denoise(x: Array, sigma: Array, modes: Array, weights: Array, std: float) -> Array:
    """Exact clean estimate of x [B, D] at levels [B]: data of isotropic normal modes [K, D] with weights [K]."""
    sigma = sigma[:, None]
    variance = std**2 + sigma**2
    distances = jnp.sum((x[:, None] - modes) ** 2, axis=-1)
    share = jax.nn.softmax(jnp.log(weights) - distances / (2 * variance), axis=-1)
    return (std**2 * x + sigma**2 * (share @ modes)) / variance


def views(config: ml_collections.ConfigDict, key: Array) -> dict[str, Array]:
    """Trains a generator of points seen by several cameras, and a critic that follows it with and without the camera."""
    world = config.views
    modes, weights = jnp.asarray(world.modes), jnp.asarray(world.weights)
    generator = _perceptron(world.widths, world.latent + world.cameras)
    critic = _perceptron(world.widths, DIMENSIONS + 1 + world.cameras)
    generator_key, critic_key, steps_key, test_key = jax.random.split(key, 4)
    params = {"generator": generator.init(generator_key), "critic": critic.init(critic_key)}
    optimizers = {
        "generator": optax.adam(world.generator_learning_rate),
        "critic": optax.adam(world.critic_learning_rate),
    }

    def generate(params: Any, key: Array, cameras: Array) -> Array:
        z = world.spread * jax.random.normal(key, (cameras.shape[0], world.latent))
        return generator.apply(params, jnp.concatenate([z, cameras], axis=-1))["logits"]

    def denoise(params: Any, x: Array, sigma: Array, cameras: Array) -> Array:
        def network(x: Array, level: Array) -> Array:
            return critic.apply(params, jnp.concatenate([x, level[:, None], cameras], axis=-1))["logits"]

        return diffusion.preconditioned_denoise(network, x, sigma, sigma_data=world.sigma_data)

    def drawn(key: Array) -> tuple[Array, Array, Array, Array]:
        camera_key, seed_key, level_key, noise_key = jax.random.split(key, 4)
        cameras = jax.nn.one_hot(jax.random.randint(camera_key, (world.batch,), 0, world.cameras), world.cameras)
        sigma = jnp.exp(
            jax.random.uniform(
                level_key, (world.batch,), minval=jnp.log(world.sigma_min), maxval=jnp.log(world.sigma_max)
            )
        )
        return cameras, sigma, jax.random.normal(noise_key, (world.batch, DIMENSIONS)), seed_key

    def generator_loss(params: Any, critic_params: Any, key: Array) -> Array:
        cameras, sigma, noise, seed_key = drawn(key)
        sample = generate(params, seed_key, cameras)
        noised = jax.lax.stop_gradient(sample) + sigma[:, None] * noise
        real = mixture_denoise(noised, sigma, modes, weights, world.std)
        nowhere = jnp.zeros_like(cameras)
        fake = guidance.classifier_free_guidance(
            denoise(critic_params, noised, sigma, nowhere),
            denoise(critic_params, noised, sigma, cameras),
            scale=1 - config.entropy_weight,
        )
        gradient = score_distillation.distribution_matching_gradient(sample, real, fake, normalize=False)
        return jnp.mean(score_distillation.gradient_surrogate(sample, gradient))

    def critic_loss(params: Any, generator_params: Any, key: Array) -> Array:
        draw_key, mask_key = jax.random.split(key)
        cameras, sigma, noise, seed_key = drawn(draw_key)
        sample = generate(generator_params, seed_key, cameras)
        kept = dropout.bernoulli_mask(mask_key, (world.batch, 1), rate=world.camera_dropout)
        seen = functools.partial(denoise, params, cameras=dropout.apply_mask(cameras, kept))
        losses = score_distillation.denoising_score_loss(seen, sample, noise, sigma, sigma_data=world.sigma_data)
        return jnp.mean(losses)

    def update(part: str, gradients: Any, params: Any, states: Any) -> tuple[Any, Any]:
        updates, state = optimizers[part].update(gradients, states[part], params[part])
        return params | {part: optax.apply_updates(params[part], updates)}, states | {part: state}

    def critic_step(carry: Any, key: Array) -> tuple[Any, None]:
        params, states = carry
        gradients = jax.grad(critic_loss)(params["critic"], params["generator"], key)
        return update("critic", gradients, params, states), None

    def step(carry: Any, key: Array) -> tuple[Any, None]:
        keys = jax.random.split(key, 1 + world.critic_updates)
        (params, states), _ = jax.lax.scan(critic_step, carry, keys[1:])
        gradients = jax.grad(generator_loss)(params["generator"], params["critic"], keys[0])
        return update("generator", gradients, params, states), None

    states = {part: optimizer.init(params[part]) for part, optimizer in optimizers.items()}
    (params, _), _ = jax.lax.scan(step, (params, states), jax.random.split(steps_key, world.steps))
    cameras = jnp.repeat(jnp.eye(world.cameras), world.draws, axis=0)
    samples = generate(params["generator"], test_key, cameras)
    return mode_statistics(samples.reshape(world.cameras, world.draws, -1), modes)


def mode_statistics(samples: Array, modes: Array, *, least: float = 0.05) -> dict[str, Array]:
    """How samples [cameras, N, D] fall on modes [K, D]: each belongs to the nearest."""
    distances = jnp.linalg.norm(samples[:, :, None] - modes, axis=-1)
    shares = jnp.mean(jax.nn.one_hot(jnp.argmin(distances, axis=-1), modes.shape[0]), axis=1)
    return {
        "entropy": _entropy(jnp.mean(shares, axis=0)),
        "entropy_of_a_view": jnp.mean(_entropy(shares)),
        "modes_hit": jnp.sum(jnp.mean(shares, axis=0) > least),
        "first_mode_share": jnp.mean(shares[:, 0]),
        "mode_distance": jnp.mean(jnp.min(distances, axis=-1)),
    }


def _entropy(shares: Array) -> Array:
    return jnp.sum(jax.scipy.special.entr(shares), axis=-1)


def _perceptron(widths: tuple[int, ...], inputs: int) -> models.Model:
    config = ml_collections.ConfigDict({"name": "perceptron", "widths": tuple(widths), "activation": "gelu"})
    return models.build(config, example_shape=(inputs,), num_classes=DIMENSIONS)
