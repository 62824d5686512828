"""What a run costs beside its updates: the loop on eight devices, checkpoints, input from disk, and the first step.

Everything runs on the CPU, in a process of its own with eight virtual devices; then, where there is a GPU, training on it.
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import accelerator, apart

DEVICES = 8
ROUNDS = 5
READ_SECONDS = 10.0
STEP_EXAMPLES = 8  # of the CPU step that the input is compared with
CHECKPOINTED = (("digits", (8, 8, 1)), ("mnist", (28, 28, 1)), ("cifar10", (32, 32, 3)))


def run() -> list[dict[str, Any]]:
    """One record for each quantity."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}"
    records = apart.records("experiments.benchmarks.scale", XLA_FLAGS=flags, JAX_PLATFORMS="cpu")
    return records + accelerator.run()


def _records() -> list[dict[str, Any]]:
    parts: list[Callable[[], list[dict[str, Any]]]] = [_first_step, _loop, _checkpoints, _input]
    records = []
    for part in parts:
        print(f"{part.__name__.strip('_').replace('_', ' ')} ...", file=sys.stderr, flush=True)
        records += part()
    return records


def _record(quantity: str, value: float, unit: str) -> dict[str, Any]:
    return {"quantity": quantity, "value": value, "unit": unit}


def _first_step() -> list[dict[str, Any]]:
    """Seconds from the command to the first logged step, without and with compiled programs in the cache."""
    with tempfile.TemporaryDirectory() as folder:
        seconds = [_start(Path(folder), number) for number in range(1 + ROUNDS)]
    cold, warm = seconds[0], float(np.median(seconds[1:]))
    return [
        _record("command to first step, empty cache", cold, "s"),
        _record("command to first step, later starts", warm, "s"),
        _record("first start / later ones", cold / warm, "x"),
    ]


def _start(folder: Path, number: int) -> float:
    command = [sys.executable, "-m", "experiments.train", "--config=configs/consistency/digits.py"]
    command += [f"--config.cache_dir={folder / 'cache'}", f"--workdir={folder / str(number)}"]
    command += ["--config.log_every=1", "--config.evaluate_every=0"]
    began = time.perf_counter()
    variables = {**os.environ, "XLA_FLAGS": ""}
    process = subprocess.Popen(command, cwd=apart.ROOT, env=variables, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    next(line for line in process.stdout if "step 1/" in line)
    seconds = time.perf_counter() - began
    process.kill()
    process.communicate()
    return seconds


def _loop() -> list[dict[str, Any]]:
    from experiments.benchmarks import consistency

    subject = consistency.prepared(*consistency.SUBJECTS[0])
    subject.config.mesh.data = DEVICES
    overhead = consistency.loop_overhead(subject)
    return [_record(f"loop over bare updates, {DEVICES} devices, {subject.label}", 100 * overhead, "%")]


def _checkpoints() -> list[dict[str, Any]]:
    from experiments import models, tasks
    from experiments.engine import mesh
    from experiments.engine.checkpoint import Checkpoints
    from experiments.tasks import common

    records = []
    everywhere = mesh.replicated(mesh.make({"data": 1}, mesh.JIT, 1))
    for name, shape in CHECKPOINTED:
        config = tasks.resolve(importlib.import_module(f"configs.consistency.{name}").get_config())
        model = models.build(config.model, example_shape=shape, num_classes=10)
        optimizer = common.make_optimizer(config.optimizer, config.steps)
        shapes = jax.eval_shape(lambda m=model, o=optimizer: common.initial_state(m.init(jax.random.key(0)), o))
        generator = np.random.default_rng(0)

        def filled(leaf: Any, generator: Any = generator) -> Any:
            return jax.device_put(generator.standard_normal(leaf.shape).astype(leaf.dtype), everywhere)

        state = jax.tree.map(filled, shapes)
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        blocking, written, restored = [], [], []
        with tempfile.TemporaryDirectory() as folder:
            checkpoints = Checkpoints(Path(folder), keep=1)
            for step in range(1, ROUNDS + 2):
                began = time.perf_counter()
                checkpoints.save(step, state, {})
                blocking.append(time.perf_counter() - began)
                checkpoints.wait()
                written.append(time.perf_counter() - began)
            on_disk = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
            for _ in range(ROUNDS):
                began = time.perf_counter()
                jax.block_until_ready(checkpoints.restore(ROUNDS + 1, shapes, everywhere)[0])
                restored.append(time.perf_counter() - began)
            checkpoints.close()
        label = f"checkpoint of {name}, {size / 1e6:,.1f} MB of state"
        # The first save compiles the digest.
        records += [
            _record(f"{label}: training stands still", 1000 * float(np.median(blocking[1:])), "ms"),
            _record(f"{label}: written after", 1000 * float(np.median(written[1:])), "ms"),
            _record(f"{label}: on disk", on_disk / 1e6, "MB"),
            _record(f"{label}: restored in", 1000 * float(np.median(restored)), "ms"),
        ]
    return records


def _input() -> list[dict[str, Any]]:
    """Examples a second that the loop gets from CIFAR-10 on disk, beside those of the update on this CPU."""
    from experiments import tasks, worlds
    from experiments.engine import loop, mesh
    from experiments.engine.errors import UserError

    config = importlib.import_module("configs.consistency.cifar10").get_config()
    config.evaluate_every, config.data.resident_bytes = 0, 0
    config = tasks.resolve(config)
    try:
        world = worlds.build(config.data, _nothing_trained)
    except UserError as error:
        print(f"input from disk is left out: {error}", file=sys.stderr)
        return []
    feed = loop.Feed(world.train, mesh.make({"data": 1}, mesh.JIT, config.batch_size), config, 0)
    jax.block_until_ready(feed.selections(0, feed.room))
    began, step = time.perf_counter(), feed.room
    while time.perf_counter() - began < READ_SECONDS:
        jax.block_until_ready(feed.selections(step, feed.room))
        step += feed.room
    read = (step - feed.room) * config.batch_size / (time.perf_counter() - began)

    config.batch_size = STEP_EXAMPLES
    task = tasks.build(config, world, _nothing_trained)
    indices = np.arange(STEP_EXAMPLES)
    batch = jax.device_put({**world.train.read(indices), "index": indices.astype(np.int32)})
    state = jax.jit(task.init)(jax.random.key(0))
    update = jax.jit(task.update, donate_argnums=0).lower(state, batch, jax.random.key(1)).compile()
    operations = float((update.cost_analysis() or {}).get("flops", jnp.nan)) / STEP_EXAMPLES
    seconds = []
    for number in range(3):
        began = time.perf_counter()
        state, metrics = update(state, batch, jax.random.key(number))
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - began)
    trained = STEP_EXAMPLES / float(np.median(seconds[1:]))
    return [
        _record("CIFAR-10 read from disk", read, "examples/s"),
        _record(f"update of the cifar10 network here, batch {STEP_EXAMPLES}", trained, "examples/s"),
        _record("input over update", read / trained, "x"),
        _record("arithmetic of the update, an example", operations / 1e9, "GFLOP"),
        _record("arithmetic that this input feeds", read * operations / 1e12, "TFLOP/s"),
    ]


def _nothing_trained(needed: Any) -> Any:
    raise AssertionError("a benchmark trains nothing else")


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.write_text(json.dumps(_records()))
