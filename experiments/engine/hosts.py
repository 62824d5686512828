"""Several processes that run one program together, each with devices of its own. One process alone needs none of it."""

import atexit
import os
import subprocess
import sys
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.engine.errors import UserError, first_line

MESSAGE_BYTES = 1024  # of an error that all processes are told
HEARTBEAT_SECONDS = 30  # without a sign of life, after which a process counts as gone
GONE = (
    "error: {what}: this process was killed, or another one of the run has gone. "
    "Start all processes again with the same commands: they go on from the newest checkpoint"
)
# JAX aborts a process that has lost the others, wherever it stands: only another process can then say what to do.
WATCH = "import sys; sys.stdin.read() or print(sys.argv[1], file=sys.stderr, flush=True)"


_watcher: subprocess.Popen[bytes] | None = None


def start(coordinator: str, num_processes: int, process_id: int) -> None:
    """Joins the other processes: those of the flags, else those that JAX detects (TPU pod, Slurm, Kubernetes, Open MPI).

    To be called before anything else asks JAX for its devices. Without coordinator and a -1 for both numbers, and with
    nothing detected, this process stays alone.

    Raises:
      UserError: some of the three are missing or out of range, or the others can't be reached.
    """
    given = {"--coordinator": coordinator, "--num-processes": num_processes, "--process-id": process_id}
    absent = [name for name, value in given.items() if value in ("", -1)]
    if absent and len(absent) < len(given):
        raise UserError(f"{' and '.join(absent)} must be given too: the three flags go together")
    if absent:
        _detect()
        return
    if num_processes < 1:
        raise UserError(f"--num-processes must be >= 1, got {num_processes}")
    if not 0 <= process_id < num_processes:
        raise UserError(
            f"--process-id must be in [0, {num_processes - 1}] for --num-processes {num_processes}, got {process_id}"
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"--coordinator must be HOST:PORT of process 0, got {coordinator!r}")
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            cluster_detection_method="deactivate",
        )
    except RuntimeError as error:
        raise UserError(f"the processes at --coordinator {coordinator} can't be joined: {first_line(error)}") from None
    _watch()


def _detect() -> None:
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
        _watch()
    except ValueError as error:
        # What JAX says where it finds no cluster; anything else is a cluster that it could not join.
        if "coordinator_address should be defined" not in str(error):
            raise UserError(f"the processes of this cluster can't be joined: {first_line(error)}") from None
    except RuntimeError as error:
        raise UserError(f"the processes of this cluster can't be joined: {first_line(error)}") from None


def _watch() -> None:
    """Leaves a process behind that speaks if this one ends without having dismissed it."""
    global _watcher
    what = f"process {jax.process_index()} of {jax.process_count()} ended in the middle of the run"
    command = [sys.executable, "-S", "-c", WATCH, GONE.format(what=what)]
    # A session of its own: signals that are meant for the run do not end it.
    _watcher = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
    atexit.register(_dismiss)


def _dismiss() -> None:
    global _watcher
    if _watcher and _watcher.stdin:
        _watcher.stdin.write(b"dismissed")
        _watcher.stdin.close()
        _watcher = None


def several() -> bool:
    return jax.process_count() > 1


def first() -> bool:
    """Whether this is the process that writes logs, pictures and configs."""
    return jax.process_index() == 0


def gathered(values: np.ndarray) -> np.ndarray:
    """[processes, ...]: the `values` of every process, a host's array of one shape."""
    if not several():
        return values[None]
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(values)).reshape(-1, *values.shape)


def agree(error: UserError | None) -> None:
    """Raises the error of one process in all of them, so that none waits for one that has given up."""
    if not several():
        if error:
            raise error
        return
    text = np.zeros(MESSAGE_BYTES, np.uint8)
    said = str(error or "").encode()[:MESSAGE_BYTES]
    text[: len(said)] = np.frombuffer(said, np.uint8)
    for message in gathered(text):
        if message.any():
            raise UserError(bytes(message).rstrip(b"\0").decode(errors="ignore"))


def local(tree: Any) -> Any:
    """Arrays that lie on devices of this process alone, split over these, from arrays split over all processes.

    Every process must call it. What is measured on the result needs no other process.
    """
    if not several():
        return tree
    devices = np.array(sorted(jax.devices(), key=lambda device: (device.process_index, device.id)))
    by_process = Mesh(devices.reshape(jax.process_count(), -1), ("process", "device"))
    here = Mesh(np.array(jax.local_devices()), ("device",))

    def spec(leaf: Any) -> PartitionSpec:
        count = by_process.shape["device"]
        fitting = [axis for axis, length in enumerate(leaf.shape) if length and length % count == 0]
        if not fitting:
            return PartitionSpec()
        return PartitionSpec(*[None] * max(fitting, key=lambda axis: leaf.shape[axis]), "device")

    copied = jax.jit(
        lambda tree: tree, out_shardings=jax.tree.map(lambda leaf: NamedSharding(by_process, spec(leaf)), tree)
    )(tree)

    def assembled(leaf: Any) -> Any:
        parts = {shard.device: shard.data for shard in leaf.addressable_shards}
        sharding = NamedSharding(here, spec(leaf))
        return jax.make_array_from_single_device_arrays(leaf.shape, sharding, [parts[d] for d in here.devices.flat])

    return jax.tree.map(assembled, copied)


def leave(code: int) -> None:
    """Ends this process now where there are others: they would wait for it, and it for them, while JAX shuts down."""
    if several():
        _dismiss()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
