"""The whole state of a run, saved by orbax in the background and whole or not at all."""

import logging
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax import Array
from jax.sharding import Sharding

from experiments.engine.errors import UserError

# orbax tells the user of each of its inner steps; what matters comes as an exception.
logging.getLogger("absl").setLevel(logging.CRITICAL)

FORMAT = 1  # of what lies beside the state; a larger number in a checkpoint was written by a newer version
GOLDEN = 0x9E3779B1  # an odd constant that spreads neighbouring positions over all bits


@jax.jit
def _digest(state: Any) -> Array:
    """uint32 for each leaf, from all its bits and their places: a flipped bit on a disk shows as another number."""

    def of(leaf: Array) -> Array:
        leaf = leaf.astype(jnp.uint8) if leaf.dtype == jnp.bool_ else leaf
        bits = jax.lax.bitcast_convert_type(leaf, f"uint{8 * leaf.dtype.itemsize}").astype(jnp.uint32).reshape(-1)
        places = jnp.arange(bits.size, dtype=jnp.uint32) * jnp.uint32(GOLDEN) | jnp.uint32(1)
        return jnp.sum(bits * places, dtype=jnp.uint32)

    return jnp.array([of(leaf) for leaf in jax.tree.leaves(state)], jnp.uint32)


class Checkpoints:
    """`workdir/checkpoints`: the newest `keep` states, each with what the host must remember."""

    def __init__(self, workdir: Path, *, keep: int, create: bool = True):
        self.folder = (workdir / "checkpoints").absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=create)
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def newest(self) -> int | None:
        """Step of the newest whole checkpoint."""
        return self._manager.latest_step()

    def at(self, step: int) -> str:
        """Where the newest good state lies, in words; step 0: nowhere yet."""
        return f"last good checkpoint: {self.folder / str(step)}" if step else "no checkpoint was made yet"

    def save(self, step: int, state: Any, host: dict[str, Any]) -> None:
        """Starts saving; training goes on while the bytes are written."""
        beside = {"format": FORMAT, "digest": _digest(state).tolist(), "host": host}
        arguments = ocp.args.Composite(state=ocp.args.StandardSave(state), host=ocp.args.JsonSave(beside))
        self._manager.save(step, args=arguments, force=True)

    def restore(self, step: int, like: Any, shardings: Any) -> tuple[Any, dict[str, Any]]:
        """State and host data of a step; `like` gives shapes and types, `shardings` (one, or a tree) the places."""
        if isinstance(shardings, Sharding):
            shardings = jax.tree.map(lambda _: shardings, like)
        abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), like, shardings)
        arguments = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), host=ocp.args.JsonRestore())
        where = self.folder / str(step)
        try:
            restored = self._manager.restore(step, args=arguments)
            written = int(restored.host["format"])
            if written <= FORMAT and _digest(restored.state).tolist() != restored.host["digest"]:
                raise ValueError("its bytes are not those that were written")
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"checkpoint {where} can't be read ({reason[:200]})") from error
        if written > FORMAT:
            raise UserError(
                f"checkpoint {where} has format {written}, made by a newer version that knows how to read it"
            )
        return restored.state, restored.host["host"]

    def restore_newest(self, like: Any, shardings: Any, *, set_aside: bool) -> tuple[int, Any, dict[str, Any]] | None:
        """Step, state and host data of the newest checkpoint that can be read, with a warning where it is not the newest.

        None where there is none. With `set_aside` unreadable ones are renamed, so that their steps can be saved again.

        Raises:
          UserError: there are checkpoints, and none can be read.
        """
        failures: list[tuple[int, UserError]] = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                state, host = self.restore(step, like, shardings)
            except UserError as error:
                failures.append((step, error))
                continue
            for bad, failure in failures:
                print(f"warning: {failure}; going on from {self.folder / str(step)}", file=sys.stderr, flush=True)
                if set_aside:
                    self._set_aside(bad)
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
        self._manager.reload()

    def close(self) -> None:
        """Waits until what was started is written."""
        self._manager.wait_until_finished()
        self._manager.close()
