"""Configs as plain data: their fingerprint, their file in a workdir, and what two of them do not share."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_collections

from experiments.engine.errors import UserError

# Fields that change what is written, when, or where it runs, but not the numbers of the run.
INCIDENTAL = frozenset(
    {
        "accumulate",
        "cache_dir",
        "checkpoint",
        "data.data_dir",
        "data.resident_bytes",
        "evaluate_every",
        "log_every",
        "mesh",
        "model.remat",
        "parallel",
    }
)

# Fields that configs of older runs lack, with what they mean where they are not given.
ADDED: dict[str, Any] = {"accumulate": 1, "checkpoint.best": "", "checkpoint.best_mode": "min", "init_from": ""}

# These and fields that tell nothing apart where they have this value, so that older runs count as the same.
NEUTRAL: dict[str, Any] = {**ADDED, "data.jitter": 1.0, "data.only": {}, "data.unsaid": 0.0}


def complete(config: ml_collections.ConfigDict) -> None:
    """Adds the fields of ADDED that a config lacks."""
    for path, value in ADDED.items():
        *sections, field = path.split(".")
        holder: Any = config
        for name in sections:
            holder = holder.get(name, None) if isinstance(holder, ml_collections.ConfigDict) else None
        if isinstance(holder, ml_collections.ConfigDict) and field not in holder:
            holder[field] = value


def plain(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The config as JSON data (tuples become lists)."""
    return json.loads(json.dumps(config.to_dict()))


def flatten(tree: Any, prefix: str = "", separator: str = ".") -> Iterator[tuple[str, Any]]:
    """('a.b', value) for every leaf of nested dicts."""
    for name, value in tree.items():
        path = f"{prefix}{name}"
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{path}{separator}", separator)
        else:
            yield path, value


def _changes_nothing(path: str, value: Any) -> bool:
    parts = path.split(".")
    inner = {".".join(parts[i:j]) for i in range(len(parts)) for j in range(i + 1, len(parts) + 1)}
    ends = {".".join(parts[i:]) for i in range(len(parts))}
    return bool(inner & INCIDENTAL) or any(NEUTRAL[end] == value for end in ends & NEUTRAL.keys())


def computation(config: ml_collections.ConfigDict | dict[str, Any]) -> dict[str, Any]:
    """The fields, by dotted path, that change the numbers of a run."""
    tree = config if isinstance(config, dict) else plain(config)
    return {path: value for path, value in flatten(tree) if not _changes_nothing(path, value)}


def fingerprint(config: ml_collections.ConfigDict) -> str:
    """Twelve hexadecimal digits that two configs share where they compute the same."""
    return digest(json.dumps(computation(config), sort_keys=True))


def digest(text: str) -> str:
    """Twelve hexadecimal digits of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def save(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Writes `config.json`, atomically."""
    partial = workdir / "config.json.partial"
    partial.write_text(json.dumps(plain(config), indent=2) + "\n")
    os.replace(partial, workdir / "config.json")


def load(workdir: Path) -> ml_collections.ConfigDict:
    """Reads `config.json` of a run."""
    path = workdir / "config.json"
    try:
        tree = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{workdir} is no run: it has no config.json") from None
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is corrupt ({error}); restore it, or choose another workdir") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} is corrupt (an object was expected); restore it, or choose another workdir")
    return ml_collections.ConfigDict(tree)


def check_same(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Refuses a workdir that another config made, naming the fields that differ."""
    ours, theirs = computation(config), computation(load(workdir))
    absent = "absent"
    differing = [
        f"{path}: {theirs.get(path, absent)!r} there, {ours.get(path, absent)!r} here"
        for path in sorted(ours.keys() | theirs.keys())
        if ours.get(path, absent) != theirs.get(path, absent)
    ]
    if differing:
        raise UserError(
            f"{workdir} was made by another config; choose another --workdir. Differing fields: {'; '.join(differing)}"
        )
