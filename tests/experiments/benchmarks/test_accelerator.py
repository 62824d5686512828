"""The records of training on an accelerator, taken on the CPU with a small network."""

import importlib.util
import itertools

import jax
import pytest

from experiments.benchmarks import accelerator, consistency


@pytest.fixture
def small():
    return consistency.prepared("MLP", "digits", (8, 8, 1), 8, 2, 1, dtype="bfloat16")


def test_without_pytorch_ours_alone(small, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    records = accelerator.measured(small, "bfloat16")
    # A CPU counts no memory, and its most arithmetic is not known.
    assert [record["quantity"] for record in records] == [
        "MLP, batch 8, bfloat16: ours, steps a second",
        "MLP, batch 8, bfloat16: ours, first call, with compilation",
    ]
    assert all(record["value"] > 0 for record in records)
    said = capsys.readouterr().err
    assert consistency.NO_TORCH in said
    assert "MLP, batch 8, bfloat16, ours compiled in" in said


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
def test_beside_pytorch(small, monkeypatch):
    import torch

    monkeypatch.setattr(torch, "compile", lambda function: function)  # minutes, and a compiler of C++
    records = {record["quantity"]: record["value"] for record in accelerator.measured(small, "bfloat16")}
    ours, theirs = (records[f"MLP, batch 8, bfloat16: {side}, steps a second"] for side in ("ours", "PyTorch"))
    assert records["MLP, batch 8, bfloat16: PyTorch over ours"] == pytest.approx(ours / theirs)


def test_arithmetic_of_an_update_is_that_of_its_layers(small):
    widths = [64, *[small.config.model.width] * (1 + 2 * small.config.model.depth), 64]
    layers = 2 * sum(a * b for a, b in itertools.pairwise(widths))
    # A pass of the teacher, one of the student, and twice that backwards; the time's embedding comes on top.
    assert 3.5 * 8 * layers < accelerator._arithmetic(small) < 8 * 8 * layers


def test_peaks_are_known_by_the_name_of_the_device(monkeypatch):
    class Device:
        device_kind = "NVIDIA H100 80GB HBM3"

    monkeypatch.setattr(jax, "devices", lambda: [Device])
    assert accelerator._peak("bfloat16") == 2 * accelerator._peak("float32") == 989.4e12
