"""Draws samples from a trained run and writes them as one picture.

usage: python -m experiments.sample --workdir=DIR [--num=64] [--steps=1] [--seed=0] [--best]
                                     [--prompt="large red circle"] [--guidance=2] [--out=samples.png] [--overwrite]

  --steps     network jumps of a consistency model, Heun steps of a diffusion model
  --best      from the checkpoint with the best metric, where config.checkpoint.best kept one, not the newest
  --prompt    what all samples show, where the run was trained on captions; else sample i has the i-th test caption
  --guidance  scale of classifier-free guidance, instead of config.condition.guidance
  --seed      sample i of a seed is the same however many are drawn
"""

from pathlib import Path

from absl import flags

from experiments.engine import command_line
from experiments.engine.errors import UserError

_WORKDIR = flags.DEFINE_string("workdir", "", "folder of a trained run")
_NUM = flags.DEFINE_integer("num", 64, "how many samples")
_STEPS = flags.DEFINE_integer("steps", 1, "sampling steps")
_SEED = flags.DEFINE_integer("seed", 0, "seed of the noise")
_BEST = flags.DEFINE_bool("best", False, "the checkpoint with the best metric")
_PROMPT = flags.DEFINE_string("prompt", None, "caption of all samples")
_GUIDANCE = flags.DEFINE_float("guidance", None, "scale of classifier-free guidance")
_OUT = flags.DEFINE_string("out", "samples.png", "file to write")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "replace the file if it exists")


def main() -> None:
    for flag in (_NUM, _STEPS):
        if flag.value < 1:
            raise UserError(f"--{flag.name} must be >= 1, got {flag.value}")
    if _SEED.value < 0:
        raise UserError(f"--seed must be >= 0, got {_SEED.value}")
    out = Path(_OUT.value)
    if out.exists() and not _OVERWRITE.value:
        raise UserError(f"{out} exists; choose another --out, or add --overwrite")
    if not out.absolute().parent.is_dir():
        raise UserError(f"--out: the folder {out.absolute().parent} does not exist")

    import jax

    from experiments import runs
    from experiments.engine import pictures

    chosen = {flag.name: flag.value for flag in (_PROMPT, _GUIDANCE) if flag.value is not None}
    run = runs.restore(Path(_WORKDIR.value), evaluate=False, best=_BEST.value, condition=chosen)
    if run.task.sample is None:
        raise UserError(f"{_WORKDIR.value} is a {run.config.task} run, which draws no samples")
    images = run.task.sample(run.state, jax.random.key(_SEED.value), _NUM.value, _STEPS.value)
    try:
        pictures.write_panels(out, [(f"{_STEPS.value} step{'s' * (_STEPS.value > 1)}", images)])
    except OSError as error:
        raise UserError(f"--out {out} can't be written: {error.strerror or error}") from None
    print(f"{_NUM.value} samples in {_STEPS.value} step{'s' * (_STEPS.value > 1)} from {_WORKDIR.value}: {out}")


if __name__ == "__main__":
    command_line.run(main, required=("workdir",))
