"""Small configs and calls of the programs, shared by the tests of experiments."""

import importlib
import os
import pathlib
import subprocess
import sys

import jax
import ml_collections
import numpy as np

from experiments.engine import compiling

ROOT = pathlib.Path(__file__).resolve().parents[2]
SMALL_MLP = {"model.width": 16, "model.depth": 1}


def small(name: str, **overrides) -> ml_collections.ConfigDict:
    """A config shrunk to run in seconds: `small("consistency/digits", steps=4, **{"model.width": 8})`."""
    config = importlib.import_module(f"configs.{name.replace('/', '.')}").get_config()
    defaults = {
        "batch_size": 16,
        "steps": 4,
        "log_every": 2,
        "evaluate_every": 0,
        "mesh.data": 1,
        **{f"evaluation.{field}": value for field, value in (("samples", 16), ("block", 16), ("pictured", 4))},
    }
    for path, value in {**defaults, **overrides}.items():
        node, *rest = [config, *path.split(".")]
        for part in rest[:-1]:
            node = node.get(part, None) if node is not None else None
        if node is not None and (rest[-1] in node or path in overrides):
            with node.ignore_type(), node.unlocked():
                node[rest[-1]] = value
    return config


def batch_of(world, indices: np.ndarray) -> dict[str, jax.Array]:
    """A batch as the loop hands it to an update."""
    return jax.device_put({**world.train.read(indices), "index": np.arange(len(indices), dtype=np.int32)})


def program(
    *arguments: str, timeout: float = 300, folder: pathlib.Path = ROOT, **environment: str
) -> subprocess.CompletedProcess:
    """Runs `python -m experiments.<...>` as a user does, with one device; in a folder where it may write."""
    variables = {**os.environ, "XLA_FLAGS": compiling.quick_flags(), "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=folder, env=variables, capture_output=True, text=True, timeout=timeout
    )


def only_line(result: subprocess.CompletedProcess) -> str:
    """What a program says that has refused something: one line, and exit code 2."""
    assert result.returncode == 2, (result.stdout, result.stderr)
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def tiny_flags(cache: pathlib.Path) -> list[str]:
    """Overrides of configs/consistency/digits.py for a run of seconds."""
    return [
        "--config=configs/consistency/digits.py",
        "--config.batch_size=16",
        "--config.model.width=16",
        "--config.model.depth=1",
        "--config.steps=400",
        "--config.log_every=10",
        "--config.evaluate_every=200",
        "--config.checkpoint.every=20",
        "--config.evaluation.samples=32",
        "--config.evaluation.block=32",
        "--config.evaluation.features.steps=5",
        "--config.evaluation.features.evaluate_every=0",
        f"--config.cache_dir={cache}",
    ]
