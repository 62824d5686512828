"""Eight virtual CPU devices for every test, and programs that compile fast, set before JAX starts."""

import os

import pytest

from experiments.engine import compiling

compiling.compile_quickly()  # most of the suite's time goes to compiling small programs once
os.environ["XLA_FLAGS"] += " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")


@pytest.fixture(scope="module", autouse=True)
def _let_go_of_programs():
    """Compiled programs of all modules together take gigabytes, and more memory maps than Linux gives a process."""
    import jax

    yield
    jax.clear_caches()
