"""Fields of a score distillation config, and what can be seen to be wrong in them."""

from typing import Any

import ml_collections

from experiments.engine.errors import UserError
from experiments.tasks import common, conditions
from experiments.tasks.score_distillation.methods import UNCONDITIONAL
from experiments.worlds import World

FIELDS = (
    *common.EVALUATION_FIELDS,
    "method",
    "teacher.task",
    *(
        f"distillation.{name}"
        for name in (
            "sigma_init",
            "lowest_level",
            "highest_level",
            "critic_steps",
            "entropy_weight",
            "lowest_guidance",
            "highest_guidance",
            "alpha",
        )
    ),
    *(f"critic_optimizer.{name}" for name in ("name", "learning_rate", "schedule", "warmup_steps", "clip")),
    *(f"backtracking.{name}" for name in ("checkpoints", "record_steps", "interval")),
    *(f"forgetting.{name}" for name in ("label", "override", "share", "remain_coefficient", "forget_coefficient")),
)
RANDOM_OVERRIDE = -1  # another class for every example


def check(config: ml_collections.ConfigDict, world: World, chosen: conditions.Settings, run: Any) -> None:
    """What can be seen to be wrong before anything is computed."""
    if config.teacher.task != "diffusion":
        raise UserError(f"config.teacher must be a diffusion config, got a {config.teacher.task} config")
    if run.world.example_shape != world.example_shape:
        raise UserError(
            f"config.teacher was trained on examples of shape {run.world.example_shape}, "
            f"config.data has {world.example_shape}"
        )
    if config.model != run.config.model:
        raise UserError("config.model must be that of config.teacher, from whose parameters generator and critic start")
    c, back, levels = config.distillation, config.backtracking, run.config.diffusion
    if not levels.sigma_min <= c.sigma_init <= levels.sigma_max:
        raise UserError(
            f"config.distillation.sigma_init must lie in the levels [{levels.sigma_min}, {levels.sigma_max}] of "
            f"config.teacher, got {c.sigma_init}"
        )
    if not 0 <= c.lowest_level < c.highest_level <= 1:
        raise UserError(
            "config.distillation: lowest_level < highest_level must be shares of the range of levels, in [0, 1], got "
            f"{c.lowest_level} and {c.highest_level}"
        )
    if c.critic_steps < 1:
        raise UserError(f"config.distillation.critic_steps must be >= 1, got {c.critic_steps}")
    if back.checkpoints < 0:
        raise UserError(f"config.backtracking.checkpoints must be >= 0, got {back.checkpoints}")
    for name in ("record_steps", "interval"):
        if back[name] < 1:
            raise UserError(f"config.backtracking.{name} must be >= 1, got {back[name]}")
    if config.method in UNCONDITIONAL and not (chosen.kind and chosen.dropout):
        raise UserError(
            f"config.method {config.method} asks for predictions without a condition: it needs a conditional network "
            "and config.condition.dropout > 0"
        )
    asks_teacher = config.method == "guided_variational" or (chosen.guided and chosen.guidance != 1)
    if asks_teacher and not run.config.get("condition", {}).get("dropout", 0.0):
        raise UserError("config.teacher learnt no prediction without a condition; give it condition.dropout > 0")
    if config.method == "forgetting":
        _check_forgetting(config.forgetting, world, chosen)


def _check_forgetting(f: ml_collections.ConfigDict, world: World, chosen: conditions.Settings) -> None:
    if chosen.kind != "labels" or chosen.guided:
        raise UserError("config.method forgetting needs config.model.class_condition, and no config.condition")
    for name, low in (("label", 0), ("override", RANDOM_OVERRIDE)):
        if not low <= f[name] < world.num_classes:
            raise UserError(f"config.forgetting.{name} must be in [{low}, {world.num_classes - 1}], got {f[name]}")
    if f.label == f.override:
        raise UserError(f"config.forgetting.override must be another class than the forgotten one, got {f.override}")
    if not 0 <= f.share <= 1:
        raise UserError(f"config.forgetting.share must be in [0, 1], got {f.share}")
