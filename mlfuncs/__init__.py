"""Pure JAX functions for the methods of machine-learning papers, one module a technique.

Modules load at first use (`mlfuncs.consistency`, or `from mlfuncs import consistency`), so that importing the package
costs next to nothing.
"""

import importlib
import types
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import mlfuncs.adapters as adapters
    import mlfuncs.architecture_search as architecture_search
    import mlfuncs.attention as attention
    import mlfuncs.causal as causal
    import mlfuncs.consistency as consistency
    import mlfuncs.diffusion as diffusion
    import mlfuncs.distillation as distillation
    import mlfuncs.dropout as dropout
    import mlfuncs.early_exit as early_exit
    import mlfuncs.guidance as guidance
    import mlfuncs.masked_modeling as masked_modeling
    import mlfuncs.metrics as metrics
    import mlfuncs.noisy_labels as noisy_labels
    import mlfuncs.preference as preference
    import mlfuncs.privacy as privacy
    import mlfuncs.representation as representation
    import mlfuncs.robust as robust
    import mlfuncs.score_distillation as score_distillation
    import mlfuncs.selection as selection
    import mlfuncs.sparsity as sparsity
    import mlfuncs.timeseries as timeseries
    import mlfuncs.transport as transport
    import mlfuncs.uncertainty as uncertainty
    import mlfuncs.unlearning as unlearning
    import mlfuncs.vision as vision
    import mlfuncs.world_model as world_model

__version__ = "0.1.0"
__all__ = [
    "adapters",
    "architecture_search",
    "attention",
    "causal",
    "consistency",
    "diffusion",
    "distillation",
    "dropout",
    "early_exit",
    "guidance",
    "masked_modeling",
    "metrics",
    "noisy_labels",
    "preference",
    "privacy",
    "representation",
    "robust",
    "score_distillation",
    "selection",
    "sparsity",
    "timeseries",
    "transport",
    "uncertainty",
    "unlearning",
    "vision",
    "world_model",
]


def __getattr__(name: str) -> types.ModuleType:
    if name in __all__:
        return importlib.import_module(f"mlfuncs.{name}")
    raise AttributeError(f"module 'mlfuncs' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
