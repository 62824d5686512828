"""Trains what a config describes, and goes on where an earlier start of the same run stopped.

usage: python -m experiments.train --config=FILE --workdir=DIR [--init_from=DIR] [--config.field=value ...]

  --config      file with get_config(), e.g. configs/consistency/digits.py
  --workdir     folder of the run: config.json, metrics.jsonl, tensorboard/, samples_<step>.png, curves.png, checkpoints/
  --init_from   folder of another run, from whose averaged parameters this one starts

Several processes train one run together. TPU pods, Slurm, Kubernetes and Open MPI are detected; elsewhere each is told

  --coordinator=HOST:PORT --num-processes=N --process-id=I     process 0 listens at HOST:PORT

Any field of the config can be overridden: --config.steps=2000 --config.method=training --config.optimizer.name=radam
"""

from pathlib import Path

from absl import flags

from experiments.engine import command_line

_CONFIG = command_line.define_config()
_WORKDIR = flags.DEFINE_string("workdir", "", "folder of the run")
_INIT_FROM = flags.DEFINE_string(
    "init_from", "", "folder of another run, from whose averaged parameters this one starts"
)
_COORDINATOR = flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", -1, "how many processes train together")
_PROCESS_ID = flags.DEFINE_integer("process_id", -1, "which of them this one is")


def main() -> None:
    from experiments import runs, tasks  # after the flags are parsed: a typing error answers at once
    from experiments.engine import hosts, report

    config = tasks.resolve(command_line.given_config(_CONFIG))
    workdir = Path(_WORKDIR.value)
    if _INIT_FROM.value:
        config.init_from = str(Path(_INIT_FROM.value).resolve())
    hosts.start(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    runs.use_compilation_cache(config)
    runs.train(config, workdir)
    if not hosts.first():
        return
    samples, curves = report.newest_samples(workdir), workdir / "curves.png"
    shown = f"pictures {samples}, {curves}; " if samples else f"curves {curves}; "
    print(f"done at step {config.steps}: {shown}checkpoint {workdir / 'checkpoints' / str(config.steps)}")


if __name__ == "__main__":
    command_line.run(main, required=("config", "workdir"))
