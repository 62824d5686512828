"""How XLA compiles programs that run once or a few times: fast, at the price of slower programs."""

import importlib.metadata
import os


def quick_flags() -> str:
    """XLA flags under which compiling takes less than half of its time; for smoke runs and tests."""
    flags = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
    # XLA ends the process at a flag that it does not know, so this one is for the releases that are known to have it alone.
    if importlib.metadata.version("jax").startswith("0.10."):
        flags.append("--xla_cpu_use_fusion_emitters=false")
    return " ".join(flags)


def compile_quickly() -> None:
    """Sets the quick flags beside those that the user gave, which win. To be called before JAX starts."""
    os.environ["XLA_FLAGS"] = f"{quick_flags()} {os.environ.get('XLA_FLAGS', '')}".strip()
