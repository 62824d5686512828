"""Small, readable Flax NNX networks, and their functional face: parameters are a nested dict, models are functions."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import ml_collections
from flax import nnx
from jax import Array

from experiments.engine.task import Axes
from experiments.models.autoencoder import Autoencoder
from experiments.models.classifier import Classifier
from experiments.models.dit import DiT
from experiments.models.language import LanguageModel
from experiments.models.mamba import Mamba
from experiments.models.masked_autoencoder import MaskedAutoencoder
from experiments.models.mlp import ResidualMLP
from experiments.models.perceptron import Perceptron
from experiments.models.recurrent import Recurrent
from experiments.models.resnet import ResNet
from experiments.models.transformer import Transformer
from experiments.models.unet import UNet
from experiments.models.vit import VisionTransformer
from mlfuncs import diffusion

MODELS: dict[str, Any] = {
    "autoencoder": Autoencoder,
    "classifier": Classifier,
    "dit": DiT,
    "language": LanguageModel,
    "mamba": Mamba,
    "masked_autoencoder": MaskedAutoencoder,
    "mlp": ResidualMLP,
    "perceptron": Perceptron,
    "recurrent": Recurrent,
    "resnet": ResNet,
    "transformer": Transformer,
    "unet": UNet,
    "vit": VisionTransformer,
}
GIVEN = {
    "self",
    "example_shape",
    "num_classes",
    "rngs",
    "vocabulary",
    "token_length",
}  # what the world decides, not the config
CHOICES = {
    "dtype": ("bfloat16", "float32"),
    "norm": ("non_scaling", "none", "scaling"),
    "time_conditioning": ("additive", "scale_shift"),
}
FRACTIONS = ("dropout",)
POSITIVE: dict[str, type] = {
    "blocks_per_level": int,
    "channel_multipliers": int,
    "channels": int,
    "decoder_depth": int,
    "depth": int,
    "expansion": int,
    "features": int,
    "fourier_features": int,
    "fourier_scale": float,
    "heads": int,
    "latent": int,
    "patch": int,
    "repeats": int,
    "states": int,
    "token_width": int,
    "width": int,
    "widths": int,
}
SEQUENCES = ("attention_resolutions", "channel_multipliers", "cross_attention_resolutions", "widths")


class Model(NamedTuple):
    """`init(key) -> params`, float32; `apply(params, *inputs, method=..., **inputs)` calls the network.

    `axes` says what the axes of some parameters hold, by their path.
    """

    init: Callable[[Array], Any]
    apply: Callable[..., Any]
    axes: Axes


def build(
    config: ml_collections.ConfigDict,
    *,
    example_shape: tuple[int, ...],
    num_classes: int,
    vocabulary: int = 0,
    token_length: int = 0,
) -> Model:
    """The network that `config.name` names, with the other fields as its settings.

    `vocabulary` is how many words captions are made of, 0 where the data has none, and `token_length` how long they are.

    Raises:
      ValueError: an unknown name or field, or a value out of range, named `model.<field>`.
    """
    fields = dict(config)
    name = fields.pop("name")
    if name not in MODELS:
        raise ValueError(f"model.name must be one of {', '.join(sorted(MODELS))}, got {name!r}")
    parameters = inspect.signature(MODELS[name].__init__).parameters.keys()
    known = parameters - GIVEN
    for field, value in fields.items():
        if field not in known:
            raise ValueError(f"model.{field} is no field of {name!r}, which has {', '.join(sorted(known))}")
        _check(field, value)
    if fields.get("class_condition", False) and num_classes < 1:
        raise ValueError("model.class_condition needs labels, and the data set has none")
    if fields.get("token_condition", False) and (vocabulary < 1 or token_length < 1):
        raise ValueError("model.token_condition needs captions, and the data set has none")
    if "token_condition" in parameters:
        fields |= {"vocabulary": vocabulary, "token_length": token_length}

    def construct(rngs: nnx.Rngs) -> nnx.Module:
        return MODELS[name](example_shape=tuple(example_shape), num_classes=num_classes, rngs=rngs, **fields)

    network = nnx.eval_shape(lambda: construct(nnx.Rngs(0)))
    graph, abstract = nnx.split(network)
    axes = {(*path, name): holds for path, node in nnx.iter_graph(network) for name, holds in getattr(node, "axes", ())}

    def init(key: Array) -> Any:
        return nnx.to_pure_dict(nnx.split(construct(nnx.Rngs(key)))[1])

    def apply(params: Any, *inputs: Any, method: str = "__call__", **named: Any) -> Any:
        state = jax.tree.map(lambda leaf: leaf, abstract)  # a copy: filling it in must not touch the original
        nnx.replace_by_pure_dict(state, params)
        return getattr(nnx.merge(graph, state), method)(*inputs, **named)

    return Model(init, apply, axes)


def takes(config: ml_collections.ConfigDict, given: str) -> bool:
    """Whether the network that `config.name` names is called with an input of that name, such as "keys" of dropout."""
    return given in inspect.signature(MODELS[config.name].__call__).parameters


def preconditioned(model: Model, *, sigma_data: float) -> Callable[..., Any]:
    """The denoiser of a network in the EDM form, `denoise(params, x, sigma, tokens=None, **inputs)`.

    `inputs` are those of the network beside its prompt: `labels`, `negative_tokens`, `attention`, `keys`, and `read`, with
    which the result is (estimate of the clean x, readings).
    """

    def denoise(params: Any, x: Array, sigma: Array, tokens: Array | None = None, **inputs: Any) -> Any:
        named = {name: value for name, value in {"tokens": tokens, **inputs}.items() if value is not None}
        readings = []

        def network(x: Array, c_noise: Array) -> Array:
            out = model.apply(params, x, c_noise, **named)
            if named.get("read", False):
                out, seen = out
                readings.append(seen)
            return out

        denoised = diffusion.preconditioned_denoise(network, x, sigma, sigma_data=sigma_data)
        return (denoised, readings[0]) if readings else denoised

    return denoise


def _check(field: str, value: Any) -> None:
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    if field in CHOICES and value not in CHOICES[field]:
        raise ValueError(f"model.{field} must be one of {', '.join(CHOICES[field])}, got {value!r}")
    if field in FRACTIONS and not (_is_number(value, float) and 0 <= value < 1):
        raise ValueError(f"model.{field} must be a number in [0, 1), got {value!r}")
    if field in POSITIVE and not (values and all(_is_number(v, POSITIVE[field]) and v > 0 for v in values)):
        kind = "whole" if POSITIVE[field] is int else "a number"
        raise ValueError(f"model.{field} must be {kind} and > 0, got {value!r}")
    if field in SEQUENCES and not isinstance(value, (list, tuple)):
        raise ValueError(f"model.{field} must be a tuple, got {value!r}")


def _is_number(value: Any, kind: type) -> bool:
    return isinstance(value, (int, kind)) and not isinstance(value, bool)
