"""Masked autoencoding of the patches that a model expects to be hard for itself, against random, block and hardest masks."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax import Array
from jax.flatten_util import ravel_pytree

from configs import common
from experiments import models, worlds
from experiments.papers import probes, training
from experiments.worlds import scenes
from mlfuncs import masked_modeling, vision

VECTORISED = False  # so that arms share what is compiled, which takes longer here than to run it

SIZE = 32  # of pictures, in pixels
CELLS = 2  # along a side of a scene, each with one object
BLOCK = 2  # patches along a side of what a block mask hides at once
COVERED = 0.25  # share of a patch that objects cover where it is foreground
DECAY_RATES = 0.9, 0.95  # of AdamW, as in the paper
MASKS = ("random", "block", "scheduled", "hardest", "none")  # none: not trained


class Pictures(NamedTuple):
    """N pictures in [-1, 1], the class of each of k cells, and which patches show an object."""

    x: Array  # [N, SIZE, SIZE, C]
    labels: Array  # int [N, k]
    foreground: Array  # bool [N, P], [N, 0] where it is not known


def pictures(config: ml_collections.ConfigDict, key: Array) -> tuple[Pictures, Pictures, int]:
    """Training and test pictures, and the number of classes. Scenes are drawn by the key; other sets are as they are."""
    if config.data == "scenes":
        classes = len(scenes.SHAPES) * len(scenes.COLORS)
        both = _scenes(key, config.train + config.test, config.patch)
        train, test = (jax.tree.map(lambda leaf, part=part: leaf[part], both) for part in _parts(config))
        return train, test, classes
    world = worlds.build(common.images(config.data, image_size=SIZE))
    parts = []
    for split, count in ((world.train, config.train), (world.test, config.test)):
        found = split.read(np.arange(count))
        none = jnp.zeros((count, 0), bool)
        parts.append(Pictures(world.to_model(jnp.asarray(found["image"])), jnp.asarray(found["label"])[:, None], none))
    return parts[0], parts[1], world.num_classes


def _parts(config: ml_collections.ConfigDict) -> tuple[slice, slice]:
    return slice(config.train), slice(config.train, config.train + config.test)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _scenes(key: Array, count: int, patch: int) -> Pictures:
    draw = lambda key: scenes.draw(key, objects=CELLS * CELLS, grid=CELLS)  # noqa: E731
    scene = jax.vmap(draw)(jax.random.split(key, count))
    covered = jnp.sum(scenes.masks(scene, SIZE), axis=1)[..., None]
    share = jnp.mean(vision.patchify(covered, patch=patch), axis=-1)
    labels = scene.shape * len(scenes.COLORS) + scene.color
    return Pictures(2 * scenes.render(scene, SIZE) - 1, labels, share >= COVERED)


class Form(NamedTuple):
    """What decides the network, and how much of a picture it is not shown."""

    channels: int
    width: int
    depth: int
    decoder_depth: int
    heads: int
    patch: int
    mask_ratio: float

    @property
    def side(self) -> int:
        """Patches along a side."""
        return SIZE // self.patch

    @property
    def hidden(self) -> int:
        """Patches that a mask hides."""
        return self.side**2 - int(self.side**2 * (1 - self.mask_ratio))


@functools.cache
def network(form: Form) -> models.Model:
    """A masked autoencoder with a second decoder, which predicts errors."""
    fields = {name: getattr(form, name) for name in ("width", "depth", "decoder_depth", "heads", "patch")}
    config = ml_collections.ConfigDict({"name": "masked_autoencoder", "expansion": 2, **fields})
    return models.build(config, example_shape=(SIZE, SIZE, form.channels), num_classes=0)


def block_noise(key: Array, count: int, side: int) -> Array:
    """Noise [count, side * side], almost the same in squares of BLOCK * BLOCK patches, so that they are hidden as one."""
    coarse_key, fine_key = jax.random.split(key)
    squares = -(-side // BLOCK)
    coarse = jax.random.uniform(coarse_key, (count, squares, squares))
    whole = jnp.repeat(jnp.repeat(coarse, BLOCK, axis=1), BLOCK, axis=2)[:, :side, :side]
    return (whole + 1e-4 * jax.random.uniform(fine_key, whole.shape)).reshape(count, -1)


def shares(masks: str, epochs: int) -> Array:
    """Of a mask's patches, how many are chosen by their difficulty, in every epoch."""
    if masks == "scheduled":
        return masked_modeling.hard_fraction(jnp.arange(epochs), epochs)
    return jnp.full(epochs, float(masks == "hardest"))


class Rates(NamedTuple):
    """Numbers of the training."""

    learning_rate: float
    weight_decay: float
    average_decay: float  # of the model that predicts which patches are hard
    prediction_weight: float  # of the loss by which it learns that
    block: bool  # whether what is random is a block


def losses(form: Form, params: Any, x: Array, mask: Array, prediction_weight: Array | float) -> tuple[Array, Array]:
    """The whole loss, and that of reconstruction in it."""
    out = network(form).apply(params, x, mask, hidden=form.hidden)
    error = masked_modeling.patch_error(out["pixels"], x, mask, patch_size=form.patch)
    ranked = masked_modeling.relative_difficulty(out["difficulty"], error, mask=mask)
    reconstruction = jnp.sum(error) / jnp.sum(mask)
    return reconstruction + prediction_weight * jnp.mean(ranked), reconstruction


def sample_mask(key: Array, form: Form, average: Any, x: Array, share: Array, block: Any, *, guided: bool) -> Array:
    """Bool [B, P]; where `guided`, a share of it is what the averaged model finds hard in whole pictures."""
    count, patches = len(x), form.side**2
    noise = jnp.where(block, block_noise(key, count, form.side), jax.random.uniform(key, (count, patches)))
    predicted = network(form).apply(average, x, method="difficulty") if guided else jnp.zeros_like(noise)
    return masked_modeling.hard_patch_mask(predicted, noise, mask_ratio=form.mask_ratio, hard_fraction=share)


@functools.partial(jax.jit, static_argnums=1)
def _initial(key: Array, form: Form) -> Any:
    """Parameters that a seed's arms start from."""
    return network(form).init(jax.random.split(key, 3)[0])


@functools.partial(jax.jit, static_argnames=("form", "batch", "guided"))
def pretrained(
    key: Array, given: Pictures, share: Array, rates: Rates, *, form: Form, batch: int, guided: bool
) -> tuple[Any, Any, Array]:
    """Online and averaged parameters, and [epochs, 3]: the reconstruction loss, and what `foreground_shares` gives."""
    _, order_key, mask_key = jax.random.split(key, 3)
    epochs, each = len(share), len(given.x) // batch
    steps = epochs * each
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1.0, steps // 10, steps)
    optimizer = optax.chain(
        optax.scale_by_adam(*DECAY_RATES),
        optax.add_decayed_weights(rates.weight_decay),
        optax.scale_by_schedule(schedule),
    )

    # One vector in place of many arrays: what is done to each is compiled once.
    first, tree = ravel_pytree(_initial(key, form))

    def step(carry: Any, now: Any) -> Any:
        params, average, state = carry
        index, rows = now
        x, noise_key = given.x[rows], jax.random.fold_in(mask_key, index)
        mask = sample_mask(noise_key, form, tree(average), x, share[index // each], rates.block, guided=guided)

        def loss(params: Array) -> tuple[Array, Array]:
            return losses(form, tree(params), x, mask, rates.prediction_weight)

        (_, error), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradients, state, params)
        params = params - rates.learning_rate * updates
        average = optax.incremental_update(params, average, 1 - rates.average_decay)
        return (params, average, state), jnp.stack([error, *foreground_shares(mask, given.foreground[rows])])

    rows = training.batches(order_key, len(given.x), batch, steps)
    start = first, first, optimizer.init(first)
    (params, average, _), seen = jax.lax.scan(step, start, (jnp.arange(steps), rows))
    return tree(params), tree(average), jnp.mean(seen.reshape(epochs, each, -1), axis=1)


def foreground_shares(mask: Array, foreground: Array) -> tuple[Array, Array]:
    """How much of the foreground a mask hides, and how much of what it hides is foreground; NaN where it is not known."""
    if foreground.shape[1] == 0:
        return jnp.array(jnp.nan), jnp.array(jnp.nan)
    both = jnp.sum(mask & foreground)
    return both / jnp.sum(foreground), both / jnp.sum(mask)


def rank_agreement(first: Array, second: Array, mask: Array) -> Array:
    """Kendall's tau between two rows of values, over pairs of True patches; the mean over rows [B, P]."""
    signs = [jnp.sign(values[:, :, None] - values[:, None]) for values in (first, second)]
    pairs = mask[:, :, None] & mask[:, None] & ~jnp.eye(mask.shape[1], dtype=bool)
    return jnp.mean(jnp.sum(jnp.where(pairs, signs[0] * signs[1], 0.0), axis=(1, 2)) / jnp.sum(pairs, axis=(1, 2)))


def by_cell(features: Array, cells: int) -> Array:
    """Means of tokens [N, P, D] over cells * cells squares of the grid, [N, cells * cells, D]."""
    count, patches, width = features.shape
    side = round(patches**0.5)
    grid = features.reshape(count, cells, side // cells, cells, side // cells, width)
    return grid.mean((2, 4)).reshape(count, cells * cells, width)


@functools.partial(jax.jit, static_argnames=("form", "classes"))
def measured(
    key: Array, params: Any, average: Any, train: Pictures, test: Pictures, *, form: Form, classes: int
) -> dict[str, Array]:
    """What features of whole pictures know of what is in them, and whether the averaged model knows what is hard for it."""
    apply = network(form).apply

    def known(given: Pictures) -> training.Labelled:
        cells = by_cell(apply(params, given.x, method="encode")[0], round(given.labels.shape[1] ** 0.5))
        return training.Labelled(cells.reshape(-1, cells.shape[-1]), given.labels.reshape(-1))

    mask = sample_mask(key, form, average, test.x, jnp.array(0.0), False, guided=False)
    pixels = apply(average, test.x, mask, hidden=form.hidden)["pixels"]
    error = masked_modeling.patch_error(pixels, test.x, mask, patch_size=form.patch)
    return {
        "probe_accuracy": probes.linear_accuracy(known(train), known(test), classes=classes),
        "difficulty_agreement": rank_agreement(apply(average, test.x, method="difficulty"), error, mask),
        "test_error": jnp.sum(error) / jnp.sum(mask),
    }


def run(config: ml_collections.ConfigDict, key: Array) -> dict[str, Any]:
    """Pre-trains under one kind of mask, then reads labels from the features."""
    if config.masks not in MASKS:
        raise ValueError(f"masks must be one of {', '.join(MASKS)}, got {config.masks!r}")
    data_key, train_key, test_key = jax.random.split(key, 3)
    train, test, classes = pictures(config, data_key)
    fields = {name: config[name] for name in Form._fields if name != "channels"}
    form = Form(channels=train.x.shape[-1], **fields)
    rates = Rates(block=config.masks == "block", **{name: config[name] for name in Rates._fields if name != "block"})
    share, guided = shares(config.masks, config.epochs), config.masks in ("scheduled", "hardest")
    if config.masks == "none":
        params = average = _initial(train_key, form)
        seen = jnp.full((1, 3), jnp.nan)
    else:
        params, average, seen = pretrained(train_key, train, share, rates, form=form, batch=config.batch, guided=guided)
    return {
        **measured(test_key, params, average, train, test, form=form, classes=classes),
        "foreground_hidden": seen[-1, 1],
        "hidden_foreground": seen[-1, 2],
        "first_foreground_hidden": seen[0, 1],
        "last_training_error": seen[-1, 0],
    }
