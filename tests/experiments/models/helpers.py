"""Networks of a few hundred parameters."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import numpy as np
from flax import nnx

from experiments import models

# Compiling would take most of the time of a test.
quickly = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

SMALL = {
    "autoencoder": {"width": 5, "latent": 3},
    "classifier": {"channels": (4, 6), "features": 5},
    "dit": {"width": 8, "depth": 2, "heads": 2, "expansion": 2},
    "language": {"width": 8, "heads": 2, "depth": 2, "expansion": 2},
    "mamba": {"width": 8, "depth": 2, "states": 3},
    "masked_autoencoder": {"width": 8, "depth": 1, "heads": 2, "expansion": 2},
    "mlp": {"width": 8, "depth": 2, "fourier_features": 6},
    "resnet": {"channels": (4, 6), "blocks_per_level": 2},
    "transformer": {"width": 8, "heads": 2},
    "unet": {"channels": 4, "channel_multipliers": (1,), "blocks_per_level": 1},
    "vit": {"width": 8, "depth": 2, "heads": 2, "expansion": 2},
}


@functools.cache
def build(
    name: str,
    shape: tuple[int, ...] = (8, 8, 1),
    num_classes: int = 10,
    vocabulary: int = 0,
    token_length: int = 0,
    **fields,
) -> models.Model:
    config = ml_collections.ConfigDict({"name": name, **SMALL.get(name, {}), **fields})
    return models.build(
        config, example_shape=shape, num_classes=num_classes, vocabulary=vocabulary, token_length=token_length
    )


@functools.cache
def _shapes(init: Callable[[jax.Array], Any]) -> Any:
    return jax.eval_shape(init, jax.random.key(0))


def shapes(model: models.Model) -> Any:
    """The parameter tree without its values."""
    return _shapes(model.init)


def weights(model: models.Model, seed: int = 0) -> Any:
    """Parameters none of which is 0, as after training. `init` would compile a program for every shape."""
    return filled(shapes(model), seed)


def layer(construct: Callable[[nnx.Rngs], Any]) -> Any:
    """A module with parameters none of which is 0."""
    graph, state = nnx.split(nnx.eval_shape(lambda: construct(nnx.Rngs(0))))
    return nnx.merge(graph, filled(state))


def filled(tree: Any, seed: int = 0) -> Any:
    """Normal numbers in a tree of shapes; what is not a float rounds them."""
    generator = np.random.default_rng(seed)

    def fill(leaf):
        scale = 1 / np.sqrt(np.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 0.3
        return (scale * generator.standard_normal(leaf.shape)).astype(leaf.dtype)

    return jax.tree.map(fill, tree)


def names(params: Any) -> set[str]:
    """The paths of a parameter tree, such as "embed/first/kernel"."""
    return {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(params)}


@functools.cache
def _jitted(apply: Callable[..., Any]) -> Callable[..., Any]:
    return quickly(apply, static_argnames="method")


def compiled(model: models.Model) -> Callable[..., Any]:
    """`apply`, with arrays of NumPy out; tests of one model share its programs."""
    apply = _jitted(model.apply)
    return lambda *args, **named: jax.tree.map(np.asarray, apply(*args, **named))


def primitives(function: Callable[..., Any], *args: Any) -> list[str]:
    """What a function computes, in outline."""
    return [equation.primitive.name for equation in jax.make_jaxpr(function)(*args).eqns]


def inputs(shape: tuple[int, ...], batch: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Examples [B, *shape] and c_noise [B]."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((batch, *shape)).astype(np.float32)
    return x, generator.uniform(-1, 1, batch).astype(np.float32)


def changed(array: np.ndarray, place: Any, value: Any) -> np.ndarray:
    """A copy with `value` at one place."""
    array = array.copy()
    array[place] = value
    return array


def keys(num: int, seed: int = 0) -> np.ndarray:
    """Raw keys, which NumPy can index."""
    return np.random.default_rng(seed).integers(0, 2**32, (num, 2), dtype=np.uint32)


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))
