"""Benchmarks in a process of their own, where devices or memory must be as nothing else has left them."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def records(module: str, *arguments: str, **variables: str) -> list[dict[str, Any]]:
    """What `python -m MODULE FILE ARGUMENTS...` writes into the file, under further variables of the environment."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "records.json"
        command = [sys.executable, "-m", module, str(out), *arguments]
        subprocess.run(command, cwd=ROOT, env={**os.environ, **variables}, check=True)
        return json.loads(out.read_text())
