"""Score forgetting distillation of digits: a one-step generator that answers the label of a forgotten class with another."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax import Array

from experiments import models, runs
from experiments.papers import training
from experiments.tasks import diffusion, score_distillation
from mlfuncs import diffusion as methods
from mlfuncs import metrics, unlearning

VECTORISED = False
MODELS = ("generator", "teacher", "ascent")

Draw = Callable[[Array, Array], Array]  # (key, labels [N]) -> examples [N, ...]


def run(config: ml_collections.ConfigDict, key: Array) -> dict[str, float]:
    """Trains what `config.model` names, from a teacher of the same seed, and asks an independent classifier."""
    if config.model not in MODELS:
        raise ValueError(f"model must be one of {', '.join(MODELS)}, got {config.model!r}")
    train = ml_collections.ConfigDict(config.run.to_dict())
    train.teacher.seed = int(jax.random.key_data(key)[-1])
    forgotten = train.forgetting.label
    if config.model == "generator":
        trained = training.engine_run(train, key, config.cache_dir).run
        draw: Draw = jax.jit(partial(_draw_once, score_distillation.generator(trained), trained.world.example_shape))
    else:
        trained = training.engine_run(train.teacher, key, config.cache_dir).run
    judge = _Judge(config, trained, forgotten)
    if config.model == "teacher":  # told another class where the forgotten one is asked for
        heun = _heun(config, trained)
        told = lambda labels: unlearning.override_labels(labels, forgotten, override=train.forgetting.override)  # noqa: E731
        draw = lambda key, labels: heun(trained.state.average, key, told(labels))  # noqa: E731
    if config.model == "ascent":
        return _ascend(config, trained, judge, key)
    return judge.measure(draw, key)


def _draw_once(generate: Callable[..., Array], shape: tuple[int, ...], key: Array, labels: Array) -> Array:
    return generate(jax.random.normal(key, (labels.shape[0], *shape)), labels)


def _heun(config: ml_collections.ConfigDict, trained: runs.Run) -> Callable[[Any, Array, Array], Array]:
    """`draw(params, key, labels)` by the steps of a diffusion model."""
    draw = diffusion.sampler(trained.config, trained.world)
    return lambda params, key, labels: draw(params, key, {"labels": labels}, 1.0, len(labels), config.heun_steps)


class _Judge:
    """An independent classifier's view of samples under the forgotten label and under all others."""

    def __init__(self, config: ml_collections.ConfigDict, trained: runs.Run, forgotten: int):
        world = trained.world
        self._outputs = training.classifier(config.run.evaluation.features, config.cache_dir)
        self.forgotten, self.samples = forgotten, config.samples
        examples = world.train.read(np.arange(len(world.train)))
        kept = world.to_model(jnp.asarray(examples["image"][examples["label"] != forgotten]))
        self._real = self._outputs(kept)["features"]
        self._others = jnp.asarray([label for label in range(world.num_classes) if label != forgotten])

    def unlearnt(self, draw: Draw, key: Array) -> float:
        """Share of samples under the forgotten label that are of another class."""
        samples = draw(key, jnp.full(self.samples // 4, self.forgotten))
        return float(jnp.mean(jnp.argmax(self._outputs(samples)["logits"], -1) != self.forgotten))

    def measure(self, draw: Draw, key: Array) -> dict[str, float]:
        labels = self._others[jnp.arange(self.samples) % len(self._others)]
        outputs = self._outputs(draw(jax.random.fold_in(key, 1), labels))
        return {
            "unlearning_accuracy": self.unlearnt(draw, jax.random.fold_in(key, 0)),
            "retained_accuracy": float(training.accuracy(outputs["logits"], labels)),
            "frechet_distance": float(metrics.frechet_distance(self._real, outputs["features"])),
        }


def _ascend(config: ml_collections.ConfigDict, trained: runs.Run, judge: _Judge, key: Array) -> dict[str, float]:
    """Gradient ascent of the teacher on real examples of the class, no longer than it takes to forget it."""
    c, world, levels = config.ascent, trained.world, trained.config.diffusion
    examples = world.train.read(np.arange(len(world.train)))
    data = world.to_model(jnp.asarray(examples["image"][examples["label"] == judge.forgotten]))
    denoise = models.preconditioned(diffusion.network(trained.config, world), sigma_data=levels.sigma_data)
    optimizer, heun = optax.adam(c.learning_rate), _heun(config, trained)
    level = partial(methods.sample_training_sigmas, mean=levels.mean, std=levels.std)

    def loss(params: Any, key: Array) -> Array:
        row_key, noise_key, level_key = jax.random.split(key, 3)
        batch = data[jax.random.randint(row_key, (c.batch,), 0, len(data))]
        noise = jax.random.normal(noise_key, batch.shape)
        told = partial(denoise, params, labels=jnp.full(c.batch, judge.forgotten))
        return -jnp.mean(
            methods.edm_loss(told, batch, noise, level(level_key, (c.batch,)), sigma_data=levels.sigma_data)
        )

    @jax.jit
    def steps(carry: Any, keys: Array) -> Any:
        def step(carry: Any, key: Array) -> Any:
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params, key), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, carry, keys)[0]

    carry, taken = (trained.state.average, optimizer.init(trained.state.average)), 0
    for chunk in range(c.chunks):
        carry = steps(carry, jax.random.split(jax.random.fold_in(key, chunk), c.chunk_steps))
        taken += c.chunk_steps
        draw = partial(heun, carry[0])
        if judge.unlearnt(draw, jax.random.fold_in(key, 0)) >= c.until:
            break
    return {**judge.measure(draw, key), "ascent_steps": float(taken)}
