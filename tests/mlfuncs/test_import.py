"""The package itself: its rooms load at first use and stand on few packages."""

import subprocess
import sys

import pytest

import mlfuncs


def modules_after(code):
    """Top-level modules that are loaded after `code`, in a fresh process."""
    listing = "print(sorted({name.partition('.')[0] for name in sys.modules}))"
    result = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\n{listing}"], capture_output=True, text=True, check=True
    )
    return set(eval(result.stdout))


def test_importing_the_package_loads_nothing_beyond_the_standard_library():
    assert modules_after("import mlfuncs") - modules_after("import importlib, types, typing") == {"mlfuncs"}


def test_rooms_load_no_more_than_jax_does():
    """Packages that a room needs for one function, such as optax, load when it is called."""
    rooms = "; ".join(f"import mlfuncs.{room}" for room in mlfuncs.__all__)
    assert modules_after(rooms) - modules_after("import jax, jax.numpy, jax.scipy.special") <= {"mlfuncs"}


def test_every_public_name_exists_and_is_documented():
    for room in mlfuncs.__all__:
        module = getattr(mlfuncs, room)
        for name in getattr(module, "__all__", ()):
            assert getattr(module, name).__doc__
    assert set(mlfuncs.__all__) <= set(dir(mlfuncs))


def test_an_unknown_room_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'magic'"):
        _ = mlfuncs.magic
