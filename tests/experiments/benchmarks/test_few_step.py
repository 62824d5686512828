"""The few-step benchmark in small: both sides of every loss agree, every sampler has a row, a word without PyTorch."""

import importlib.util

import jax
import numpy as np
import pytest

from experiments import benchmark
from experiments.benchmarks import consistency, few_step

CASES = pytest.mark.parametrize("case", few_step.CASES, ids=lambda case: case.theirs)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(few_step, "NETWORK", {**few_step.NETWORK, "width": 8, "depth": 1, "fourier_features": 4})
    monkeypatch.setattr(few_step, "SHAPE", (2, 2, 1))
    monkeypatch.setattr(few_step, "BATCH", 6)
    monkeypatch.setattr(few_step, "ROUNDS", (2, 2))
    monkeypatch.setattr(few_step, "HEUN_STEPS", 3)


@CASES
def test_both_sides_are_the_same_function(small, case):
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    apply, copies = few_step.network()
    at = few_step.given()
    here, there = few_step.ours(case, apply, copies, at), few_step.theirs(case, copies, at)
    few_step.check_same(case, here, there)

    def another():
        loss, gradients = there()
        return loss, [1.01 * gradient for gradient in gradients]

    with pytest.raises(AssertionError, match=f"{case.name} differ"):
        few_step.check_same(case, here, another)


def test_every_loss_and_every_sampler_has_a_row(small, monkeypatch):
    monkeypatch.setattr(few_step, "CASES", few_step.CASES[3:5])
    records = few_step.run()
    losses = [record for record in records if record["what"] in {"critic", "variational"}]
    assert len(losses) == 2
    for record in losses:
        assert record["batch"] == 6
        assert record["ours ms"] > 0
        if importlib.util.find_spec("torch"):
            assert record["PyTorch, 1 thread ms"] > 0
            assert 0 < record["lower quartile"] <= record["over ours"] <= record["upper"]
    heun, one, two = records[-3:]
    assert [record["what"] for record in (heun, one, two)] == [
        "sampling, 3 steps of Heun",
        "sampling, 1 step",
        "sampling, 2 steps",
    ]
    assert heun["over Heun"] == 1
    for record in (one, two):
        assert record["images/s"] == pytest.approx(6000 / record["ours ms"])
        assert record["over Heun"] == pytest.approx(heun["ours ms"] / record["ours ms"])
    assert "few_step" in benchmark.SUBJECTS


def test_the_fastest_other_side_is_compared_round_by_round():
    columns = few_step._columns({"ours": [1.0, 2.0, 4.0], "slow": [9.0, 9.0, 9.0], "fast": [3.0, 4.0, 4.0]})
    assert columns["ours ms"] == 2000
    assert (columns["lower quartile"], columns["over ours"], columns["upper"]) == (1.5, 2.0, 2.5)


def test_without_torch_it_says_so(small, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(few_step, "CASES", few_step.CASES[3:4])
    monkeypatch.setattr(few_step, "_sampling", list)
    assert few_step.run()[0].keys() == {"what", "batch", "ours ms"}
    assert consistency.NO_TORCH in capsys.readouterr().out


def test_samplers_draw_by_their_key(small):
    apply, copies = few_step.network()
    for program in few_step.samplers(apply).values():
        first, again, other = (np.asarray(program(copies[0], jax.random.key(seed))) for seed in (0, 0, 1))
        assert first.shape == (6, 2, 2, 1)
        assert np.isfinite(first).all()
        np.testing.assert_array_equal(first, again)
        assert (first != other).any()
