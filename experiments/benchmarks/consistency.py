"""Speed of improved consistency training: the loop around the update, the update against PyTorch, compile time."""

import contextlib
import importlib.util
import io
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from experiments import models, tasks
from experiments.benchmarks.timing import in_turns
from experiments.engine import loop, mesh
from experiments.engine.logs import Display, Records
from experiments.engine.task import Task
from experiments.worlds import InMemory, World
from mlfuncs import consistency

# (label, config, shape of an example, batch, updates a round, rounds)
SUBJECTS = (
    ("MLP", "digits", (8, 8, 1), 256, 50, 9),
    ("U-Net", "mnist", (28, 28, 1), 64, 2, 9),
)
EXAMPLES = 2048
INTERVAL = 100
NO_TORCH = "PyTorch is not installed: its side is left out (pip install torch, or the extra `benchmark`)"


class Subject(NamedTuple):
    label: str
    config: ml_collections.ConfigDict
    world: World
    task: Task
    updates: int
    rounds: int


def prepared(label: str, name: str, shape: tuple[int, ...], batch: int, updates: int, rounds: int) -> Subject:
    config = importlib.import_module(f"configs.consistency.{name}").get_config()
    config.batch_size, config.evaluate_every, config.checkpoint.every = batch, 0, 0
    config.mesh.data, config.log_every = 1, INTERVAL
    config = tasks.resolve(config)
    generator = np.random.default_rng(0)
    split = InMemory(
        {
            "image": generator.integers(0, 256, (EXAMPLES, *shape), np.uint8),
            "label": generator.integers(0, 10, EXAMPLES, np.int32),
        }
    )
    world = World(split, split, shape, 10, _to_model, lambda x: x)

    def trained(needed: ml_collections.ConfigDict) -> Any:
        raise AssertionError("a benchmark trains nothing else")

    return Subject(label, config, world, tasks.build(config, world, trained), updates, rounds)


def _to_model(raw: jax.Array) -> jax.Array:
    return raw.astype(jnp.float32) / 127.5 - 1


def _start(subject: Subject) -> tuple[Callable[[], float], float]:
    """A call that makes the subject's number of updates, and the seconds to compile one."""
    task, config = subject.task, subject.config
    indices = np.arange(config.batch_size, dtype=np.int32)
    batch = {**subject.world.train.read(indices), "index": indices}
    batch = jax.device_put(batch)
    state = jax.jit(task.init)(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), subject.updates)
    began = time.perf_counter()
    compiled = jax.jit(task.update, donate_argnums=0).lower(state, batch, keys[0]).compile()
    seconds = time.perf_counter() - began
    holder = {"state": state}

    def call() -> float:
        loss = jnp.nan
        for key in keys:
            holder["state"], metrics = compiled(holder["state"], batch, key)
            loss = metrics["loss"]
        return float(loss)

    return call, seconds


def loop_overhead(subject: Subject) -> float:
    """Time of an interval of the loop, with logs, over that of as many compiled updates in a scan alone, less one."""
    task, config = subject.task, subject.config
    steps = subject.updates * 4
    devices = mesh.make(config.mesh, "jit", config.batch_size)
    config.log_every, config.steps = steps, 10**6
    feed = loop.Feed(subject.world.train, devices, config, 0)
    interval, key = loop.make_interval(task, feed.fetch, devices, config.parallel), jax.random.key(1)

    def scan(state: Any, batch: Any, key: Any) -> Any:
        return jax.lax.scan(lambda state, key: task.update(state, batch, key), state, jax.random.split(key, steps))

    bare = jax.jit(scan, donate_argnums=0)
    indices = np.arange(config.batch_size, dtype=np.int32)
    batch = jax.device_put({**subject.world.train.read(indices), "index": indices}, mesh.batch_sharded(devices, 0))
    sharding = mesh.replicated(devices)
    states = [jax.jit(task.init, out_shardings=sharding)(jax.random.key(0)) for _ in range(2)]
    step = 0

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        records, display = Records(Path(folder), 0), Display(10**6, 0, "benchmark")

        def alone() -> None:
            states[0], metrics = bare(states[0], batch, jax.random.key(2))
            jax.block_until_ready(metrics)

        def whole() -> None:
            nonlocal step
            states[1], _, host = loop.advance(interval, feed, states[1], key, step, steps)
            step += steps
            means = {name: float(np.mean(values)) for name, values in host.items()}
            records.write({"step": step, **means})
            display.line(step, means["loss"], 1.0)

        medians = in_turns({"alone": alone, "whole": whole}, rounds=subject.rounds)
        records.close()
    return medians["whole"] / medians["alone"] - 1


def _torch_calls(subject: Subject) -> dict[str, Callable[[], Any]]:
    """The same updates in PyTorch, in each memory layout that suits the network; first made sure to be the same."""
    import torch

    from experiments.benchmarks import torch_networks

    config, c = subject.config, subject.config.consistency
    model = models.build(config.model, example_shape=subject.world.example_shape, num_classes=10)
    # Layers that start at zero hide what comes before them: every parameter gets a random value.
    params = jax.tree.map(
        lambda leaf: leaf + 0.05 * jax.random.normal(jax.random.key(leaf.size), leaf.shape),
        jax.jit(model.init)(jax.random.key(0)),
    )
    grid = np.asarray(consistency.karras_levels(c.final_steps + 1))
    probabilities = np.asarray(consistency.lognormal_level_probabilities(grid))
    indices = np.arange(config.batch_size)
    data = np.array(_to_model(jnp.asarray(subject.world.train.read(indices)["image"])))
    images = config.model.name == "unet"

    def to_torch(x: np.ndarray) -> Any:
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)) if images else x)

    network = torch_networks.NETWORKS[config.model.name](config.model)
    _check_same_loss(subject, model, params, network, torch_networks, to_torch, data, grid)
    calls: dict[str, Callable[[], Any]] = {}
    for layout in ("channels last", "channels first") if images else ("",):
        last = layout == "channels last"
        batch = to_torch(data)
        batch = batch.contiguous(memory_format=torch.channels_last) if last else batch
        leaves = torch_networks.parameters(params, channels_last=last)
        trainer = torch_networks.Trainer(network, leaves, grid, probabilities, config.ema_decay)
        calls[f"torch {layout}".strip()] = partial(_repeat, partial(trainer.step, batch), subject.updates)
    return calls


def _repeat(step: Callable[[], float], times: int) -> None:
    for _ in range(times):
        step()


def _check_same_loss(subject, model, params, network, torch_networks, to_torch, data, grid) -> None:
    import torch

    noise = np.random.default_rng(1).standard_normal(data.shape).astype(np.float32)
    level = np.random.default_rng(2).integers(0, len(grid) - 1, len(data))
    low, high = grid[level], grid[level + 1]
    function = consistency.consistency_function(lambda x, c_noise: model.apply(params, x, c_noise))
    ours = float(jnp.mean(consistency.consistency_training_loss(function, data, noise, low, high)))
    theirs = float(
        torch_networks.consistency_loss(
            network,
            torch_networks.parameters(params),
            to_torch(data),
            to_torch(noise),
            torch.from_numpy(low),
            torch.from_numpy(high),
        )
    )
    if not np.isclose(ours, theirs, rtol=1e-3):
        raise AssertionError(f"the two sides of {subject.label} differ: loss {ours} here, {theirs} in PyTorch")


def run() -> list[dict[str, Any]]:
    """One record for each network: milliseconds an update, PyTorch's over ours, the loop's overhead, compile time."""
    with_torch = importlib.util.find_spec("torch") is not None
    if not with_torch:
        print(NO_TORCH)
    results = []
    for arguments in SUBJECTS:
        chosen = prepared(*arguments)
        ours, compile_seconds = _start(chosen)
        calls = {"jax": ours, **(_torch_calls(chosen) if with_torch else {})}
        medians = in_turns(calls, rounds=chosen.rounds)
        record: dict[str, Any] = {"network": chosen.label, "batch": chosen.config.batch_size}
        record |= {f"{name} ms": 1000 * seconds / chosen.updates for name, seconds in medians.items()}
        if with_torch:
            import torch

            fastest = min(seconds for name, seconds in medians.items() if name != "jax")
            record |= {"torch / jax": fastest / medians["jax"], "threads": torch.get_num_threads()}
        record["loop overhead %"] = 100 * loop_overhead(chosen)
        record["compile s"] = compile_seconds
        results.append(record)
    return results
