"""The whole state of a run, saved by orbax in the background and whole or not at all."""

import logging
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Sharding

from experiments.engine.errors import UserError

# orbax tells the user of each of its inner steps; what matters comes as an exception.
logging.getLogger("absl").setLevel(logging.CRITICAL)


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
        arguments = ocp.args.Composite(state=ocp.args.StandardSave(state), host=ocp.args.JsonSave(host))
        self._manager.save(step, args=arguments, force=True)

    def restore(self, step: int, like: Any, sharding: Sharding) -> tuple[Any, dict[str, Any]]:
        """State and host data of a step, onto the devices of `sharding`; `like` gives shapes and types."""
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), like)
        arguments = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), host=ocp.args.JsonRestore())
        try:
            restored = self._manager.restore(step, args=arguments)
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(
                f"checkpoint {self.folder / str(step)} can't be read ({reason[:200]}); "
                "move that folder away to go on from the one before"
            ) from error
        return restored.state, restored.host

    def close(self) -> None:
        """Waits until what was started is written."""
        self._manager.wait_until_finished()
        self._manager.close()
