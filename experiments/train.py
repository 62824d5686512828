"""Trains what a config describes, and goes on where an earlier start of the same run stopped.

usage: python -m experiments.train --config=FILE --workdir=DIR [--config.field=value ...]

  --config    file with get_config(), e.g. configs/consistency/digits.py
  --workdir   folder of the run: config.json, metrics.jsonl, tensorboard/, samples_<step>.png, curves.png, checkpoints/

Any field of the config can be overridden: --config.steps=2000 --config.method=training --config.optimizer.name=radam
"""

from pathlib import Path

from absl import flags

from experiments.engine import command_line

_CONFIG = command_line.define_config()
_WORKDIR = flags.DEFINE_string("workdir", "", "folder of the run")


def main() -> None:
    from experiments import runs, tasks  # after the flags are parsed: a typing error answers at once

    config = tasks.resolve(command_line.given_config(_CONFIG))
    workdir = Path(_WORKDIR.value)
    runs.use_compilation_cache(config)
    runs.train(config, workdir)
    pictures = sorted(workdir.glob("samples_*.png"), key=lambda path: int(path.stem.rsplit("_", 1)[1]))
    shown = f"pictures {pictures[-1]}, {workdir / 'curves.png'}; " if pictures else f"curves {workdir / 'curves.png'}; "
    print(f"done at step {config.steps}: {shown}checkpoint {workdir / 'checkpoints' / str(config.steps)}")


if __name__ == "__main__":
    command_line.run(main, required=("config", "workdir"))
