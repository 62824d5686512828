"""Does a method work? Measures a paper's claim in miniature, method against baseline over seeds, and gives a verdict.

usage: python -m experiments.reproduce --config=configs/papers/NAME.py [--workdir=DIR] [--smoke] [--config.field=value ...]
       python -m experiments.reproduce --all [--only=ROOM_OR_NAME,...] [--workdir=DIR] [--smoke]
       python -m experiments.reproduce --list
       python -m experiments.reproduce --table [--only=ROOM_OR_NAME,...] [--workdir=DIR]

  --workdir   folder of results.json, table.md and figure.png (default: runs/papers/NAME; with --all the folder of those)
  --smoke     tiny sizes, one seed, no verdict: does it run? (default workdir: runs/smoke/NAME)
  --all       the whole catalogue; --only narrows it to rooms of the library (dropout, privacy, ...) or to papers
  --list      prints the catalogue, with the verdicts of the last full run
  --table     prints and draws the tables that papers share, such as all objectives of distillation in one setting, from
              results in DIR (default: runs/papers) or, where it has none, in docs/results; runs nothing

Interrupted, it goes on where it stopped. More seeds: --config.seeds=10; other settings: --config.settings.steps=1000.
"""

import time
import traceback
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from experiments.engine import command_line, compiling
from experiments.engine.errors import UserError, first_line

_CONFIG = command_line.define_config()
_WORKDIR = flags.DEFINE_string("workdir", "", "folder of the results")
_SMOKE = flags.DEFINE_boolean("smoke", False, "tiny sizes, one seed, no verdict")
_ALL = flags.DEFINE_boolean("all", False, "the whole catalogue")
_ONLY = flags.DEFINE_string("only", "", "rooms or papers, with commas between")
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
        name = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
        one(name, command_line.given_config(_CONFIG), Path(_WORKDIR.value or parent / name))
    else:
        everything(catalogue.chosen(_ONLY.value), Path(_WORKDIR.value or parent))


def one(name: str, config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
    """Runs one paper and shows what came out; gives the tree of its results."""
    from experiments import runs
    from experiments.reproducing import catalogue, program

    catalogue.check(config)
    runs.use_compilation_cache(config)
    with runs.locked(workdir, wait=False):
        return program.measure(name, config, workdir, smoke=_SMOKE.value)


def everything(names: list[str], workdir: Path) -> None:
    """Runs papers one after the other; one that fails does not keep the others from running."""
    from experiments.reproducing import catalogue, listing

    told: dict[str, str] = {}
    mendable = failed = False
    for name in names:
        began = time.perf_counter()
        try:
            told[name] = one(name, catalogue.load(name), workdir / name).get("verdict", "ran")
        except UserError as error:
            told[name], mendable = f"refused: {error}", True
        except Exception as error:
            traceback.print_exc()
            told[name], failed = f"failed: {type(error).__name__}: {first_line(error)}", True
        told[name] += f" ({time.perf_counter() - began:.0f} s)"
    listing.summary(told)
    if mendable:
        raise UserError(f"{sum('refused' in said for said in told.values())} of {len(names)} papers were refused")
    if failed:
        raise SystemExit(command_line.EXIT_FAILED)


if __name__ == "__main__":
    command_line.run(main)
