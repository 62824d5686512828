"""What tasks share: the training state, optimisers, batches, and the judge of generated examples."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax import Array

from experiments.engine import parts, randomness
from experiments.engine.errors import UserError, unknown
from experiments.engine.task import Batch
from experiments.worlds import Split, Trained, World
from mlfuncs import metrics

OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adam": optax.adam,
    "adamw": optax.adamw,
    "lion": optax.lion,
    "radam": optax.radam,
    "sgd": optax.sgd,
}
FIELDS = (  # of every config
    "task",
    "seed",
    "batch_size",
    "steps",
    "log_every",
    "evaluate_every",
    "checkpoint.every",
    "checkpoint.keep",
    "checkpoint.best",
    "checkpoint.best_mode",
    "mesh",
    "parallel",
    "cache_dir",
    "ema_decay",
    "accumulate",
    "init_from",
    "optimizer.name",
    "optimizer.learning_rate",
    "optimizer.schedule",
    "optimizer.warmup_steps",
    "optimizer.clip",
    "data.name",
    "model.name",
)
EVALUATION_FIELDS = tuple(
    f"evaluation.{name}" for name in ("samples", "block", "pictured", "split", "reference", "features")
)
SPLITS = ("test", "train")
FLOOR_SPLITS = 8  # halvings of the data that the real-vs-real distance is averaged over
FEATURE_BATCH = 512


class TrainState(NamedTuple):
    """One pytree: everything that a step reads and writes."""

    step: Array
    params: Any
    optimizer: Any
    average: Any  # exponential moving average of the parameters, for evaluation
    teacher: Any = ()  # parameters of a moving-average teacher, where the method has one


def check(config: ml_collections.ConfigDict) -> None:
    """Fields that tasks which draw samples share."""
    if not 0 <= config.ema_decay < 1:
        raise UserError(f"config.ema_decay must be in [0, 1), got {config.ema_decay}")
    for name in ("block", "pictured"):
        if config.evaluation[name] < 1:
            raise UserError(f"config.evaluation.{name} must be >= 1, got {config.evaluation[name]}")


def check_best(config: ml_collections.ConfigDict, measured: Iterable[str]) -> None:
    """Refuses a `checkpoint.best` that is none of the metrics of evaluations, before anything is trained."""
    best = config.checkpoint.best
    if best and best not in (measured := list(measured)):
        raise unknown("metric in config.checkpoint.best", best, measured)


def make_optimizer(config: ml_collections.ConfigDict, steps: int) -> optax.GradientTransformation:
    """The optimiser that `config.name` names, with clipping and a learning-rate schedule."""
    if config.name not in OPTIMIZERS:
        raise unknown("config.optimizer.name", config.name, OPTIMIZERS)
    if config.learning_rate <= 0:
        raise UserError(f"config.optimizer.learning_rate must be > 0, got {config.learning_rate}")
    schedules: dict[str, Callable[[], optax.Schedule]] = {
        "constant": lambda: optax.constant_schedule(config.learning_rate),
        "cosine": lambda: optax.cosine_decay_schedule(config.learning_rate, steps),
    }
    for name in ("warmup_steps", "clip"):
        if config[name] < 0:
            raise UserError(f"config.optimizer.{name} must be >= 0, got {config[name]}")
    if config.schedule not in schedules:
        raise unknown("config.optimizer.schedule", config.schedule, schedules)
    schedule = schedules[config.schedule]()
    if config.warmup_steps:
        ramp = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
        schedule = optax.join_schedules([ramp, schedule], [config.warmup_steps])
    step = OPTIMIZERS[config.name](schedule)
    return optax.chain(optax.clip_by_global_norm(config.clip), step) if config.clip else step


def initial_state(params: Any, optimizer: optax.GradientTransformation, *, teacher: bool = False) -> TrainState:
    """Step 0; average and teacher start at the parameters."""
    return TrainState(jnp.int32(0), params, optimizer.init(params), params, params if teacher else ())


Losses = Callable[[Any, Any], tuple[Array, dict[str, Array]]]  # (params, examples) -> losses [B], {metric: [B]}


def mean_and_gradients(losses: Losses, params: Any, examples: Any, in_turn: int) -> tuple[dict[str, Array], Any]:
    """Means of the losses and metrics over the global batch, and the gradients of the mean loss.

    `examples` is a tree of arrays [B, ...]. They go through the network in `in_turn` parts one after the other, for memory's
    sake: the result is that of the whole batch, up to rounding.
    """

    def mean(params: Any, examples: Any) -> tuple[Array, dict[str, Array]]:
        values, metrics = losses(params, examples)
        return jnp.mean(values), {"loss": jnp.mean(values), **{name: jnp.mean(m) for name, m in metrics.items()}}

    gradient = jax.grad(mean, has_aux=True)
    if in_turn == 1:
        gradients, means = gradient(params, examples)
        return parts.mean((means, gradients))

    def deal(x: Array) -> Array:
        # Every `in_turn`-th example: each part is then spread over the devices as the batch is.
        return jnp.moveaxis(x.reshape(x.shape[0] // in_turn, in_turn, *x.shape[1:]), 1, 0)

    def add(sums: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, gradient(params, part)), None

    dealt = jax.tree.map(deal, examples)
    shapes = jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], dealt))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    gradients, means = jax.tree.map(lambda x: x / in_turn, jax.lax.scan(add, zeros, dealt)[0])
    return parts.mean((means, gradients))


Learning = TypeVar("Learning", bound=Any)  # a `TrainState`, or another named tuple with its first four fields


def apply_gradients(state: Learning, gradients: Any, optimizer: optax.GradientTransformation, decay: float) -> Learning:
    """One optimiser step and one step of the moving average."""
    updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    average = optax.incremental_update(params, state.average, 1 - decay)
    learnt: Learning = state._replace(step=state.step + 1, params=params, optimizer=optimizer_state, average=average)
    return learnt


def adopt(state: Learning, params: Any) -> Learning:
    """A new state that starts from the parameters of another run."""
    copied = lambda: jax.tree.map(jnp.copy, params)  # noqa: E731 (each in memory of its own, which a step may use up)
    state = state._replace(params=params, average=copied())
    follows = isinstance(state, TrainState) and jax.tree.leaves(state.teacher)  # a teacher that follows the parameters
    adopted: Learning = state._replace(teacher=copied()) if follows else state
    return adopted


def examples(world: World, batch: Batch, keys: Array) -> Array:
    """The batch as models see it, mirrored at random where the world says so."""
    data = world.to_model(batch["image"])
    if not world.flip:
        return data
    mirrored = jax.vmap(jax.random.bernoulli)(keys)
    return jnp.where(mirrored[:, None, None, None], data[:, :, ::-1], data)


def conditions(config: ml_collections.ConfigDict, batch: Batch) -> Array | None:
    """Labels for a class-conditional model, else None."""
    return batch["label"] if config.model.get("class_condition", False) else None


def sampling_labels(config: ml_collections.ConfigDict, world: World, first: int | Array, num: int) -> Array | None:
    """The classes in turn, for a class-conditional model, else None."""
    if not config.model.get("class_condition", False):
        return None
    return (first + jnp.arange(num, dtype=jnp.int32)) % world.num_classes


class Judge:
    """Fréchet distance of generated examples to real ones, in the features of a small classifier.

    Where `config.evaluation.features` is empty the examples themselves are the features.
    """

    def __init__(self, config: ml_collections.ConfigDict, world: World, trained: Trained):
        from experiments.tasks import classification

        evaluation = config.evaluation
        for name, low in (("samples", 2), ("reference", 0)):
            if evaluation[name] < low:
                raise UserError(f"config.evaluation.{name} must be >= {low}, got {evaluation[name]}")
        if evaluation.split not in SPLITS:
            raise unknown("config.evaluation.split", evaluation.split, SPLITS)
        self._features, self._distance = jax.jit(_flatten), jax.jit(metrics.frechet_distance)
        if evaluation.features:
            self._features = jax.jit(classification.features(trained(evaluation.features)))
        self.world, self.samples = world, evaluation.samples
        split = world.test if evaluation.split == "test" else world.train
        order = np.random.default_rng(0).permutation(len(split))[: evaluation.reference or None]
        self.real = self._real_features(split, order)
        self.floor = float(np.mean([self._halved(seed) for seed in range(FLOOR_SPLITS)]))

    def _real_features(self, split: Split, order: np.ndarray) -> Array:
        blocks = np.array_split(order, max(1, len(order) // FEATURE_BATCH))
        read = (self.world.to_model(jnp.asarray(split.read(block)["image"])) for block in blocks)
        return jnp.concatenate([self._features(images) for images in read])

    def _halved(self, seed: int) -> Array:
        order, half = np.random.default_rng(seed).permutation(len(self.real)), len(self.real) // 2
        return self._distance(self.real[order[:half]], self.real[order[half : 2 * half]])

    def distance(self, draw: Callable[[int], Array]) -> float:
        """Distance of `samples` generated examples; `draw(num)` gives them as a model does."""
        return self.distance_of(draw(self.samples))

    def distance_of(self, generated: Array) -> float:
        """Distance of generated examples, as a model gives them."""
        blocks = np.array_split(np.arange(len(generated)), max(1, len(generated) // FEATURE_BATCH))
        features = jnp.concatenate([self._features(generated[block]) for block in blocks])
        return float(self._distance(self.real, features))


def _flatten(x: Array) -> Array:
    return x.reshape(x.shape[0], -1)


def pixels(world: World, x: Array) -> np.ndarray:
    """uint8 images for people."""
    return np.asarray(world.to_pixels(jnp.asarray(x)))


def real_pixels(world: World, num: int) -> np.ndarray:
    """The first `num` test examples as pictures."""
    raw = world.test.read(np.arange(min(num, len(world.test))))["image"]
    return pixels(world, world.to_model(jnp.asarray(raw)))


def draw_in_blocks(draw: Callable[[Array, int, int], Array], key: Array, num: int, block: int) -> Array:
    """`num` examples from `draw(key, first, block)`, a compiled sampler of fixed size; example i depends on i alone."""
    parts = [draw(jax.random.fold_in(key, first // block), first, block) for first in range(0, num, block)]
    return jnp.concatenate(parts)[:num]


def step_keys(key: Array, batch: Batch, num: int) -> tuple[Array, ...]:
    """`num` streams of per-example keys for one step."""
    return randomness.split(randomness.per_example_keys(key, batch["index"]), num)
