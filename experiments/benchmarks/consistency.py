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
CHECKED = 32  # whose loss is compared
AGREEMENT = 1e-3  # of the losses, relative
INTERVAL = 100
NO_TORCH = "PyTorch is not installed: its side is left out (pip install torch, or the extra `benchmark`)"


class Subject(NamedTuple):
    label: str
    config: ml_collections.ConfigDict
    world: World
    task: Task
    updates: int
    rounds: int


def prepared(
    label: str, name: str, shape: tuple[int, ...], batch: int, updates: int, rounds: int, *, dtype: str = ""
) -> Subject:
    """A config at another batch, on random images; the dtype of its network unless another is given."""
    config = importlib.import_module(f"configs.consistency.{name}").get_config()
    config.model.dtype = dtype or config.model.dtype
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


def looped(subject: Subject, steps: int) -> Callable[[], dict[str, np.ndarray]]:
    """A call that makes so many steps of the training loop, with batches drawn on the device, and gives their metrics."""
    task, config = subject.task, subject.config
    devices = mesh.make(config.mesh, "jit", config.batch_size)
    config.log_every, config.steps = steps, 10**6
    feed = loop.Feed(subject.world.train, devices, config, 0)
    interval, key = loop.make_interval(task, feed.fetch, devices, config.parallel), jax.random.key(1)
    state, step = jax.jit(task.init, out_shardings=mesh.replicated(devices))(jax.random.key(0)), 0

    def call() -> dict[str, np.ndarray]:
        nonlocal state, step
        state, _, metrics = loop.advance(interval, feed, state, key, step, steps)
        step += steps
        return metrics

    return call


def loop_overhead(subject: Subject) -> float:
    """Time of an interval of the loop, with logs, over that of as many compiled updates in a scan alone, less one."""
    task, config = subject.task, subject.config
    steps = subject.updates * 4
    devices = mesh.make(config.mesh, "jit", config.batch_size)
    interval = looped(subject, steps)

    def scan(state: Any, batch: Any, key: Any) -> Any:
        return jax.lax.scan(lambda state, key: task.update(state, batch, key), state, jax.random.split(key, steps))

    bare = jax.jit(scan, donate_argnums=0)
    indices = np.arange(config.batch_size, dtype=np.int32)
    batch = jax.device_put({**subject.world.train.read(indices), "index": indices}, mesh.batch_sharded(devices, 0))
    state = jax.jit(task.init, out_shardings=mesh.replicated(devices))(jax.random.key(0))
    step = 0

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        records, display = Records(Path(folder), 0), Display(10**6, 0, "benchmark")

        def alone() -> None:
            nonlocal state
            state, metrics = bare(state, batch, jax.random.key(2))
            jax.block_until_ready(metrics)

        def whole() -> None:
            nonlocal step
            means = {name: float(np.mean(values)) for name, values in interval().items()}
            step += steps
            records.write({"step": step, **means})
            display.line(step, means["loss"], 1.0)

        medians = in_turns({"alone": alone, "whole": whole}, rounds=subject.rounds)
        records.close()
    return medians["whole"] / medians["alone"] - 1


class Peer(NamedTuple):
    """A subject in PyTorch, made sure to give the loss that it gives here."""

    config: ml_collections.ConfigDict
    params: Any
    grid: np.ndarray
    probabilities: np.ndarray
    data: np.ndarray

    def trainer(
        self, *, channels_last: bool, device: str = "cpu", dropout: float = 0.0, **settings: Any
    ) -> Callable[[], Any]:
        """A call that makes one update, with what `torch_networks.Trainer` is told."""
        import torch

        from experiments.benchmarks import torch_networks

        layout = torch.channels_last if channels_last else torch.contiguous_format
        batch = _to_torch(self.data, self.config).to(device)
        batch = batch.contiguous(memory_format=layout) if batch.ndim == 4 else batch
        leaves = torch_networks.parameters(self.params, channels_last=channels_last, device=device)
        network = _torch_network(self.config, dropout)
        rest = (self.grid, self.probabilities, self.config.ema_decay)
        return partial(torch_networks.Trainer(network, leaves, *rest, **settings).step, batch)


def peer(subject: Subject) -> Peer:
    """Raises AssertionError where the losses of both sides, in float32, differ."""
    config, c = subject.config, subject.config.consistency
    model_config = ml_collections.ConfigDict({**config.model.to_dict(), "dtype": "float32"})
    model = models.build(model_config, example_shape=subject.world.example_shape, num_classes=10)
    # Layers that start at zero hide what comes before them: every parameter gets a random value.
    params = jax.tree.map(
        lambda leaf: leaf + 0.05 * jax.random.normal(jax.random.key(leaf.size), leaf.shape),
        jax.jit(model.init)(jax.random.key(0)),
    )
    grid = np.asarray(consistency.karras_levels(c.final_steps + 1))
    probabilities = np.asarray(consistency.lognormal_level_probabilities(grid))
    indices = np.arange(config.batch_size)
    data = np.array(_to_model(jnp.asarray(subject.world.train.read(indices)["image"])))
    found = Peer(config, params, grid, probabilities, data)
    ours, theirs = _losses(model, found)
    if not np.isclose(ours, theirs, rtol=AGREEMENT):
        raise AssertionError(f"the two sides of {subject.label} differ: loss {ours} here, {theirs} in PyTorch")
    return found


def _torch_network(config: ml_collections.ConfigDict, dropout: float) -> Any:
    from experiments.benchmarks import torch_networks

    build: Any = torch_networks.NETWORKS[config.model.name]
    return build(config.model, dropout) if dropout else build(config.model)


def _to_torch(x: np.ndarray, config: ml_collections.ConfigDict) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)) if config.model.name == "unet" else x)


def _losses(model: Any, at: Peer) -> tuple[float, float]:
    """Of one batch on either side, on the CPU in PyTorch."""
    import torch

    from experiments.benchmarks import torch_networks

    data = at.data[:CHECKED]
    noise = np.random.default_rng(1).standard_normal(data.shape).astype(np.float32)
    level = np.random.default_rng(2).integers(0, len(at.grid) - 1, len(data))
    low, high = at.grid[level], at.grid[level + 1]

    @jax.jit
    def mean(params: Any, *given: Any) -> jax.Array:
        function = consistency.consistency_function(lambda x, c_noise: model.apply(params, x, c_noise))
        return jnp.mean(consistency.consistency_training_loss(function, *given))

    with jax.default_matmul_precision("highest"):
        ours = float(mean(at.params, data, noise, low, high))
    given = (_to_torch(data, at.config), _to_torch(noise, at.config), torch.from_numpy(low), torch.from_numpy(high))
    network = _torch_network(at.config, 0.0)
    with torch.no_grad():
        theirs = float(torch_networks.consistency_loss(network, torch_networks.parameters(at.params), *given))
    return ours, theirs


def _torch_calls(subject: Subject) -> dict[str, Callable[[], Any]]:
    """The same updates in PyTorch, in each memory layout that suits the network."""
    same, images = peer(subject), subject.config.model.name == "unet"
    return {
        f"torch {layout}".strip(): partial(
            repeated, same.trainer(channels_last=layout == "channels last"), subject.updates
        )
        for layout in (("channels last", "channels first") if images else ("",))
    }


def repeated(step: Callable[[], Any], times: int) -> float:
    """The last loss: reading it waits for all."""
    losses = [step() for _ in range(times)]
    return float(losses[-1])


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
