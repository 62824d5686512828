"""The README does what it says: its Python runs, its links, configs and functions are there."""

import re
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mlfuncs
from tests.experiments.helpers import ROOT, program

TEXT = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def test_the_python_examples_run_in_turn():
    keys = jax.random.split(jax.random.key(0), 2)

    def network(params, x, c_noise):
        hidden = jnp.tanh(x.reshape(x.shape[0], -1) @ params["in"] + c_noise[:, None])
        return (hidden @ params["out"]).reshape(x.shape)

    batches = np.random.default_rng(0).uniform(-1, 1, (3, 16, 8, 8, 1)).astype(np.float32)
    params = {"in": jax.random.normal(keys[0], (64, 16)) / 8, "out": jax.random.normal(keys[1], (16, 64)) / 4}
    names = {"network": network, "batches": batches, "params": params}
    for code in blocks("python"):
        exec(code, names)
    assert names["step"] == 2
    assert names["images"].shape == (64, 8, 8, 1)
    assert bool(jnp.all(jnp.isfinite(names["images"])))
    assert not np.array_equal(names["params"]["in"], params["in"])


def test_the_loss_takes_few_lines():
    assert len([line for line in blocks("python")[0].splitlines() if line.strip()]) <= 18


def test_what_it_links_to_exists():
    targets = re.findall(r"\]\(([^)#:]+)\)", TEXT)
    assert targets
    for target in targets:
        assert (ROOT / target).is_file(), target


def test_the_configs_it_names_exist():
    named = set(re.findall(r"configs/[\w/*]+\.py", TEXT))
    assert "configs/consistency/digits.py" in named
    for name in named:
        assert list(ROOT.glob(name)), name


def test_every_room_has_a_row():
    assert set(re.findall(r"^\| `mlfuncs\.(\w+)`", TEXT, re.MULTILINE)) == set(mlfuncs.__all__)


@pytest.mark.parametrize("name", ["train", "sample"])
def test_the_flags_of_its_commands_are_known(name):
    (command,) = (line for line in TEXT.splitlines() if line.startswith(f".venv/bin/python -m experiments.{name} "))
    given = shlex.split(command)[3:]
    # An unknown flag is refused before anything else: with one more mistake, only that one is named.
    answer = program(f"experiments.{name}", *given, "unexpected")
    assert answer.returncode == 2
    assert "unexpected argument 'unexpected'" in answer.stderr
