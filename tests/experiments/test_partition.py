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
WIDTH = 64
# Wide enough that kernels are split.
FIELDS = {
    "steps": STEPS,
    "batch_size": 64,
    "log_every": 1,
    "model.width": WIDTH,
    "model.depth": 1,
    "model.dropout": 0.3,
}


def losses(tmp_path, name, mesh, **fields):
    """The loss of every step of the digits config, with dropout, on a mesh."""
    config = small("consistency/digits", **{**FIELDS, **fields})
    config.mesh, config.cache_dir = mesh, str(tmp_path / "cache")
    run = runs.train(tasks.resolve(config), tmp_path / name)
    records = logs.read(tmp_path / name / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(1, config.steps + 1))
    return np.array([record["loss"] for record in records]), run


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return losses(tmp_path_factory.mktemp("alone"), "run", {"data": 1, "fsdp": 1})


@pytest.mark.parametrize(
    ("mesh", "parallel"),
    [
        ({"data": 8, "fsdp": 1, "model": 1}, "jit"),
        ({"data": 2, "fsdp": 4, "model": 1}, "jit"),
        ({"data": 1, "fsdp": 8, "model": 1}, "jit"),
        ({"data": 2, "fsdp": 2, "model": 2}, "jit"),
        ({"data": 8, "fsdp": 1, "model": 1}, "pmap"),
    ],
    ids=str,
)
def test_meshes_agree(mesh, parallel, alone, tmp_path):
    split, run = losses(tmp_path, "run", mesh, parallel=parallel)
    np.testing.assert_allclose(split, alone[0], rtol=1e-4)
    block = run.state.params["block_0"]
    # The hidden features are split over model, and what is left of a kernel over fsdp.
    for name, shape in (
        ("first", (WIDTH // mesh["fsdp"], WIDTH // mesh["model"])),
        ("second", (WIDTH // mesh["model"], WIDTH // mesh["fsdp"])),
    ):
        shards = {shard.data.shape for shard in block[name]["kernel"].addressable_shards}
        assert shards == {shape} or (mesh["model"] == 1 and shards == {shape[::-1]})


@pytest.mark.parametrize("group", [0, 4, 16], ids=["whole batch", "inside a device", "over two devices"])
def test_couplings_agree_under_pmap(group, tmp_path):
    """A pairing of data and noise is that of the global batch, or of its groups, however it is spread."""
    fields = {"consistency.coupling": "entropic_coupling", "consistency.coupling_group": group, "steps": 8}
    one, _ = losses(tmp_path, "one", {"data": 1}, **fields)
    many, _ = losses(tmp_path, "many", {"data": 8}, parallel="pmap", **fields)
    np.testing.assert_allclose(many, one, rtol=1e-4)
    if not group:
        apart, _ = losses(tmp_path, "apart", {"data": 1}, **{**fields, "consistency.coupling": "independent"})
        assert np.abs(apart / one - 1).max() > 1e-3


def test_parts_of_a_batch_in_turn_agree_with_the_whole(alone, tmp_path):
    parts, run = losses(tmp_path, "run", {"data": 2, "fsdp": 1}, accumulate=4)
    np.testing.assert_allclose(parts, alone[0], rtol=1e-4)
    # One step apart only by rounding.
    np.testing.assert_allclose(parts[:2], alone[0][:2], rtol=1e-5)
    assert run.config.accumulate == 4


@pytest.mark.parametrize(
    ("accumulate", "match"),
    [(0, "config.accumulate must be >= 1"), (48, "2 parts (data x fsdp) of config.mesh times config.accumulate 48")],
)
def test_parts_must_fit_the_batch(accumulate, match):
    config = small("consistency/digits", batch_size=64, steps=STEPS, accumulate=accumulate, **{"mesh.data": 2})
    with pytest.raises(UserError, match=re.escape(match)):
        runs.prepare(tasks.resolve(config))


def test_a_run_goes_on_on_another_mesh(alone, tmp_path):
    """Eight devices, two, eight under pmap, four, one: each goes on from the checkpoint of the one before."""
    meshes = ({"data": 2, "fsdp": 4}, {"data": 1, "fsdp": 2}, {"data": 8}, {"data": 1, "model": 4}, {"data": 1})
    for steps, mesh in zip((10, 20, 30, 40, STEPS), meshes, strict=True):
        config = small("consistency/digits", **{**FIELDS, "checkpoint.every": 5})
        config.mesh = mesh
        config.parallel = "pmap" if mesh == {"data": 8} else "jit"
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
