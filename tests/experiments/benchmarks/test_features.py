"""The features benchmark in small: both sides of every objective agree, every part has its row."""

import importlib.util

import numpy as np
import pytest

from experiments.benchmarks import features, memory


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(features, "SCALE", 64)
    monkeypatch.setattr(features, "ROUNDS", (2, 2))


@pytest.mark.parametrize("name", ["layer_transfer", "relative_difficulty", "leave_one_out_neighbours", "pondering"])
def test_both_sides_are_the_same_function(name):
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    case = features.cases()[name]
    here, there = features.ours(case), features.theirs(name, case)
    features.check_same(name, here, there)

    def another():
        value, gradients = there()
        return value, [1.01 * gradient for gradient in gradients]

    with pytest.raises(AssertionError, match=f"{name} differ"):
        features.check_same(name, here, another)


def test_every_part_has_a_row(monkeypatch):
    chosen = {name: features.cases()[name] for name in ("hard_soft", "selective_scan 256")}
    monkeypatch.setattr(features, "cases", lambda: chosen)
    monkeypatch.setattr(features, "RELATION_EXAMPLES", 1)
    monkeypatch.setattr(features.search, "SPACE", features.search.SPACE[:16])
    records = features.run()
    with_torch = importlib.util.find_spec("torch") is not None
    named = [*chosen, *["median"] * with_torch, "memory of self_attention_relation, 1 examples"]
    assert [record["what"] for record in records[:-1]] == named
    assert records[0]["ours ms"] > 0
    assert len(records[-1]) == 3
    assert np.all([rate > 0 for key, rate in records[-1].items() if key != "what"])
    assert ("ours MiB" in records[-2]) == memory.can_measure()
