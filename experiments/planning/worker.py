"""Calls the worker that compiles, in a process where the TPU compiler reaches neither the user nor another program."""

import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ml_collections

from experiments.engine import configuration
from experiments.engine.errors import UserError
from experiments.planning.chips import LOCAL, Topology

# The compiler is a whole TPU driver. It must look for no TPU, take no lock that another program needs, and leave no logs.
QUIET = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # without it /tmp/libtpu_lockfile is made, and stays
    "JAX_PLATFORMS": "cpu",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TPU_LOG_DIR": "disabled",  # without it /tmp/tpu_logs
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_SKIP_MDS_QUERY": "1",  # the metadata server of a cloud machine
    "TPU_STDERR_LOG_LEVEL": "3",
}
ROOT = Path(__file__).resolve().parents[2]
LINE = 200  # characters of a foreign message that are shown


def numbers(config: ml_collections.ConfigDict, topology: Topology) -> dict[str, Any]:
    """What the compiler says of one step of a resolved config on a topology."""
    with tempfile.TemporaryDirectory() as folder:
        request, result = Path(folder, "request.json"), Path(folder, "result.json")
        asked = {"config": configuration.plain(config), "kind": topology.kind, "topology": topology.name}
        request.write_text(json.dumps(asked))
        command = [sys.executable, "-m", "experiments.planning.compile", str(request), str(result)]
        environment = _environment(topology)
        with Path(folder, "output").open("w+") as output:
            code = _run(command, environment, output, f"compiling one step for {topology.name}")
            output.seek(0)
            said = output.read()
        if code or not result.exists():
            raise UserError(f"the step could not be compiled for {topology.name}: {_last_line(said, code)}")
        answer = json.loads(result.read_text())
    if "error" in answer:
        raise UserError(answer["error"])
    return answer


def find_compiler() -> str:
    """The file of the TPU compiler; finding it loads nothing of it."""
    given = os.environ.get("TPU_LIBRARY_PATH", "")
    found = importlib.util.find_spec("libtpu")
    library = given or (str(Path(found.origin).with_name("libtpu.so")) if found and found.origin else "")
    if not Path(library).is_file():
        raise UserError(
            "planning for a TPU needs its compiler: pip install -e '.[plan]' (--topology=local does without)"
        )
    return library


def _environment(topology: Topology) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH", "")])])
    own = {**os.environ, "PYTHONPATH": path}
    if topology.kind == LOCAL:
        return own
    own.pop("TPU_LOAD_LIBRARY", None)  # how programs are told to leave the library alone
    return {**own, **QUIET, "TPU_LIBRARY_PATH": find_compiler()}


def _run(command: list[str], environment: dict[str, str], output: Any, doing: str) -> int:
    """The worker's exit code. It ends when this process does, because its standard input closes then."""
    began = time.monotonic()
    worker = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=output, stderr=output)
    shown = sys.stderr.isatty()
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return worker.wait(timeout=1)
            if shown:
                print(f"\r{doing} ({time.monotonic() - began:.0f} s)", end="", file=sys.stderr, flush=True)
    finally:
        worker.kill()
        worker.wait()
        assert worker.stdin is not None
        worker.stdin.close()
        if shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _last_line(said: str, code: int) -> str:
    """The last line of a traceback or log that says something."""
    if code == -signal.SIGKILL:
        return "it was killed, perhaps for want of memory"
    lines = [line.strip() for line in said.splitlines() if line.strip() and not line.startswith((" ", "See http"))]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Exhausted)\w*\b", line)]
    return (errors or lines or [f"it ended with status {code}"])[-1][:LINE]
