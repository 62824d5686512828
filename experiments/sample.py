"""Draws samples from a trained run and writes them as one picture, or texts as one file.

usage: python -m experiments.sample --workdir=DIR [--num=64] [--steps=2] [--seed=0] [--best]
                                     [--prompt="large red circle"] [--guidance=2] [--temperature=0.8] [--top_k=20]
                                     [--out=samples.png] [--overwrite]

  --steps        network jumps of a consistency model, by default 1; Heun steps of a diffusion model, by default the most of
                 config.evaluation.steps; tokens of a language model, by default what config.sampling says
  --best         from the checkpoint with the best metric, where config.checkpoint.best kept one, not the newest
  --prompt       what all samples show, where the run was trained on captions; else sample i has the i-th test caption.
                 What all samples of a language model begin with
  --guidance     scale of classifier-free guidance, instead of config.condition.guidance
  --temperature  of a language model, instead of config.sampling.temperature; 0 takes the likeliest tokens
  --top_k        a language model draws among so many tokens, instead of config.sampling.top_k
  --seed         sample i of a seed is the same however many are drawn
  --out          by default samples.png, or samples.txt of a language model, whose texts are printed too
"""

from pathlib import Path

from absl import flags

from experiments.engine import command_line
from experiments.engine.errors import UserError

_WORKDIR = flags.DEFINE_string("workdir", "", "folder of a trained run")
_NUM = flags.DEFINE_integer("num", 64, "how many samples")
_STEPS = flags.DEFINE_integer("steps", None, "sampling steps")
_SEED = flags.DEFINE_integer("seed", 0, "seed of the noise")
_BEST = flags.DEFINE_bool("best", False, "the checkpoint with the best metric")
_PROMPT = flags.DEFINE_string("prompt", None, "caption of all samples, or how texts begin")
_GUIDANCE = flags.DEFINE_float("guidance", None, "scale of classifier-free guidance")
_TEMPERATURE = flags.DEFINE_float("temperature", None, "temperature of a language model")
_TOP_K = flags.DEFINE_integer("top_k", None, "tokens among which a language model draws")
_OUT = flags.DEFINE_string("out", None, "file to write")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "replace the file if it exists")


def main() -> None:
    for flag in (_NUM, _STEPS):
        if flag.value is not None and flag.value < 1:
            raise UserError(f"--{flag.name} must be >= 1, got {flag.value}")
    if _SEED.value < 0:
        raise UserError(f"--seed must be >= 0, got {_SEED.value}")
    if _OUT.value is not None:
        _check_out(Path(_OUT.value))

    import jax

    from experiments import runs, tasks
    from experiments.engine import pictures

    workdir = Path(_WORKDIR.value)
    texts = runs.load_config(workdir).task in tasks.OF_TEXTS
    out = Path(_OUT.value or ("samples.txt" if texts else "samples.png"))
    _check_out(out)
    given = (_PROMPT, _GUIDANCE, _TEMPERATURE, _TOP_K)
    chosen = {flag.name: flag.value for flag in given if flag.value is not None}
    run = runs.restore(workdir, evaluate=False, best=_BEST.value, chosen=chosen)
    if run.task.sample is None:
        raise UserError(f"{workdir} is a {run.config.task} run, which draws no samples")
    steps = _STEPS.value or run.task.steps
    drawn = run.task.sample(run.state, jax.random.key(_SEED.value), _NUM.value, steps)
    taken = f"{steps} {'token' if texts else 'step'}{'s' * (steps > 1)}"
    try:
        pictures.write(out, drawn if texts else [(taken, drawn)])
    except OSError as error:
        raise UserError(f"--out {out} can't be written: {error.strerror or error}") from None
    if texts:
        print(pictures.headed(drawn))
    print(f"{_NUM.value} samples in {taken} from {workdir}: {out}")


def _check_out(out: Path) -> None:
    if out.exists() and not _OVERWRITE.value:
        raise UserError(f"{out} exists; choose another --out, or add --overwrite")
    if not out.absolute().parent.is_dir():
        raise UserError(f"--out: the folder {out.absolute().parent} does not exist")


if __name__ == "__main__":
    command_line.run(main, required=("workdir",))
