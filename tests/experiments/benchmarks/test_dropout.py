"""The dropout benchmark in small: a row for each side, both sides the same function, and a word where PyTorch is missing."""

import importlib.util

import jax
import numpy as np
import pytest

from configs.papers import multi_sample_dropout as paper
from experiments import benchmark
from experiments.benchmarks import consistency, dropout


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(dropout, "HEADS", ((4, 8, 3),))
    monkeypatch.setattr(dropout, "SAMPLES", (2,))
    monkeypatch.setattr(dropout, "ROUNDS", (2, 2))
    monkeypatch.setattr(dropout, "SEEDS", 2)
    monkeypatch.setattr(dropout, "STUDY", paper.get_config().smoke.to_dict())


def test_every_side_has_a_row(small):
    records = dropout.run()
    sides = [record["side"] for record in records]
    assert sides[0] == "ours"
    assert sides[-4:] == ["in one call", "one by one"] * 2
    expected = {"PyTorch, loop, 1 thread", "PyTorch, stacked, 1 thread"} if importlib.util.find_spec("torch") else set()
    assert set(sides[1:-4]) >= expected
    assert len({record["what"] for record in records}) == 3
    for record in records:
        assert 0 < record["lower quartile"] <= record["ms"] <= record["upper"]
        first = next(other for other in records if other["what"] == record["what"])
        assert record["over ours"] == pytest.approx(record["ms"] / first["ms"])
    assert "dropout" in benchmark.SUBJECTS


def test_without_torch_it_says_so(small, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(dropout, "_seeds", list)
    assert {record["side"] for record in dropout.run()} == {"ours"}
    assert consistency.NO_TORCH in capsys.readouterr().out


def test_our_side_is_timed_with_fresh_masks():
    given = dropout.problem(4, 8, 3)
    call = dropout.ours(given, 2, 0.5)
    losses = []
    again = dropout._fresh(lambda key: losses.append(float(call(key)[0])))
    again()
    again()
    assert losses[0] != losses[1]


def test_both_sides_are_the_same_function(monkeypatch):
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    given = dropout.problem(4, 8, 3)
    dropout.check_same(given, 2)
    # With dropout both estimate one expectation: the mean gradient of the kernel over many draws.
    ours, theirs = dropout.ours(given, 500, 0.5), dropout.theirs(given, 500, 0.5)
    expected = np.asarray(ours(jax.random.key(0))[1][1])
    torch.manual_seed(0)
    for call in theirs.values():
        np.testing.assert_allclose(call()[1][1], expected, atol=0.15)  # five sigma
    # A summed loss is found out.
    monkeypatch.setattr(dropout, "theirs", lambda *arguments: {"sum": lambda: _doubled(theirs["PyTorch, loop"]())})
    with pytest.raises(AssertionError, match="sum differs"):
        dropout.check_same(given, 2)


def _doubled(result):
    loss, gradients = result
    return 2 * loss, tuple(2 * gradient for gradient in gradients)
