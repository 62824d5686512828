"""Eight virtual CPU devices for every test, and programs that compile fast, set before JAX starts."""

import importlib.metadata
import os

import pytest

flags = ["--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0"]
# Most of the suite's time goes to compiling small programs once. XLA ends the process at a flag that it does not know,
# so this one is given to the releases that are known to have it alone.
if importlib.metadata.version("jax").startswith("0.10."):
    flags.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags])
os.environ.setdefault("JAX_PLATFORMS", "cpu")


@pytest.fixture(scope="module", autouse=True)
def _let_go_of_programs():
    """Compiled programs of all modules together take gigabytes, and more memory maps than Linux gives a process."""
    import jax

    yield
    jax.clear_caches()
