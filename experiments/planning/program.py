"""The update of a config, made for devices that need not be here, from shapes alone."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax import Array
from jax.sharding import NamedSharding

from experiments import tasks, worlds
from experiments.engine import loop
from experiments.engine import mesh as meshes
from experiments.engine.task import Task
from experiments.runs import Run
from experiments.worlds import Split, Trained, World


class Program(NamedTuple):
    """A step that can be lowered, and the bytes of what it is given, on each device."""

    step: Any  # jitted
    arguments: tuple[Any, ...]  # shapes, types and places
    devices: int
    mesh: dict[str, int]
    parameters: int
    state_bytes: int  # what a step changes: parameters, optimiser, averages
    argument_bytes: int  # that, trained runs that the task needs, data that stays on the device, and a batch
    waiting_bytes: int  # batches beside that of the step


def make(config: ml_collections.ConfigDict, devices: Sequence[Any]) -> Program:
    """One step of a resolved config on these devices. Nothing is read, trained or computed."""
    config = ml_collections.ConfigDict(config.to_dict())
    config.evaluate_every, config.checkpoint.best = 0, ""
    loop.check_limits(config)
    mesh = meshes.make(config.mesh, config.parallel, config.batch_size, config.accumulate, devices=devices)
    world = worlds.describe(config.data, _stand_ins(lambda task: jax.eval_shape(task.init, _key())))
    worlds.check_batch(config.batch_size, world.train)
    axes: dict[tuple[str, ...], tuple[str | None, ...]] = {}
    state, others = jax.eval_shape(lambda key: _initial(config, world, axes, key), _key())
    places, everywhere = meshes.state_sharded(mesh, state, axes), meshes.replicated(mesh)
    data, selection = _fed(world.train, config.batch_size)

    def step(state: Any, others: Any, data: Any, selection: Any, number: Array, key: Array) -> Any:
        given = iter(others)
        task = tasks.build(config, world, _stand_ins(lambda task: next(given)))
        return task.update(state, loop.Feed.fetch(data, selection), jax.random.fold_in(key, number))

    placed = (
        jax.tree.map(_placed, state, places),
        _all_placed(others, everywhere),
        _all_placed(data, everywhere),
        _all_placed(selection, meshes.batch_sharded(mesh, axis=0)),
        _placed(jax.ShapeDtypeStruct((), jnp.int32), everywhere),
        _placed(_key(), everywhere),
    )
    return Program(
        step=jax.jit(step, donate_argnums=0, out_shardings=(places, everywhere)),
        arguments=placed,
        devices=mesh.size,
        mesh=dict(mesh.shape),
        parameters=sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params)),
        state_bytes=_bytes_on_each(placed[0]),
        argument_bytes=_bytes_on_each(placed[:4]),
        waiting_bytes=0 if data else loop.SELECTION_BYTES // _in_a_process(devices),
    )


def _in_a_process(devices: Sequence[Any]) -> int:
    return sum(device.process_index == devices[0].process_index for device in devices)


def _key() -> Any:
    return jax.eval_shape(lambda: jax.random.key(0))


def _stand_ins(state_of: Callable[[Task], Any]) -> Trained:
    """Untrained runs in the place of those that a config needs, with the states that `state_of` gives."""

    def trained(needed: ml_collections.ConfigDict) -> Run:
        needed = tasks.resolve(needed)
        needed.evaluate_every = 0
        world = worlds.describe(needed.data, trained)
        task = tasks.build(needed, world, trained)
        return Run(needed, world, task, state_of(task))

    return trained


def _initial(
    config: ml_collections.ConfigDict, world: World, axes: dict[tuple[str, ...], tuple[str | None, ...]], key: Array
) -> tuple[Any, list[Any]]:
    """The state of a run, and those of the runs that it needs: arguments of the step, for the compiler not to know them.

    What the parameters hold goes into `axes`.
    """
    others: list[Any] = []

    def state_of(task: Task) -> Any:
        others.append(task.init(key))
        return others[-1]

    task = tasks.build(config, world, _stand_ins(state_of))
    axes.update(task.axes)
    return task.init(key), others


def _fed(split: Split, batch_size: int) -> tuple[dict[str, Any], Any]:
    """Data that stays on the device with the indices of a batch into it, or nothing with the batch itself."""
    if split.examples is None:
        like = split.read(np.arange(1))
        return {}, {name: _shape((batch_size, *values.shape[1:]), values.dtype) for name, values in like.items()}
    data = {name: _shape(values.shape, values.dtype) for name, values in split.examples.items()}
    return data, _shape((batch_size,), jnp.int32)


def _shape(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(dtype))


def _placed(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _all_placed(tree: Any, sharding: NamedSharding) -> Any:
    return jax.tree.map(lambda leaf: _placed(leaf, sharding), tree)


def _bytes_on_each(tree: Any) -> int:
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
