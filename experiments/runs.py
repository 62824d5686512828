"""A run: a config, the world and task it names, and the state trained so far. Runs that others need are cached."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections

from experiments import tasks, worlds
from experiments.engine import configuration, loop, mesh
from experiments.engine.checkpoint import Checkpoints
from experiments.engine.errors import UserError
from experiments.engine.task import Task
from experiments.worlds import World


class Run(NamedTuple):
    config: ml_collections.ConfigDict
    world: World
    task: Task
    state: Any = None


def use_compilation_cache(config: ml_collections.ConfigDict) -> None:
    """Keeps compiled programs in the cache folder, so that a second start compiles nothing."""
    jax.config.update("jax_compilation_cache_dir", str(Path(config.cache_dir).absolute() / "compiled"))


def prepare(config: ml_collections.ConfigDict) -> Run:
    """World and task of a resolved config, nothing trained yet."""

    def trained(needed: ml_collections.ConfigDict) -> Run:
        try:
            return obtain(needed, Path(config.cache_dir))
        except ValueError as error:
            # Not a fault of this run's config, which is what a ValueError means while a task is built.
            raise RuntimeError(f"the {needed.task} run that this one needs has failed") from error

    loop.check_limits(config)
    if config.accumulate < 1:
        raise UserError(f"config.accumulate must be >= 1, got {config.accumulate}")
    mesh.make(
        config.mesh, config.parallel, config.batch_size, config.accumulate
    )  # refused now, before anything is trained
    world = worlds.build(config.data, trained)
    worlds.check_batch(config.batch_size, world.train)
    return Run(config, world, tasks.build(config, world, trained))


def obtain(config: ml_collections.ConfigDict, cache_dir: Path) -> Run:
    """The finished run of a config that another run needs, trained now where the cache lacks it."""
    config = tasks.resolve(config)
    config.cache_dir = str(cache_dir)
    workdir = cache_dir / f"{config.task}-{configuration.fingerprint(config)}"
    return train(config, workdir, wait=True)


def train(config: ml_collections.ConfigDict, workdir: Path, *, wait: bool = False) -> Run:
    """Trains a resolved config in `workdir`, going on from what is there.

    Two processes never write one workdir: the second is refused, or with `wait` stands by until the first is done.
    """
    with _opened(config, workdir, wait=wait):
        run = prepare(config)
        # Only now: a config that can't be run leaves nothing behind that would refuse its corrected form.
        configuration.save(config, workdir)
        return run._replace(state=loop.train(run.task, run.world.train, config, workdir, label=config.task))


@contextlib.contextmanager
def _opened(config: ml_collections.ConfigDict, workdir: Path, *, wait: bool) -> Iterator[None]:
    """A folder for this process alone; refuses that of another config or one that can't be written."""
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
                raise UserError(f"another process is training in {workdir}; choose another --workdir") from None
            print(f"waiting for another process that trains in {workdir}", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        if (workdir / "config.json").exists():
            configuration.check_same(config, workdir)
        yield


def load_config(workdir: Path) -> ml_collections.ConfigDict:
    """The config of a run, with every field that its task needs."""
    config = configuration.load(workdir)
    try:
        return tasks.resolve(config)
    except UserError as error:
        raise UserError(f"{workdir / 'config.json'} is corrupt: {error}") from None


def restore(workdir: Path, *, evaluate: bool = True) -> Run:
    """A run from its workdir, with the newest checkpoint. Without `evaluate` nothing is prepared to measure samples."""
    config = load_config(workdir)
    if not (workdir / "checkpoints").is_dir():
        raise UserError(f"{workdir} holds no checkpoint yet; train it with experiments.train")
    checkpoints = Checkpoints(workdir, keep=config.checkpoint.keep)
    if not checkpoints.newest():
        raise UserError(f"{workdir} holds no checkpoint yet; train it with experiments.train")
    if not evaluate:
        config.evaluate_every = 0
    run = prepare(config)
    devices = mesh.make(config.mesh, config.parallel, config.batch_size)
    _, state, _ = loop.starting_state(run.task, config, checkpoints, devices, set_aside=False)
    checkpoints.close()
    return run._replace(state=jax.block_until_ready(state))
