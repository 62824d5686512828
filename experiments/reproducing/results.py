"""`results.json` of a paper: what every arm and seed gave, kept as soon as it is there."""

import datetime
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections

import mlfuncs
from experiments.engine import configuration
from experiments.engine.errors import UserError
from experiments.reproducing import catalogue

FILE = "results.json"
ENVIRONMENT = ("device", "date", "versions")
DIGITS = 7  # significant ones that are kept: those of float32


class Results:
    """The results of one config in a folder; those of another config are refused."""

    def __init__(self, workdir: Path, name: str, config: ml_collections.ConfigDict, *, smoke: bool):
        self.path, self.smoke = workdir / FILE, smoke
        self.hash = catalogue.fingerprint(config, smoke=smoke)
        found = read(self.path) if self.path.exists() else {}
        if found and found["hash"] != self.hash:
            raise UserError(
                f"{self.path} holds results of another config, {found['hash']}, and this one is {self.hash}: "
                "choose another --workdir, or move that file away"
            )
        self._tree: dict[str, Any] = {
            "paper": name,
            "hash": self.hash,
            "config": configuration.plain(config),
            "arms": found.get("arms", {}),
            "seconds": found.get("seconds", 0.0),
            # Where the numbers were made; the verdict is not taken over, as it is of what was asked for then.
            **{field: found[field] for field in ENVIRONMENT if field in found},
        }

    def missing(self, arm: str, seeds: int) -> list[int]:
        """Seeds of an arm that are still to be run."""
        return [seed for seed in range(seeds) if str(seed) not in self._tree["arms"].get(arm, {})]

    def add(self, arm: str, found: Mapping[int, Mapping[str, float]], seconds: float) -> None:
        """Keeps what some seeds of an arm gave; a kill at any moment leaves the file as it was before or after."""
        records = self._tree["arms"].setdefault(arm, {})
        for seed, metrics in found.items():
            records[str(seed)] = {name: rounded(value) for name, value in metrics.items()}
        self._tree["seconds"] += seconds
        self._tree.update(environment())
        write(self.path, self._tree)

    def metrics(self, arm: str) -> list[str]:
        """Names of what an arm gave."""
        return list(next(iter(self._tree["arms"][arm].values())))

    def numbers(self, arms: Sequence[str], seeds: int) -> dict[str, dict[str, list[float]]]:
        """Values by arm and metric, one for each seed."""
        return {
            arm: {
                metric: [_number(self._tree["arms"][arm][str(seed)].get(metric)) for seed in range(seeds)]
                for metric in self.metrics(arm)
            }
            for arm in arms
        }

    def tell(self, **fields: Any) -> None:
        """Keeps the verdict, and what else is known once all arms are there."""
        self._tree.update(fields)
        write(self.path, self._tree)

    @property
    def tree(self) -> dict[str, Any]:
        return self._tree


def read(path: Path) -> dict[str, Any]:
    """A results file."""
    try:
        tree = json.loads(path.read_text())
        if not {"paper", "hash", "arms"} <= tree.keys():
            raise ValueError("it has no paper, hash or arms")
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}") from None
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path} is corrupt ({error}); move it away, or choose another --workdir") from None
    return tree


def write(path: Path, tree: Mapping[str, Any]) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(tree, indent=1, allow_nan=False) + "\n")
    os.replace(partial, path)


def environment() -> dict[str, Any]:
    """Where and when numbers were made."""
    import flax
    import optax

    return {
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "date": datetime.date.today().isoformat(),
        "versions": {
            "mlfuncs": mlfuncs.__version__,
            "jax": jax.__version__,
            "flax": flax.__version__,
            "optax": optax.__version__,
        },
    }


def rounded(value: float) -> float | None:
    """As kept in a file; JSON has no word for what is no finite number."""
    value = float(f"{float(value):.{DIGITS}g}")
    return value if abs(value) < float("inf") else None


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
