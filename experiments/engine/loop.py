"""The training loop: compiled intervals of many steps, and between them logs, evaluations and checkpoints."""

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax import Array
from jax.sharding import Mesh

from experiments.engine import mesh as meshes
from experiments.engine import pictures
from experiments.engine.checkpoint import Checkpoints
from experiments.engine.errors import UserError
from experiments.engine.logs import Display, Records
from experiments.engine.pipeline import Order, stream
from experiments.engine.stopping import Stopped, StopRequest
from experiments.engine.task import Batch, State, Task
from experiments.worlds import Split

INIT, TRAIN, EVALUATE, SAMPLE = range(4)  # streams of random numbers of one seed
READ_THREADS = 4
ADVICE = "Lower config.optimizer.learning_rate or look at the data"


def stream_key(config: ml_collections.ConfigDict, stream_index: int) -> Array:
    """The key of one use of randomness in a run."""
    return jax.random.fold_in(jax.random.key(config.seed), stream_index)


def make_interval(
    task: Task, key: Array, fetch: Callable[[Any, Any], Batch], shardings: Any = None
) -> Callable[..., Any]:
    """`interval(state, data, selections) -> (state, metrics [steps])`: one compiled scan; the state is donated.

    The state stays where `shardings`, a tree like it, puts it. Random numbers of a step come from the key folded with the
    step, so that intervals may be cut anywhere.
    """

    def interval(state: State, data: Any, first_step: Array, selections: Any) -> tuple[State, dict[str, Array]]:
        def step(carry: tuple[State, Array], selection: Any) -> tuple[tuple[State, Array], dict[str, Array]]:
            state, number = carry
            state, metrics = task.update(state, fetch(data, selection), jax.random.fold_in(key, number))
            return (state, number + 1), metrics

        (state, _), metrics = jax.lax.scan(step, (state, first_step), selections)
        return state, metrics

    return jax.jit(interval, donate_argnums=0, out_shardings=(shardings, None))


class Feed:
    """Selections for the compiled interval: indices into data on the device, or batches streamed from disk."""

    def __init__(self, split: Split, mesh: Mesh, seed: int, batch_size: int, first_step: int, steps: int):
        self.order = Order(seed, len(split), batch_size)
        self.sharding = meshes.batch_sharded(mesh, axis=1)
        self._batches: Iterator[dict[str, np.ndarray]] | None = None
        if split.examples is not None:
            self.data = jax.device_put(dict(split.examples), meshes.replicated(mesh))
        else:
            self.data = {}
            self._batches = stream(split.read, self.order, first_step, steps, threads=READ_THREADS)

    def selections(self, first_step: int, num_steps: int) -> Any:
        """What `fetch` turns into the batches of those steps, sharded along the batch."""
        if self._batches is None:
            return jax.device_put(self.order.batches(first_step, num_steps), self.sharding)
        taken = [next(self._batches) for _ in range(num_steps)]
        return jax.device_put({name: np.stack([t[name] for t in taken]) for name in taken[0]}, self.sharding)

    def fetch(self, data: Any, selection: Any) -> Batch:
        """The batch of one step, inside the compiled interval."""
        batch = jax.tree.map(lambda values: values[selection], data) if data else dict(selection)
        size = next(iter(batch.values())).shape[0]
        return {**batch, "index": jnp.arange(size, dtype=jnp.int32)}


def _next_boundary(step: int, config: ml_collections.ConfigDict) -> int:
    """The next step after which the host has something to do."""
    periods = [config.log_every, config.evaluate_every, config.checkpoint.every]
    return min([config.steps, *((step // period + 1) * period for period in periods if period)])


def check_limits(config: ml_collections.ConfigDict) -> None:
    """The fields that every run has, before anything is computed."""
    for name, low in (("batch_size", 1), ("steps", 1), ("log_every", 1), ("evaluate_every", 0), ("seed", 0)):
        if config[name] < low:
            raise UserError(f"config.{name} must be >= {low}, got {config[name]}")
    if config.checkpoint.every < 0:
        raise UserError(f"config.checkpoint.every must be >= 0 (0: only at the end), got {config.checkpoint.every}")
    if config.checkpoint.keep < 1:
        raise UserError(f"config.checkpoint.keep must be >= 1, got {config.checkpoint.keep}")


def train(task: Task, split: Split, config: ml_collections.ConfigDict, workdir: Path, label: str) -> State:
    """Trains `task` to `config.steps` in `workdir`, from its newest checkpoint if it has one."""
    mesh = meshes.make(config.mesh, config.parallel, config.batch_size)
    checkpoints = Checkpoints(workdir, keep=config.checkpoint.keep)
    start, state, pending = starting_state(task, config, checkpoints, mesh, set_aside=True)
    if start >= config.steps:
        checkpoints.close()
        return state

    feed = Feed(split, mesh, config.seed, config.batch_size, start, config.steps)
    shardings = meshes.state_sharded(mesh, state)
    interval = make_interval(task, stream_key(config, TRAIN), feed.fetch, shardings)
    records = Records(workdir, start)
    display = Display(config.steps, start, label)
    if start:
        display.say(f"resuming {workdir} at step {start}")
    try:
        step = saved = start
        with StopRequest() as stop:
            while step < config.steps:
                target = _next_boundary(step, config)
                state, rate, metrics = advance(interval, feed, state, step, target)
                _check_finite(metrics["loss"], step, checkpoints.at(saved))
                pending = _accumulate(pending, metrics)
                step, finished = target, target == config.steps
                evaluating, saving = (
                    bool(period) and (finished or step % period == 0)
                    for period in (config.evaluate_every, config.checkpoint.every)
                )

                means = {name: total / pending["count"] for name, total in pending["sums"].items()}
                record: dict[str, float] = {}
                display.advance(step, means["loss"], rate)
                if step % config.log_every == 0 or finished:
                    record = {"step": step, **means, "steps_per_second": rate}
                    display.line(step, means["loss"], rate)
                    pending = _nothing()
                if evaluating:
                    measured = evaluate(task, state, config, workdir, step)
                    display.say(f"{label}  step {step}  " + "  ".join(f"{k} {v:.4g}" for k, v in measured.items()))
                    record = {"step": step, **means, **record, **measured}
                if record:
                    records.write(record)
                if evaluating or finished:
                    pictures.write_curves(workdir / "curves.png", records.lines)
                if saving or finished or stop.received:
                    # A finite loss says nothing of the update made from it, and a bad state must not replace a good one.
                    if not is_finite(state):
                        raise UserError(
                            f"the parameters are no numbers at step {step}; {checkpoints.at(saved)}. {ADVICE}"
                        )
                    checkpoints.save(step, state, pending)
                    saved = step
                if stop.received and not finished:
                    raise Stopped(
                        f"stopped by {stop.received.name} at step {step} of {config.steps}; saved "
                        f"{checkpoints.folder / str(step)}. The same command goes on from there",
                        stop.received,
                    )
    finally:
        display.close()
        records.close()
        checkpoints.close()
    return state


def advance(
    interval: Callable[..., Any], feed: Feed, state: State, step: int, target: int
) -> tuple[State, float, dict[str, np.ndarray]]:
    """State after the steps up to `target`, steps per second, and the metrics of each step; `state` is used up."""
    began = time.perf_counter()
    state, metrics = interval(state, feed.data, np.int32(step), feed.selections(step, target - step))
    on_host = {name: np.asarray(values, np.float64) for name, values in jax.device_get(metrics).items()}
    return state, (target - step) / (time.perf_counter() - began), on_host


def starting_state(
    task: Task, config: ml_collections.ConfigDict, checkpoints: Checkpoints, mesh: Mesh, *, set_aside: bool
) -> tuple[int, State, dict[str, Any]]:
    """Step, state and what the host had summed up, from the newest good checkpoint; a fresh state at step 0."""
    key = stream_key(config, INIT)
    abstract = jax.eval_shape(task.init, key)
    shardings = meshes.state_sharded(mesh, abstract)
    found = checkpoints.restore_newest(abstract, shardings, set_aside=set_aside)
    return found or (0, jax.jit(task.init, out_shardings=shardings)(key), _nothing())


def evaluate(task: Task, state: State, config: ml_collections.ConfigDict, workdir: Path, step: int) -> dict[str, float]:
    """Measures the state and writes its pictures."""
    key = jax.random.fold_in(stream_key(config, EVALUATE), step)
    measured, panels = task.evaluate(state, key)
    for name, drawn in panels.items():
        pictures.write_panels(workdir / f"{name}_{step}.png", drawn)
    return {name: float(value) for name, value in measured.items()}


def _nothing() -> dict[str, Any]:
    return {"count": 0, "sums": {}}


def _accumulate(pending: dict[str, Any], metrics: dict[str, np.ndarray]) -> dict[str, Any]:
    """Sums since the last log line. They are kept in the checkpoint, so that a resumed run logs the same means."""
    sums = {name: pending["sums"].get(name, 0.0) for name in metrics}
    for name, values in metrics.items():
        for value in values:  # one by one: the sum must not depend on where intervals are cut
            sums[name] += float(value)
    return {"count": pending["count"] + len(metrics["loss"]), "sums": sums}


@jax.jit
def is_finite(state: State) -> Array:
    """Whether every number of the state is one."""
    floats = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in floats]))


def _check_finite(losses: np.ndarray, first_step: int, last_good: str) -> None:
    bad = np.flatnonzero(~np.isfinite(losses))
    if bad.size:
        step = first_step + int(bad[0]) + 1
        value = "inf" if math.isinf(losses[bad[0]]) else "nan"
        raise UserError(f"the loss is {value} at step {step}; {last_good}. {ADVICE}")
