"""Flags for programs that compile fast: known to this XLA, and the user's own stay."""

import os
import subprocess
import sys

from experiments.engine import compiling
from tests.experiments.helpers import ROOT


def test_the_flags_of_the_user_win(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=3")
    compiling.compile_quickly()
    assert os.environ["XLA_FLAGS"] == f"{compiling.quick_flags()} --xla_backend_optimization_level=3"


def test_every_release_is_given_flags_that_it_knows(monkeypatch):
    monkeypatch.setattr(compiling.importlib.metadata, "version", lambda name: "0.11.0")
    assert "fusion_emitters" not in compiling.quick_flags()
    monkeypatch.setattr(compiling.importlib.metadata, "version", lambda name: "0.10.2")
    assert "--xla_cpu_use_fusion_emitters=false" in compiling.quick_flags()


def test_xla_takes_them():
    first = "from experiments.engine import compiling; compiling.compile_quickly()"
    code = f"{first}; import jax; print(jax.jit(lambda x: 2 * x)(3))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout == "6\n", done.stderr
