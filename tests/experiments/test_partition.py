"""How a run is split over devices does not show in its numbers."""

import re

import jax
import numpy as np
import pytest

from experiments import runs, tasks
from experiments.engine import logs
from experiments.engine.errors import UserError
from tests.experiments.helpers import small

STEPS = 50


def losses(tmp_path, name, mesh, **fields):
    """The loss of every step of the digits config, with dropout, on a mesh."""
    config = small("consistency/digits", batch_size=64, steps=STEPS, log_every=1, **{"model.dropout": 0.3, **fields})
    config.mesh, config.cache_dir = mesh, str(tmp_path / "cache")
    run = runs.train(tasks.resolve(config), tmp_path / name)
    records = logs.read(tmp_path / name / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    return np.array([record["loss"] for record in records]), run


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return losses(tmp_path_factory.mktemp("alone"), "run", {"data": 1, "fsdp": 1})


@pytest.mark.parametrize("mesh", [{"data": 8, "fsdp": 1}, {"data": 2, "fsdp": 4}, {"data": 1, "fsdp": 8}], ids=str)
def test_meshes_agree(mesh, alone, tmp_path):
    split, run = losses(tmp_path, "run", mesh)
    np.testing.assert_allclose(split, alone[0], rtol=1e-4)
    kernel = run.state.params["block_0"]["first"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(256 // mesh["fsdp"], 256)}


def test_parts_of_a_batch_in_turn_agree_with_the_whole(alone, tmp_path):
    parts, run = losses(tmp_path, "run", {"data": 2, "fsdp": 1}, accumulate=4)
    np.testing.assert_allclose(parts, alone[0], rtol=1e-4)
    # One step apart only by rounding.
    np.testing.assert_allclose(parts[:2], alone[0][:2], rtol=1e-5)
    assert run.config.accumulate == 4


@pytest.mark.parametrize(
    ("accumulate", "match"),
    [(0, "config.accumulate must be >= 1"), (48, "2 devices of config.mesh times config.accumulate 48")],
)
def test_parts_must_fit_the_batch(accumulate, match):
    config = small("consistency/digits", batch_size=64, steps=STEPS, accumulate=accumulate, **{"mesh.data": 2})
    with pytest.raises(UserError, match=re.escape(match)):
        runs.prepare(tasks.resolve(config))


def test_a_run_goes_on_on_another_mesh(alone, tmp_path):
    """Eight devices, two, one: each goes on from the checkpoint of the one before."""
    for steps, mesh in ((20, {"data": 2, "fsdp": 4}), (35, {"data": 1, "fsdp": 2}), (STEPS, {"data": 1, "fsdp": 1})):
        config = small("consistency/digits", batch_size=64, steps=STEPS, log_every=1, **{"model.dropout": 0.3})
        config.mesh, config.checkpoint.every = mesh, 5
        config = tasks.resolve(config)
        if steps == STEPS:
            state = runs.train(config, tmp_path).state
            continue
        run = runs.prepare(config)

        def stop(state, batch, key, run=run, steps=steps):
            new, metrics = run.task.update(state, batch, key)
            # A loss that is no number ends the run there, with the checkpoint before it.
            return new, {**metrics, "loss": jax.numpy.where(new.step > steps, jax.numpy.nan, metrics["loss"])}

        with pytest.raises(Exception, match=f"checkpoints/{steps}"):
            runs.loop.train(run.task._replace(update=stop), run.world.train, config, tmp_path, "stopped")
    recorded = [record["loss"] for record in logs.read(tmp_path / "metrics.jsonl")]
    np.testing.assert_allclose(recorded, alone[0], rtol=1e-4)
    for ours, theirs in zip(jax.tree.leaves(state.params), jax.tree.leaves(alone[1].state.params), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-3)
