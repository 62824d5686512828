"""Pure JAX functions for the methods of machine-learning papers, one module a technique.

Modules load at first use (`mlfuncs.consistency`, or `from mlfuncs import consistency`), so that importing the package
costs next to nothing.
"""

import importlib
import types
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import mlfuncs.consistency as consistency
    import mlfuncs.diffusion as diffusion
    import mlfuncs.metrics as metrics
    import mlfuncs.robust as robust
    import mlfuncs.transport as transport

__version__ = "0.1.0"
__all__ = ["consistency", "diffusion", "metrics", "robust", "transport"]


def __getattr__(name: str) -> types.ModuleType:
    if name in __all__:
        return importlib.import_module(f"mlfuncs.{name}")
    raise AttributeError(f"module 'mlfuncs' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
