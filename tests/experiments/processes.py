"""Two processes with four devices each that train together, and what came of them."""

import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from experiments.engine import compiling, logs
from tests.experiments.helpers import ROOT


class Ended(NamedTuple):
    codes: tuple[int, int]
    errors: list[str]  # of each process and of what it has left behind


def begun(config: pathlib.Path, workdir: pathlib.Path, fields: Mapping[str, object]) -> list[subprocess.Popen]:
    """Both processes of a run, on a port that is free; what process i prints goes to `workdir` with `.i` behind it."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "experiments.train", f"--config={config}", f"--workdir={workdir}"]
    command += [f"--config.{field}={value}" for field, value in fields.items()]
    command += [f"--coordinator=localhost:{port}", "--num-processes=2"]
    flags = f"{compiling.quick_flags()} --xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    options = {"cwd": ROOT, "env": environment, "stderr": subprocess.PIPE, "text": True}
    processes = []
    for process in range(2):
        with workdir.with_name(f"{workdir.name}.{process}").open("w") as output:
            processes.append(subprocess.Popen([*command, f"--process-id={process}"], stdout=output, **options))
    return processes


def ended(processes: list[subprocess.Popen]) -> Ended:
    codes = tuple(process.wait(timeout=300) for process in processes)
    return Ended(codes, [process.communicate(timeout=60)[1] for process in processes])


def losses(workdir: pathlib.Path) -> np.ndarray:
    """Those of all steps of a run that logs each."""
    records = logs.read(workdir / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(1, len(records) + 1))
    return np.array([record["loss"] for record in records])
