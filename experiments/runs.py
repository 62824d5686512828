"""A run: a config, the world and task it names, and the state trained so far. Runs that others need are cached."""

import contextlib
import fcntl
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections

from experiments import tasks, worlds
from experiments.engine import configuration, hosts, loop, mesh
from experiments.engine.checkpoint import Checkpoints
from experiments.engine.errors import UserError
from experiments.engine.task import Task
from experiments.worlds import World


class Run(NamedTuple):
    config: ml_collections.ConfigDict
    world: World
    task: Task
    state: Any = None
    workdir: Path | None = None  # of a run that another needed


def use_compilation_cache(config: ml_collections.ConfigDict) -> None:
    """Keeps compiled programs in the cache folder, so that a second start compiles nothing."""
    jax.config.update("jax_compilation_cache_dir", str(Path(config.cache_dir).absolute() / "compiled"))
    # The many small programs of a start take longer together than the large one.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def prepare(config: ml_collections.ConfigDict) -> Run:
    """World and task of a resolved config, nothing trained yet."""

    def trained(needed: ml_collections.ConfigDict) -> Run:
        called = f"{needed.task} " if "task" in needed else ""
        try:
            if folder := needed.get("workdir", ""):
                return _local(restore(Path(folder), evaluate=False))
            return obtain(needed, Path(config.cache_dir))
        except UserError as error:
            # What it says of a config is of the other one.
            raise type(error)(f"the {called}run that this one needs{_place(config, needed)}: {error}") from error
        except ValueError as error:
            # Not a fault of this run's config, which is what a ValueError means while a task is built.
            raise RuntimeError(f"the {called}run that this one needs has failed") from error

    loop.check_limits(config)
    # Refused now, before anything is trained.
    mesh.make(config.mesh, config.parallel, config.batch_size, config.accumulate)
    world = worlds.build(config.data, trained)
    worlds.check_batch(config.batch_size, world.train)
    return Run(config, world, tasks.build(config, world, trained))


def _place(config: ml_collections.ConfigDict, needed: ml_collections.ConfigDict) -> str:
    """Where in a config that of another run stands."""
    sections: list[tuple[str, Any]] = [("config", config)]
    while sections:
        path, section = sections.pop()
        if section is needed:
            return f" ({path})"
        sections += [(f"{path}.{name}", value) for name, value in section.items() if hasattr(value, "items")]
    return ""


def obtain(config: ml_collections.ConfigDict, cache_dir: Path) -> Run:
    """The finished run of a config that another run needs, trained now where the cache lacks it."""
    config = tasks.resolve(config)
    config.cache_dir = str(cache_dir)
    _fit_mesh(config)
    workdir = cache_dir / f"{config.task}-{configuration.fingerprint(config)}"
    return _local(train(config, workdir, needed=True)._replace(workdir=workdir))


def _local(run: Run) -> Run:
    """A run with its state on a host: what another program closes over must not be spread over processes."""
    return run._replace(state=jax.device_get(hosts.local(run.state))) if hosts.several() else run


def _fit_mesh(config: ml_collections.ConfigDict) -> None:
    """Lets a run go where its mesh does not: that of a run which was made elsewhere, or which only another one needs."""
    loop.check_limits(config)
    config.mesh = mesh.fitting(config.mesh, config.parallel, config.batch_size, config.accumulate)


def train(config: ml_collections.ConfigDict, workdir: Path, *, needed: bool = False) -> Run:
    """Trains a resolved config in `workdir`, going on from what is there.

    Two processes never write one workdir: the second is refused, or where the run is `needed` by another stands by until
    the first is done.
    """
    with _opened(config, workdir, wait=needed):
        run = prepare(config)
        begun = any(path.name.isdigit() for path in (workdir / "checkpoints").glob("*"))
        adopt = _adopting(Path(config.init_from), workdir, run.task) if config.init_from and not begun else None
        # Only now: a config that can't be run leaves nothing behind that would refuse its corrected form.
        if hosts.first():
            configuration.save(config, workdir)
        state = loop.train(run.task, run.world.train, config, workdir, label=config.task, adopt=adopt, followed=needed)
        return run._replace(state=state)


def _adopting(source: Path, workdir: Path, task: Task) -> Callable[[Any], Any]:
    """Gives a new state the averaged parameters of the newest checkpoint of another run, which has been looked at."""
    if source.absolute() == workdir.absolute():
        raise UserError(f"--init_from {source} is the --workdir itself; a run goes on from its own checkpoints anyway")
    if not (source / "checkpoints").is_dir():
        raise UserError(f"--init_from {source} holds no checkpoint")
    checkpoints = Checkpoints(source, keep=1, create=False)
    step = checkpoints.newest()
    if not step:
        raise UserError(f"--init_from {source} holds no checkpoint")
    checkpoints.check_part(step, "average", jax.eval_shape(task.init, jax.random.key(0)).params)

    def adopt(state: Any) -> Any:
        places = jax.tree.map(lambda leaf: leaf.sharding, state.params)
        params = checkpoints.restore_part(step, "average", state.params, places)
        checkpoints.close()
        return tasks.common.adopt(state, params)

    return adopt


@contextlib.contextmanager
def _opened(config: ml_collections.ConfigDict, workdir: Path, *, wait: bool) -> Iterator[None]:
    """A folder for this run alone; refuses that of another config or one that can't be written."""
    with contextlib.ExitStack() as stack:
        refusal = None
        if hosts.first():
            try:
                stack.enter_context(locked(workdir, wait=wait))
                if (workdir / "config.json").exists():
                    configuration.check_same(config, workdir)
            except UserError as error:
                refusal = error
        hosts.agree(refusal)
        yield


@contextlib.contextmanager
def locked(workdir: Path, *, wait: bool) -> Iterator[None]:
    """A folder, made where it is missing, for this process alone."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / ".lock").open("w")
    except OSError as error:
        raise UserError(f"--workdir {workdir} can't be written: {error.strerror or error}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if not wait:
                raise UserError(f"another process is at work in {workdir}; choose another --workdir") from None
            print(f"waiting for another process that works in {workdir}", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def load_config(workdir: Path) -> ml_collections.ConfigDict:
    """The config of a run, with every field that its task needs."""
    config = configuration.load(workdir)
    try:
        return tasks.resolve(config)
    except UserError as error:
        raise UserError(f"{workdir / 'config.json'} is corrupt: {error}") from None


def _choose(config: ml_collections.ConfigDict, chosen: Mapping[str, Any], workdir: Path) -> None:
    """Replaces what a run says of how its samples are drawn."""
    for name, value in chosen.items():
        sections = [section for section in ("condition", "sampling") if name in (config.get(section, None) or {})]
        if not sections:
            lacking = "sampling" if name in ("temperature", "top_k") else "condition"
            raise UserError(f"{workdir} has no config.{lacking}, so there is no {name} to choose")
        config[sections[0]][name] = value


def restore(
    workdir: Path, *, evaluate: bool = True, best: bool = False, chosen: Mapping[str, Any] | None = None
) -> Run:
    """A run from its workdir, with the newest checkpoint, or the best by its `checkpoint.best`.

    Without `evaluate` nothing is prepared to measure samples. `chosen` has fields that replace those of its
    `config.condition`, or of its `config.sampling`.
    """
    config = load_config(workdir)
    _choose(config, chosen or {}, workdir)
    if not (workdir / "checkpoints").is_dir():
        raise UserError(f"{workdir} holds no checkpoint yet; train it with experiments.train")
    checkpoints = loop.open_checkpoints(config, workdir)
    if not checkpoints.newest():
        raise UserError(f"{workdir} holds no checkpoint yet; train it with experiments.train")
    step = checkpoints.best_step()
    if best and step is None:
        raise UserError(
            f"{workdir} kept no best checkpoint: its config has no checkpoint.best, or nothing was evaluated"
        )
    if not evaluate:
        config.evaluate_every, config.checkpoint.best = 0, ""
    _fit_mesh(config)
    run = prepare(config)
    devices = mesh.make(config.mesh, config.parallel, config.batch_size)
    if best and step:
        abstract = jax.eval_shape(run.task.init, jax.random.key(0))
        state, _ = checkpoints.restore(step, abstract, mesh.state_sharded(devices, abstract, run.task.axes))
    else:
        _, state, _ = loop.starting_state(run.task, config, checkpoints, devices, set_aside=False)
    checkpoints.close()
    return run._replace(state=jax.block_until_ready(state))
