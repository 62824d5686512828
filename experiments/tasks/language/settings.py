"""Fields of a language config, and what can be seen to be wrong in them."""

from typing import Any

import ml_collections

from experiments.engine.errors import UserError, unknown
from experiments.worlds import Text, World

METHODS = ("distillation", "training")
FRESH, STORED = ("student", "teacher"), ("data", "teacher")
FIELDS = (
    "method",
    *(f"evaluation.{name}" for name in ("block", "samples", "responses")),
    *(f"sampling.{name}" for name in ("prompt", "length", "temperature", "top_k")),
    "teacher",
    *(
        f"distillation.{name}"
        for name in (
            "divergence",
            "mixture",
            "temperature",
            "normalize_by_length",
            "prompt_length",
            "fresh",
            "fresh_fraction",
            "stored",
            "sampling_temperature",
        )
    ),
)


def check(config: ml_collections.ConfigDict, world: World) -> Text:
    """What can be seen to be wrong before anything is computed; what the world knows of its texts."""
    if world.text is None:
        raise UserError(f"config.data: language needs texts, and {config.data.name!r} has none")
    if config.method not in METHODS:
        raise unknown("config.method", config.method, METHODS)
    if config.model.name != "language":
        raise UserError(f"config.model.name must be 'language', which reads with a cache, got {config.model.name!r}")
    if not 0 <= config.ema_decay < 1:
        raise UserError(f"config.ema_decay must be in [0, 1), got {config.ema_decay}")
    for path, low in (
        ("evaluation.block", 1),
        ("evaluation.samples", 0),
        ("evaluation.responses", 1),
        ("sampling.length", 0),
        ("sampling.temperature", 0),
    ):
        section, name = path.split(".")
        if config[section][name] < low:
            raise UserError(f"config.{path} must be >= {low}, got {config[section][name]}")
    if not 0 <= config.sampling.top_k <= world.num_classes:
        raise UserError(
            f"config.sampling.top_k must be in [0, {world.num_classes}], the vocabulary, got {config.sampling.top_k}"
        )
    try:
        world.text.encode(config.sampling.prompt)
    except ValueError as error:
        raise UserError(f"config.sampling.prompt {config.sampling.prompt!r}: {error}") from None
    return world.text


def check_teacher(config: ml_collections.ConfigDict, world: World, run: Any) -> None:
    """The same of a distillation config, whose teacher is `run`."""
    if config.teacher.task != "language":
        raise UserError(f"config.teacher must be a language config, got a {config.teacher.task} config")
    if run.world.text.words != world.text.words:  # type: ignore[union-attr]
        raise UserError(
            f"config.teacher has {len(run.world.text.words)} tokens that are not the {world.num_classes} of config.data"
        )
    d, length = config.distillation, world.example_shape[0]
    for name, known in (("fresh", FRESH), ("stored", STORED)):
        if d[name] not in known:
            raise unknown(f"config.distillation.{name}", d[name], known)
    if not 0 <= d.fresh_fraction <= 1:
        raise UserError(f"config.distillation.fresh_fraction must be in [0, 1], got {d.fresh_fraction}")
    if not 1 <= d.prompt_length < length:
        raise UserError(
            f"config.distillation.prompt_length must be in [1, {length - 1}], less than a row, got {d.prompt_length}"
        )
    if d.sampling_temperature <= 0:
        raise UserError(f"config.distillation.sampling_temperature must be > 0, got {d.sampling_temperature}")
