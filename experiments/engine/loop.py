"""The training loop: compiled intervals of many steps, and between them logs, evaluations and checkpoints."""

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax import Array
from jax.sharding import Mesh

from experiments.engine import hosts, parts
from experiments.engine import mesh as meshes
from experiments.engine.checkpoint import MODES, Checkpoints
from experiments.engine.errors import UserError, unknown
from experiments.engine.pipeline import Order, stream
from experiments.engine.report import Report
from experiments.engine.stopping import Stopped, StopRequest
from experiments.engine.task import Batch, Shown, State, Task
from experiments.worlds import Split

INIT, TRAIN, EVALUATE, SAMPLE = range(4)  # streams of random numbers of one seed
READ_THREADS = 4
SELECTION_BYTES = 2**26  # of indices or streamed batches that a process sends for one interval
INTERVAL_SECONDS = 2.0  # after which the host looks for signals again
ADVICE = "Lower config.optimizer.learning_rate or look at the data"


def stream_key(config: ml_collections.ConfigDict, stream_index: int) -> Array:
    """The key of one use of randomness in a run."""
    return jax.random.fold_in(jax.random.key(config.seed), stream_index)


def make_interval(task: Task, fetch: Callable[[Any, Any], Batch], mesh: Mesh, parallel: str) -> Callable[..., Any]:
    """`interval(state, data, key, first_step, count, selections) -> (state, metrics [N])`: `count` steps, compiled once.

    `selections` has room for N >= count steps, and only the first `count` metrics are meaningful. The state is donated and
    stays where RULES put it. Random numbers of a step come from the key folded with the step, so that intervals may be cut
    anywhere.
    """

    def interval(state: State, data: Any, key: Array, first_step: Array, count: Array, selections: Any) -> Any:
        def step(state: State, index: Any) -> tuple[State, dict[str, Array]]:
            selection = jax.tree.map(lambda x: x[index], selections)
            return task.update(state, fetch(data, selection), jax.random.fold_in(key, first_step + index))

        def body(index: Any, carry: tuple[State, dict[str, Array]]) -> tuple[State, dict[str, Array]]:
            state, recorded = carry
            state, metrics = step(state, index)
            return state, {name: recorded[name].at[index].set(value) for name, value in metrics.items()}

        room = jax.tree.leaves(selections)[0].shape[0]
        shapes = jax.eval_shape(step, state, 0)[1]
        empty = {name: jnp.zeros((room, *metric.shape), metric.dtype) for name, metric in shapes.items()}
        # The number of steps is an argument: an interval of another length compiles nothing.
        return jax.lax.fori_loop(0, count, body, (state, empty))

    if parallel == meshes.PMAP:
        return jax.pmap(
            interval,
            axis_name=parts.AXIS,
            in_axes=(None, None, None, None, None, 1),
            out_axes=None,
            donate_argnums=0,
            devices=list(mesh.devices.flat),
        )
    stays = jax.eval_shape(task.init, jax.eval_shape(jax.random.key, 0))
    shardings = meshes.state_sharded(mesh, stays, task.axes)
    return jax.jit(interval, donate_argnums=0, out_shardings=(shardings, meshes.replicated(mesh)))


class Feed:
    """Selections for the compiled interval: indices into data on the devices, or batches streamed from disk.

    `room` is how many steps they hold; a process reads and sends only the examples of its own devices.
    """

    def __init__(self, split: Split, mesh: Mesh, config: ml_collections.ConfigDict, first_step: int):
        self.order = Order(config.seed, len(split), config.batch_size)
        self.sharding = meshes.batch_sharded(mesh, axis=1)
        self.devices = mesh.size if config.parallel == meshes.PMAP else 0
        self._batches: Iterator[dict[str, np.ndarray]] | None = None
        if split.examples is not None:
            self.data = {name: meshes.place(x, meshes.replicated(mesh)) for name, x in split.examples.items()}
            step_bytes = self.order.batches(0, 1).nbytes
        else:
            self.data = {}
            self._rows = meshes.rows_here(meshes.batch_sharded(mesh, axis=0), config.batch_size)
            read = stream(split.read, self.order, first_step, config.steps, rows=self._rows, threads=READ_THREADS)
            step_bytes = sum(x.nbytes for x in split.read(np.arange(1)).values()) * len(self._rows)
            self._batches = read
        self.room = max(1, min(config.log_every, config.steps, SELECTION_BYTES // step_bytes))

    def selections(self, first_step: int, count: int) -> Any:
        """What `fetch` turns into the batches of `count` steps, split along the batch; room for `room` steps."""
        if self._batches is None:
            indices = self.order.batches(first_step, count)
            return self._placed(np.pad(indices, ((0, self.room - count), (0, 0))))
        taken = [next(self._batches) for _ in range(count)]
        taken += [taken[-1]] * (self.room - count)
        return {name: self._placed(np.stack([t[name] for t in taken]), self._rows) for name in taken[0]}

    def _placed(self, values: np.ndarray, rows: np.ndarray | None = None) -> Any:
        if self.devices:
            return values.reshape(values.shape[0], self.devices, -1, *values.shape[2:])
        return meshes.place(values, self.sharding, axis=1, rows=rows, length=self.order.batch_size)

    @staticmethod
    def fetch(data: Any, selection: Any) -> Batch:
        """The batch of one step, inside the compiled interval."""
        batch = jax.tree.map(lambda values: values[selection], data) if data else dict(selection)
        size = next(iter(batch.values())).shape[0]
        return {**batch, "index": parts.positions(size)}


class Pace:
    """How long intervals are: short enough to hear a signal soon, long enough to keep the devices busy.

    All processes of a run decide alike.
    """

    def __init__(self, room: int):
        self.room, self.wish = room, 1  # the first interval compiles, and tells nothing of speed

    def next(self, step: int, boundary: int, heard: int) -> tuple[int, int]:
        """Steps of the next interval, and the signal that one of the processes has heard, 0 for none."""
        said = hosts.gathered(np.array([min(self.wish, self.room, boundary - step), heard], np.int32))
        return int(said[:, 0].min()), int(said[:, 1].max())

    def took(self, steps: int, seconds: float) -> None:
        self.wish = max(1, min(4 * steps, int(steps * INTERVAL_SECONDS / max(seconds, 1e-6))))


def _next_boundary(step: int, config: ml_collections.ConfigDict) -> int:
    """The next step after which the host has something to do."""
    periods = [config.log_every, config.evaluate_every, config.checkpoint.every]
    return min([config.steps, *((step // period + 1) * period for period in periods if period)])


def _saves(start: int, config: ml_collections.ConfigDict, best: str) -> int:
    """How many checkpoints are to come: the periodic ones, where the best is kept those of evaluations, and the last."""
    periods = [config.checkpoint.every, config.evaluate_every if best else 0]
    steps = {step for p in periods if p for step in range((start // p + 1) * p, config.steps, p)}
    return len(steps) + 1


def check_limits(config: ml_collections.ConfigDict) -> None:
    """The fields that every run has, before anything is computed."""
    lowest = {"batch_size": 1, "steps": 1, "log_every": 1, "evaluate_every": 0, "seed": 0, "accumulate": 1}
    for name, low in lowest.items():
        if config[name] < low:
            raise UserError(f"config.{name} must be >= {low}, got {config[name]}")
    checkpoint = config.checkpoint
    if checkpoint.every < 0:
        raise UserError(f"config.checkpoint.every must be >= 0 (0: only at the end), got {checkpoint.every}")
    if checkpoint.keep < 1:
        raise UserError(f"config.checkpoint.keep must be >= 1, got {checkpoint.keep}")
    if checkpoint.get("best_mode", "min") not in MODES:
        raise unknown("config.checkpoint.best_mode", checkpoint.best_mode, MODES)
    if checkpoint.get("best", "") and not config.evaluate_every:
        raise UserError(
            f"config.checkpoint.best {checkpoint.best!r} is measured by evaluations: set config.evaluate_every"
        )


def open_checkpoints(config: ml_collections.ConfigDict, workdir: Path, *, clean: bool = False) -> Checkpoints:
    checkpoint = config.checkpoint
    best, mode = checkpoint.get("best", ""), checkpoint.get("best_mode", "min")
    return Checkpoints(workdir, keep=checkpoint.keep, best=best, best_mode=mode, clean=clean)


def train(
    task: Task,
    split: Split,
    config: ml_collections.ConfigDict,
    workdir: Path,
    label: str,
    adopt: Callable[[State], State] | None = None,
    *,
    followed: bool = False,
) -> State:
    """Trains `task` to `config.steps` in `workdir`, from its newest checkpoint if it has one.

    A state that is new goes through `adopt` first. Where this run is `followed` by another, a signal that comes while it
    ends stops both.
    """
    mesh = meshes.make(config.mesh, config.parallel, config.batch_size)
    checkpoints = open_checkpoints(config, workdir, clean=True)
    start, state, pending = starting_state(task, config, checkpoints, mesh, set_aside=True, adopt=adopt)
    if start >= config.steps:
        checkpoints.close()
        return state

    every = config.checkpoint.every
    checkpoints.check_space(state, saves=_saves(start, config, checkpoints.best))
    feed = Feed(split, mesh, config, start)
    interval, key = make_interval(task, feed.fetch, mesh, config.parallel), stream_key(config, TRAIN)
    pace = Pace(feed.room)
    timed = {"steps": 0, "seconds": 0.0}  # since the last log line
    step = saved = start

    def save(metrics: dict[str, float] | None = None) -> None:
        nonlocal saved
        # A finite loss says nothing of the update made from it, and a bad state must not replace a good one.
        if not meshes.on_host(is_finite, state):
            raise UserError(f"the parameters are no numbers at step {step}; {checkpoints.last_good(saved)}. {ADVICE}")
        checkpoints.save(step, state, {**pending, "next_example": step * config.batch_size}, metrics)
        saved = step

    with StopRequest() as stop, checkpoints, Report(workdir, config.steps, start, label) as report:
        while step < config.steps:
            count, heard = pace.next(step, _next_boundary(step, config), stop.received or 0)
            if heard:
                if saved != step:
                    save()
                raise Stopped(_how_to_go_on(heard, step, config.steps, checkpoints), heard)
            state, seconds, metrics = advance(interval, feed, state, key, step, count)
            pace.took(count, seconds)
            _check_finite(metrics["loss"], step, lambda: checkpoints.last_good(saved))
            pending = _accumulate(pending, metrics)
            timed = {"steps": timed["steps"] + count, "seconds": timed["seconds"] + seconds}
            step += count
            finished = step == config.steps

            means = {name: total / pending["count"] for name, total in pending["sums"].items()}
            rate = timed["steps"] / timed["seconds"]
            record: dict[str, float] = {}
            measured: dict[str, float] = {}
            report.advance(step, means["loss"], rate)
            if step % config.log_every == 0 or finished:
                record = {"step": step, **means, "steps_per_second": rate}
                report.line(step, means["loss"], rate)
                pending, timed = _nothing(), {"steps": 0, "seconds": 0.0}
            if _due(step, config.evaluate_every, finished):
                measured, panels = evaluate(task, state, config, step)
                report.evaluated(step, measured, panels)
                record = {"step": step, **means, **record, **measured}
            if record:
                report.record(record)
            if measured or finished:
                report.curves()
            best = _best(checkpoints.best, measured)
            if best or finished or _due(step, every, finished):
                save(best)
        heard = int(hosts.gathered(np.array(stop.received or 0, np.int32)).max()) if followed else 0
        if heard:
            raise Stopped(_how_to_go_on(heard, step, config.steps, checkpoints), heard)
    return state


def _due(step: int, period: int, finished: bool) -> bool:
    return bool(period) and (finished or step % period == 0)


def _best(name: str, measured: dict[str, float]) -> dict[str, float] | None:
    """The metric by which checkpoints are compared, where it was measured now."""
    if not name or not measured:
        return None
    if name not in measured:
        raise unknown("metric in config.checkpoint.best", name, measured)
    return {name: measured[name]}


def _how_to_go_on(number: int, step: int, steps: int, checkpoints: Checkpoints) -> str:
    name = signal.Signals(number).name
    if step == 0:
        return f"stopped by {name} before the first step; the same command starts again"
    return (
        f"stopped by {name} at step {step} of {steps}; saved {checkpoints.folder / str(step)}. "
        "The same command goes on from there"
    )


def advance(
    interval: Callable[..., Any], feed: Feed, state: State, key: Array, step: int, count: int
) -> tuple[State, float, dict[str, np.ndarray]]:
    """State after `count` more steps, the seconds they took, and the metrics of each; `state` is used up."""
    began = time.perf_counter()
    selections = feed.selections(step, count)
    state, metrics = interval(state, feed.data, key, np.int32(step), np.int32(count), selections)
    on_host = {name: np.asarray(values, np.float64)[:count] for name, values in jax.device_get(metrics).items()}
    return state, time.perf_counter() - began, on_host


def starting_state(
    task: Task,
    config: ml_collections.ConfigDict,
    checkpoints: Checkpoints,
    mesh: Mesh,
    *,
    set_aside: bool,
    adopt: Callable[[State], State] | None = None,
) -> tuple[int, State, dict[str, Any]]:
    """Step, state and what the host had summed up, from the newest good checkpoint; a new state at step 0."""
    key = stream_key(config, INIT)
    abstract = jax.eval_shape(task.init, key)
    shardings = meshes.state_sharded(mesh, abstract, task.axes)
    found = checkpoints.restore_newest(abstract, shardings, set_aside=set_aside)
    if found:
        step, state, host = found
        position = host.pop("next_example", step * config.batch_size)
        if position != step * config.batch_size:
            raise UserError(
                f"checkpoint {checkpoints.folder / str(step)} stands at example {position} of the data, "
                f"config.batch_size {config.batch_size} at {step * config.batch_size}"
            )
        return step, state, host
    state = jax.jit(task.init, out_shardings=shardings)(key)
    return 0, adopt(state) if adopt else state, _nothing()


def evaluate(
    task: Task, state: State, config: ml_collections.ConfigDict, step: int
) -> tuple[dict[str, float], Mapping[str, Shown]]:
    """What the task measures of the state, and its pictures or texts."""
    key = jax.random.fold_in(stream_key(config, EVALUATE), step)
    measured, panels = task.evaluate(hosts.local(state), key)
    return {name: float(value) for name, value in measured.items()}, panels


def _nothing() -> dict[str, Any]:
    return {"count": 0, "sums": {}}


def _accumulate(pending: dict[str, Any], metrics: dict[str, np.ndarray]) -> dict[str, Any]:
    """Sums since the last log line. They are kept in the checkpoint, so that a resumed run logs the same means."""
    sums = {name: pending["sums"].get(name, 0.0) for name in metrics}
    for name, values in metrics.items():
        for value in values:  # one by one: the sum must not depend on where intervals are cut
            sums[name] += float(value)
    return {"count": pending["count"] + len(metrics["loss"]), "sums": sums}


def is_finite(state: State, numpy: Any = jnp) -> Any:
    """Whether every number of the state is one."""
    floats = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return numpy.all(numpy.array([numpy.all(numpy.isfinite(leaf)) for leaf in floats]))


def _check_finite(losses: np.ndarray, first_step: int, last_good: Callable[[], str]) -> None:
    bad = np.flatnonzero(~np.isfinite(losses))
    if bad.size:
        step = first_step + int(bad[0]) + 1
        value = "inf" if math.isinf(losses[bad[0]]) else "nan"
        raise UserError(f"the loss is {value} at step {step}; {last_good()}. {ADVICE}")
