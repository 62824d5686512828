"""The whole state of a run, saved by orbax in the background and whole or not at all."""

import logging
import math
import os
import re
import shutil
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import Sharding
from orbax.checkpoint import checkpoint_managers

from experiments.engine import hosts
from experiments.engine import mesh as meshes
from experiments.engine.errors import Abandoned, UserError, first_line
from experiments.engine.stopping import Stopped

# orbax tells the user of each of its inner steps; what matters comes as an exception.
logging.getLogger("absl").setLevel(logging.CRITICAL)

FORMAT = 2  # of what lies beside the state (1: digests without paths); a larger number was written by a newer version
GOLDEN = 0x9E3779B1  # an odd constant that spreads neighbouring positions over all bits
SHOWN = 240  # characters of a foreign message
LISTED = 8  # differing leaves that an error names
MODES = ("max", "min")


def _hush(unraisable: Any) -> None:
    """After a failed save, threads of orbax find the loop of the others closed, and would print a traceback each."""
    error = unraisable.exc_value
    if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
        _unhushed(unraisable)


_unhushed, sys.unraisablehook = sys.unraisablehook, _hush


def _digest(state: Any, numpy: Any = jnp) -> Any:
    """uint32 for each leaf, from all its bits and their places: a flipped bit on a disk shows as another number."""

    def of(leaf: Any) -> Any:
        leaf = leaf.astype(numpy.uint8) if leaf.dtype == bool else leaf
        bits = leaf.view(f"uint{8 * leaf.dtype.itemsize}").astype(numpy.uint32).reshape(-1)
        places = numpy.arange(bits.size, dtype=numpy.uint32) * numpy.uint32(GOLDEN) | numpy.uint32(1)
        return numpy.sum(bits * places, dtype=numpy.uint32)

    return numpy.array([of(leaf) for leaf in jax.tree.leaves(state)], numpy.uint32)


def _digests(state: Any) -> dict[str, int]:
    """The digest of each leaf by its path."""
    return dict(zip(_by_path(state), meshes.on_host(_digest, state).tolist(), strict=True))


def _by_path(tree: Any) -> dict[str, Any]:
    """Leaves by a path that is the same for a named tuple and for the nested dict that is stored of it."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _reason(error: BaseException) -> str:
    """The first line of an error, and what the system says where it gives but its number; of a long one both ends."""
    line = first_line(error)
    if (number := re.search(r"os_error_code='(\d+)'", line)) and (cause := os.strerror(int(number[1]))) not in line:
        line = f"{cause}: {line}"
    return line if len(line) <= SHOWN else f"{line[: SHOWN // 2]} ... {line[-SHOWN // 2 :]}"


class NewerFormat(UserError):
    """A whole checkpoint that only a newer version can read: no damage, and none before it may stand in for it."""


class Checkpoints:
    """`workdir/checkpoints`: the newest `keep` states, each with what the host must remember.

    Where `best` names a metric, the state with its best value (`best_mode` "min" or "max") is kept beside them. `clean`, for
    the run that writes here, deletes what is left of saves that were cut short.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        keep: int,
        best: str = "",
        best_mode: str = "min",
        create: bool = True,
        clean: bool = False,
    ):
        self.folder = (workdir / "checkpoints").absolute()
        self.keep, self.best = keep, best
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=create, cleanup_tmp_directories=clean)
        if best:

            def measured(metrics: Any) -> float:
                # What is no number, or was measured for another metric, is never the best.
                value = float(metrics.get(best, math.nan))
                return value if not math.isnan(value) else math.inf if best_mode == "min" else -math.inf

            preserved = checkpoint_managers.AnyPreservationPolicy(
                [
                    checkpoint_managers.LatestN(n=keep),
                    checkpoint_managers.BestN(
                        get_metric_fn=measured, reverse=best_mode == "min", n=1, keep_checkpoints_without_metrics=False
                    ),
                ]
            )
            options = ocp.CheckpointManagerOptions(
                preservation_policy=preserved,
                best_fn=measured,
                best_mode=best_mode,
                create=create,
                cleanup_tmp_directories=clean,
            )
        self._manager = ocp.CheckpointManager(self.folder, options=options)
        self._writing = 0  # step of the save that runs in the background

    def newest(self) -> int | None:
        """Step of the newest whole checkpoint."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """Step of the checkpoint with the best metric; None where none of them has a number for it."""
        step = self._manager.best_step() if self.best else None
        measured = (self._manager.metrics(step) or {}) if step is not None else {}
        return step if not math.isnan(float(measured.get(self.best, math.nan))) else None

    def steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    def at(self, step: int) -> str:
        """Where the newest good state lies, in words; step 0: nowhere yet."""
        return f"last good checkpoint: {self.folder / str(step)}" if step else "no checkpoint was made yet"

    def last_good(self, step: int) -> str:
        """`at`, when the save of that step is whole. Of several processes all must call it: each waits for the others."""
        self.wait()
        return self.at(step)

    def check_space(self, state: Any, saves: int) -> None:
        """Refuses a run whose checkpoints, `saves` more of them, the disk can't hold.

        Raises:
          UserError: with the bytes needed and free.
        """
        each = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        # An old one goes when the next is whole.
        most = self.keep + 1 + bool(self.best)
        more = max(1, min(saves, most - len(self.steps())))
        free = shutil.disk_usage(self.folder).free
        if free < more * each:
            raise UserError(
                f"{self.folder} has {_megabytes(free)} free, and {more} checkpoints of {_megabytes(each)} are to come: "
                "free some space, lower config.checkpoint.keep, or choose another --workdir"
            )

    def save(self, step: int, state: Any, host: dict[str, Any], metrics: dict[str, float] | None = None) -> None:
        """Starts saving; training goes on while the bytes are written.

        Raises:
          UserError: this save, or the one before, can't be written. Older checkpoints are as they were.
        """
        beside = {"format": FORMAT, "digest": _digests(state), "host": host}
        arguments = ocp.args.Composite(state=ocp.args.StandardSave(state), host=ocp.args.JsonSave(beside))
        try:
            self._manager.wait_until_finished()
            self._writing = step
            self._manager.save(step, args=arguments, metrics=metrics if self.best else None, force=True)
        except Exception as error:
            raise self._not_written(error) from error

    def _not_written(self, error: Exception) -> Abandoned:
        whole = [step for step in self._manager.all_steps(read=True) if step != self._writing]
        return Abandoned(
            f"checkpoint {self.folder / str(self._writing)} can't be written ({_reason(error)}); "
            f"{self.at(max(whole, default=0))}"
        )

    def restore(self, step: int, like: Any, shardings: Any) -> tuple[Any, dict[str, Any]]:
        """State and host data of a step; `like` gives shapes and types, `shardings` (one, or a tree) the places."""
        abstract = _abstract(like, shardings)
        where = self.folder / str(step)
        try:
            beside = self._beside(step)
            arguments = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
            state = self._manager.restore(step, args=arguments).state
            ours, theirs = _digests(state), beside["digest"]
            if list(ours.values()) != (list(theirs.values()) if isinstance(theirs, dict) else theirs):
                raise ValueError("its bytes are not those that were written")
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"checkpoint {where} can't be read ({_reason(error)})") from error
        return state, beside["host"]

    def _beside(self, step: int) -> Any:
        """What lies beside the state; to be read first, for the state of a newer format may be anything."""
        beside = self._manager.restore(step, args=ocp.args.Composite(host=ocp.args.JsonRestore())).host
        if int(beside["format"]) > FORMAT:
            raise NewerFormat(
                f"checkpoint {self.folder / str(step)} has format {beside['format']}, "
                "made by a newer version that knows how to read it"
            )
        return beside

    def check_part(self, step: int, part: str, like: Any) -> None:
        """Refuses a field of the state whose leaves or shapes are not those of `like`, and lists them.

        Raises:
          UserError: they differ, or can't be read.
        """
        where = self.folder / str(step)
        try:
            self._beside(step)
            stored = ocp.PyTreeCheckpointHandler().metadata(where / "state").tree.get(part, {})
            there = {path: tuple(leaf.shape) for path, leaf in _by_path(stored).items()}
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"checkpoint {where} can't be read ({_reason(error)})") from error
        here = {path: tuple(leaf.shape) for path, leaf in _by_path(like).items()}
        differing = [
            f"{path}: {there.get(path, 'absent')} there, {here.get(path, 'absent')} here"
            for path in sorted(there.keys() | here.keys())
            if there.get(path) != here.get(path)
        ]
        if differing:
            more = f"; and {len(differing) - LISTED} more" if len(differing) > LISTED else ""
            raise UserError(
                f"the parameters of checkpoint {where} are not those of this config's network. "
                f"Differing leaves: {'; '.join(differing[:LISTED])}{more}"
            )

    def restore_part(self, step: int, part: str, like: Any, shardings: Any) -> Any:
        """One field of the state, whatever task it is of: `part` names it, `like` and `shardings` are trees of its leaves.

        Raises:
          UserError: as `check_part`.
        """
        self.check_part(step, part, like)
        where = self.folder / str(step)
        abstract = {part: _abstract(like, shardings)}
        places = ocp.checkpoint_utils.construct_restore_args(abstract)
        arguments = ocp.args.Composite(
            state=ocp.args.PyTreeRestore(item=abstract, restore_args=places, partial_restore=True)
        )
        try:
            written = self._beside(step)["digest"]
            restored = self._manager.restore(step, args=arguments)
            ours = _digests(restored.state)
            if isinstance(written, dict) and ours != {path: written[path] for path in ours}:
                raise ValueError("its bytes are not those that were written")
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"checkpoint {where} can't be read ({_reason(error)})") from error
        return restored.state[part]

    def restore_newest(self, like: Any, shardings: Any, *, set_aside: bool) -> tuple[int, Any, dict[str, Any]] | None:
        """Step, state and host data of the newest checkpoint that can be read, with a warning where it is not the newest.

        None where there is none. With `set_aside` unreadable ones are renamed, so that their steps can be saved again.

        Raises:
          UserError: there are checkpoints, and none can be read, or the newest is of a newer format.
        """
        failures: list[tuple[int, UserError]] = []
        for step in reversed(self.steps()):
            try:
                state, host = self.restore(step, like, shardings)
            except NewerFormat:
                raise
            except UserError as error:
                failures.append((step, error))
                continue
            for bad, failure in failures:
                print(f"warning: {failure}; going on from {self.folder / str(step)}", file=sys.stderr, flush=True)
                if set_aside and hosts.first():
                    self._set_aside(bad)
            if failures:
                self._manager.reload()
            return step, state, host
        if failures:
            others = f" nor any of the {len(failures) - 1} before it" if len(failures) > 1 else ""
            raise UserError(f"{failures[0][1]}{others}; restore {self.folder}, or choose another --workdir")
        return None

    def _set_aside(self, step: int) -> None:
        number, target = 1, self.folder.parent / f"damaged_checkpoint_{step}"
        while target.exists():
            number += 1
            target = self.folder.parent / f"damaged_checkpoint_{step}_{number}"
        (self.folder / str(step)).rename(target)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What is being written waits for all processes, and after an error some may have gone; an interrupt does not wait.
        awaited = kind is None or issubclass(kind, Stopped) or not hosts.several()
        if awaited and not (kind and issubclass(kind, KeyboardInterrupt)):
            self.close()

    def wait(self) -> None:
        """Waits until what was started is written.

        Raises:
          UserError: it can't be written.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._not_written(error) from error

    def close(self) -> None:
        """Waits as `wait` does; nothing can be saved afterwards."""
        try:
            self.wait()
        except Exception:
            self._manager.close()
            raise
        self._manager.close()


def _abstract(like: Any, shardings: Any) -> Any:
    if isinstance(shardings, Sharding):
        shardings = jax.tree.map(lambda _: shardings, like)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), like, shardings)


def _megabytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
