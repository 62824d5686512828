"""Reading captions from pictures, blurred ones too: a small network that names the word at every place of a caption."""

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
from experiments.engine import randomness
from experiments.engine.errors import UserError
from experiments.engine.task import Batch, Panels, Task
from experiments.tasks import common
from experiments.tasks.common import TrainState
from experiments.worlds import Captions, Trained, World

FIELDS = ("corruption.blur", "corruption.noise", "evaluation.blurs", "evaluation.pictured")
TEST_BATCH = 512


def build(config: ml_collections.ConfigDict, world: World, trained: Trained) -> Task:
    del trained
    captions, corruption = _captions(config, world), config.corruption
    for name in FIELDS[:2]:
        if (value := corruption[name.split(".")[1]]) < 0:
            raise UserError(f"config.{name} must be >= 0, got {value}")
    if min(config.evaluation.blurs, default=0.0) < 0:
        raise UserError(f"config.evaluation.blurs must be >= 0, got {tuple(config.evaluation.blurs)}")
    common.check_best(config, [_error(who, blur) for who in ("", "exact_") for blur in config.evaluation.blurs])
    model, optimizer = _network(config, world), common.make_optimizer(config.optimizer, config.steps)

    def init(key: Array) -> TrainState:
        return common.initial_state(model.init(key), optimizer)

    def update(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, dict[str, Array]]:
        width_keys, level_keys, noise_keys, dropout_keys = common.step_keys(key, batch, 4)
        images = world.to_model(batch["image"])
        spread = jax.vmap(jax.random.uniform)
        level = (corruption.noise * spread(level_keys)).reshape(-1, 1, 1, 1)
        images = blurred(images, corruption.blur * spread(width_keys))
        images = images + level * randomness.normal(noise_keys, images.shape[1:])

        def losses(params: Any, examples: tuple[Array, Array, Array]) -> tuple[Array, dict[str, Array]]:
            images, tokens, keys = examples
            logits = _by_place(model.apply(params, images, keys=keys)["logits"], captions)
            whole = jnp.all(jnp.argmax(logits, -1) == tokens, axis=-1).astype(jnp.float32)
            words = optax.losses.softmax_cross_entropy_with_integer_labels(logits, tokens)
            return jnp.sum(words, axis=-1), {"accuracy": whole}

        examples = (images, batch["tokens"], dropout_keys)
        means, gradients = common.mean_and_gradients(losses, state.params, examples, config.accumulate)
        return common.apply_gradients(state, gradients, optimizer, config.ema_decay), means

    read = _reader(config, world)

    def evaluate(state: TrainState, key: Array) -> tuple[dict[str, float], dict[str, Panels]]:
        """Shares of blurred test pictures that are read wrongly, by the network and by the detector of clean ones."""
        del key
        measured: dict[str, float] = {}
        everything = world.test.read(np.arange(len(world.test)))
        tokens, panels = np.asarray(everything["tokens"]), []
        for blur in config.evaluation.blurs:
            images = _blurred_pixels(world, everything["image"], blur)
            seen = {"": captions.compare(tokens, read(state.average, images)), "exact_": captions.agree(images, tokens)}
            for who, right in seen.items():
                measured[_error(who, blur)] = 1 - float(np.mean(np.all(list(right.values()), axis=0)))
                measured |= {f"{_error(who, blur)}_{name}": 1 - float(np.mean(of)) for name, of in right.items()}
            panels.append((f"blur {blur:g}", images[: config.evaluation.pictured]))
        return measured, {"blurred": panels}

    return Task(init, update, evaluate, axes=model.axes)


def _error(who: str, blur: float) -> str:
    return f"{who}error_blur_{blur:g}"


def _captions(config: ml_collections.ConfigDict, world: World) -> Captions:
    if world.captions is None:
        raise UserError(f"config.data: captioning needs captions, and {config.data.name!r} has none")
    return world.captions


def _network(config: ml_collections.ConfigDict, world: World) -> models.Model:
    captions = _captions(config, world)
    return models.build(
        config.model, example_shape=world.example_shape, num_classes=captions.length * len(captions.words)
    )


def _by_place(logits: Array, captions: Captions) -> Array:
    return logits.reshape(-1, captions.length, len(captions.words))


def _reader(config: ml_collections.ConfigDict, world: World) -> Callable[[Any, np.ndarray], np.ndarray]:
    """`(params, uint8 images [B, H, W, C]) -> tokens [B, L]`: at each place the likeliest word that training has there."""
    captions, model = _captions(config, world), _network(config, world)
    tokens = np.asarray(world.train.read(np.arange(len(world.train)))["tokens"])
    seen = np.zeros((captions.length, len(captions.words)), bool)
    seen[np.arange(captions.length), tokens] = True

    @jax.jit
    def predict(params: Any, images: Array) -> Array:
        logits = _by_place(model.apply(params, world.to_model(images))["logits"], captions)
        return jnp.argmax(jnp.where(seen, logits, -jnp.inf), axis=-1)

    def read(params: Any, images: np.ndarray) -> np.ndarray:
        blocks = np.array_split(images, max(1, len(images) // TEST_BATCH))
        return np.concatenate([np.asarray(predict(params, block)) for block in blocks])

    return read


def blurred(images: Array, widths: Array) -> Array:
    """Images [B, H, W, C] under Gaussians of the standard deviations [B], in pixels; 0 leaves an image as it is.

    The weights sum to one beside the border too.
    """

    def smoother(size: int) -> Array:
        apart = jnp.arange(size)[:, None] - jnp.arange(size)
        logits = -(apart**2) / (2 * jnp.maximum(widths, 1e-3)[:, None, None] ** 2)
        return jax.nn.softmax(logits, axis=-1)

    down, across = smoother(images.shape[1]), smoother(images.shape[2])
    return jnp.einsum("bij,bjlc->bilc", down, jnp.einsum("bjmc,blm->bjlc", images, across))


@partial(jax.jit, static_argnums=0)
def _blurred(to_model: Callable[[Array], Array], raw: Array, blur: Array) -> Array:
    images = to_model(raw)
    return blurred(images, jnp.full(len(images), blur))


def _blurred_pixels(world: World, raw: np.ndarray, blur: float) -> np.ndarray:
    return common.pixels(world, _blurred(world.to_model, jnp.asarray(raw), jnp.float32(blur)))


class Accuracy:
    """The share of generated pictures that show their captions, in everything and by attribute.

    They are looked at by the run of `config.evaluation.reader` or, without one, the exact detector of clean pictures.
    """

    def __init__(self, config: ml_collections.ConfigDict, world: World, trained: Trained):
        self._captions = _captions(config, world)
        self._read: Callable[[np.ndarray], np.ndarray] | None = None
        if reader := config.evaluation.get("reader", None):
            run = trained(reader)
            self._read = partial(_reader(run.config, run.world), run.state.average)

    @staticmethod
    def names(world: World) -> list[str]:
        attributes = world.captions.attributes if world.captions else ()
        return ["accuracy", *(f"accuracy_{name}" for name in attributes)]

    def __call__(self, images: np.ndarray, tokens: np.ndarray) -> list[float]:
        """Of uint8 images [B, H, W, C] and captions [B, L], in the order of `names`."""
        captions = self._captions
        right = captions.compare(tokens, self._read(images)) if self._read else captions.agree(images, tokens)
        aspects = [right[name] for name in captions.attributes]
        return [float(np.mean(values)) for values in (np.all(aspects, axis=0), *aspects)]
