"""Does a method work? Measures a paper's claim in miniature, method against baseline over seeds, and gives a verdict.

usage: python -m experiments.reproduce --config=configs/papers/NAME.py [--workdir=DIR] [--smoke] [--config.field=value ...]
       python -m experiments.reproduce --all [--only=ROOM_OR_NAME,...] [--workdir=DIR] [--smoke [--workers=N]]
       python -m experiments.reproduce --list
       python -m experiments.reproduce --table [--only=ROOM_OR_NAME,...] [--workdir=DIR]

  --workdir   folder of results.json, table.md and figure.png (default: runs/papers/NAME; with --all the folder of those)
  --smoke     tiny sizes, one seed, no verdict: does it run? (default workdir: runs/smoke/NAME)
  --all       the whole catalogue; --only narrows it to rooms of the library (dropout, privacy, ...) or to papers
  --workers   processes that share the papers of --all --smoke (default: one a core up to 8, with an accelerator one in all)
  --list      prints the catalogue, with the verdicts of the last full run
  --table     prints and draws the tables that papers share, such as all objectives of distillation in one setting, from
              results in DIR (default: runs/papers) or, where it has none, in docs/results; runs nothing

Interrupted, it goes on where it stopped. More seeds: --config.seeds=10; other settings: --config.settings.steps=1000.
"""

import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from experiments.engine import command_line, compiling, workers
from experiments.engine.errors import UserError

MOST_WORKERS = 8  # unless more are asked for: each takes a gigabyte or so
_CONFIG = command_line.define_config()
_WORKDIR = flags.DEFINE_string("workdir", "", "folder of the results")
_SMOKE = flags.DEFINE_boolean("smoke", False, "tiny sizes, one seed, no verdict")
_ALL = flags.DEFINE_boolean("all", False, "the whole catalogue")
_ONLY = flags.DEFINE_string("only", "", "rooms or papers, with commas between")
_WORKERS = flags.DEFINE_integer("workers", None, "processes that share the papers of --all --smoke")
_LIST = flags.DEFINE_boolean("list", False, "print the catalogue")
_TABLE = flags.DEFINE_boolean("table", False, "print and draw the tables that papers share")


def main() -> None:
    if _SMOKE.value:
        compiling.compile_quickly()
    # After the flags are parsed: a typing error answers at once.
    from experiments.reproducing import catalogue, listing, tables

    given = sum(map(bool, (_CONFIG.value is not None, _ALL.value, _LIST.value, _TABLE.value)))
    if given != 1:
        raise UserError("give one of --config=configs/papers/NAME.py, --all, --list and --table; see --help")
    if _ONLY.value and _CONFIG.value is not None:
        raise UserError("--only narrows --all, --list or --table, not --config")
    number = _workers()
    if _LIST.value:
        listing.to_terminal(catalogue.chosen(_ONLY.value))
        return
    if _TABLE.value:
        if _SMOKE.value:
            raise UserError("--table shows full results; a --smoke run has none")
        tables.show(catalogue.chosen(_ONLY.value), Path(_WORKDIR.value or "runs/papers"))
        return
    parent = Path("runs") / ("smoke" if _SMOKE.value else "papers")
    if _CONFIG.value is not None:
        from experiments.reproducing import program

        name = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
        config, workdir = command_line.given_config(_CONFIG), Path(_WORKDIR.value or parent / name)
        program.run(name, config, workdir, smoke=_SMOKE.value)
    else:
        names = catalogue.chosen(_ONLY.value)
        everything(names, Path(_WORKDIR.value or parent), min(number, len(names)))


def everything(names: list[str], workdir: Path, number: int) -> None:
    """Runs papers in `number` processes and tells what became of each."""
    from experiments.reproducing import listing, several

    if number > 1:
        found = several.at_once(names, workdir, number, sys.argv)
    else:
        found = several.in_turn(names, workdir, smoke=_SMOKE.value)
    listing.summary({name: outcome.said for name, outcome in found.items()})
    kinds = [outcome.kind for outcome in found.values()]
    if several.REFUSED in kinds:
        raise UserError(f"{kinds.count(several.REFUSED)} of {len(names)} papers were refused")
    if several.FAILED in kinds:
        raise SystemExit(command_line.EXIT_FAILED)


def _workers() -> int:
    """How many processes share the work."""
    given = _WORKERS.value
    if (given is None and not (_SMOKE.value and _ALL.value)) or given == 1:
        return 1
    if given is not None and given < 1:
        raise UserError(f"--workers must be >= 1, got {given}")
    if not _ALL.value:
        raise UserError(f"--workers={given} shares out the papers of --all; one paper is the work of one process")
    if not _SMOKE.value:
        raise UserError(f"--workers={given} is for --smoke: full runs measure time, and want the machine to themselves")
    import jax

    if jax.default_backend() == "cpu":
        return given or min(workers.cores(), MOST_WORKERS)
    if given is None:
        return 1
    raise UserError(f"--workers={given} is for the CPU (JAX_PLATFORMS=cpu): one process takes all of an accelerator")


if __name__ == "__main__":
    command_line.run(main)
