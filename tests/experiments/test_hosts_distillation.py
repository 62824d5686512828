"""Students and their teachers in two processes with four devices each are those of one process with eight."""

import jax
import numpy as np
import pytest

from experiments import runs, tasks
from experiments.engine import logs
from tests.experiments.helpers import ROOT, small
from tests.experiments.processes import begun, ended, losses

STEPS = 6
SHORT = {"steps": STEPS, "batch_size": 32, "log_every": 1, "evaluate_every": STEPS, "checkpoint.every": STEPS}
FACTS = {"data.subjects": 24, "data.relations": 2, "data.objects": 3, "data.background": 8}
LANGUAGE = {"model.width": 16, "model.depth": 1, "model.heads": 2, **FACTS}
WHOLE = "0.1 * cross_entropy + 0.9 * kullback_leibler(temperature=4) + 0.8 * sinkhorn"


def teacher(fields):
    return {f"teacher.{field}": value for field, value in {**SHORT, "evaluate_every": 0, **fields}.items()}


# Of responses in the state, which are enough to be split over all devices, and fresh ones; and of a whole batch.
CONFIGS = {
    "language/facts_distillation": {
        **LANGUAGE,
        **teacher({**LANGUAGE, "model.width": 32}),
        "evaluation.samples": 0,
        "evaluation.responses": 12,
        "mesh.data": 1,
        "mesh.fsdp": 8,
    },
    "distillation/digits": {"objective": WHOLE, **teacher({"model.features": 8, "ema_decay": 0.9}), "mesh.data": 8},
}


@pytest.fixture(scope="module", params=CONFIGS, ids=lambda name: name.split("/")[0])
def both(request, tmp_path_factory):
    """The folders of a run of one process and of one of two, with one teacher."""
    root = tmp_path_factory.mktemp("hosts")
    fields = {**SHORT, **CONFIGS[request.param], "cache_dir": str(root / "cache")}
    runs.train(tasks.resolve(small(request.param, **fields)), root / "alone")
    processes = begun(ROOT / "configs" / f"{request.param}.py", root / "together", fields)
    try:
        assert ended(processes) == ((0, 0), ["", ""])
    finally:
        for process in processes:
            process.kill()
    return root / "alone", root / "together"


def test_two_processes_distil_as_one(both):
    alone, together = both
    np.testing.assert_allclose(losses(together), losses(alone), rtol=1e-4)
    one, two = (
        {name: value for name, value in logs.read(folder / "metrics.jsonl")[-1].items() if name != "steps_per_second"}
        for folder in both
    )
    assert {"teacher_divergence", "agreement"} & one.keys()
    assert two == pytest.approx(one, rel=1e-4)


def test_both_keep_the_same_teacher_and_responses(both):
    one, two = (runs.restore(folder, evaluate=False).state for folder in both)
    for name in set(one._fields) & {"average", "teacher"}:
        for ours, theirs in zip(*(jax.tree.leaves(getattr(state, name)) for state in (one, two)), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-4)
    if "stored" in one._fields:
        assert one.stored.shape == (160, 10)
        np.testing.assert_array_equal(one.stored, two.stored)
