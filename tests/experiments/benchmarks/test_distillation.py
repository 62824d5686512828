"""The distillation benchmark in small: both sides of every objective agree, every objective has its rows."""

import importlib.util
import inspect

import numpy as np
import pytest

from experiments import benchmark
from experiments.benchmarks import consistency, distillation, memory
from mlfuncs import distillation as library

# No losses on logits of their own: probabilities, parameters, targets, features, sums or parts of the others.
NO_OBJECTIVES = {
    "align_gradients",
    "blended_teachers",
    "channel_correlation",
    "choose_source",
    "divide_by_deviation",
    "dual_head",
    "dual_head_objective",
    "dual_head_probabilities",
    "hard_soft",
    "interpolate_parameters",
    "multi_exit",
    "perturb_parameters",
    "plackett_luce_gradient",
    "prefix_ensemble",
    "routed_teachers",
    "self_distilled_ridge",
    "self_paced_logits",
    "similarity_preserving",
    "teacher_ranking",
    "vertical_soft_targets",
    "weighted_list_likelihood",
}


@pytest.mark.parametrize("name", distillation.OBJECTIVES)
def test_both_sides_are_the_same_function(name):
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    at = distillation.given(32, 12)
    here, there = distillation.ours(name, at), distillation.theirs(name, at)
    distillation.check_same(name, here, there)

    def another():
        value, gradient = there()
        return value, 1.01 * gradient

    with pytest.raises(AssertionError, match=f"{name} differ"):
        distillation.check_same(name, here, another)


def test_every_loss_of_the_room_on_logits_is_measured():
    on_logits = {
        name for name in library.__all__ if "student_logits" in inspect.signature(getattr(library, name)).parameters
    }
    assert set(distillation.OBJECTIVES) == on_logits - NO_OBJECTIVES
    assert distillation.SIZES == ((1024, 1000), (4096, 100), (2048, 32000))


def test_every_objective_has_a_row(monkeypatch, capsys):
    monkeypatch.setattr(distillation, "SIZES", ((16, 10), (32, 20)))
    monkeypatch.setattr(distillation, "VOCABULARY", 20)
    monkeypatch.setattr(distillation, "ROUNDS", (2, 2))
    chosen = {name: distillation.OBJECTIVES[name] for name in ("sinkhorn", "total_variation", "sequence_divergence")}
    monkeypatch.setattr(distillation, "OBJECTIVES", chosen)
    records = distillation.run()
    names = [(record["what"], record.get("classes")) for record in records]
    with_torch = importlib.util.find_spec("torch") is not None
    last = [("median", None)] if with_torch else []
    assert names == [
        ("sinkhorn", 10),
        ("total_variation", 10),
        ("total_variation", 20),
        ("sequence_divergence", 20),
        *last,
    ]
    assert all(record["ours ms"] > 0 for record in records[:4])
    assert ("ours MiB" in records[2]) == memory.can_measure()
    assert "ours MiB" not in records[0]
    if with_torch:
        for record in records[:4]:
            assert record["lower quartile"] <= record["over ours"] <= record["upper"]
    else:
        assert consistency.NO_TORCH in capsys.readouterr().out
    assert "distillation" in benchmark.SUBJECTS


@pytest.mark.skipif(not memory.can_measure(), reason="the system does not count it")
def test_memory_is_that_of_the_call_at_its_most():
    def call():
        first = np.ones(2**23)  # 64 MiB: what is smaller the allocator may keep
        np.concatenate([first, first])  # 128 more, the first still there

    assert memory.peak(call) == pytest.approx(192 * 2**20, rel=0.1)
    assert memory.peak(lambda: None) < 2**20
