"""Processes that join: what the flags refuse, and that one process alone needs none of it."""

import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments.engine import hosts
from experiments.engine.errors import UserError
from tests.experiments.helpers import ROOT


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("localhost:1", 2, -1), "--process-id must be given too: the three flags go together"),
        (("localhost:1", -1, 0), "--num-processes must be given too: the three flags go together"),
        (("", 2, 0), "--coordinator must be given too: the three flags go together"),
        (("localhost:1", -1, -1), "--num-processes and --process-id must be given too: the three flags go together"),
        (("", 2, -1), "--coordinator and --process-id must be given too: the three flags go together"),
        (("", -1, 0), "--coordinator and --num-processes must be given too: the three flags go together"),
        (("localhost:1", 0, 0), "--num-processes must be >= 1, got 0"),
        (("localhost:1", -3, 0), "--num-processes must be >= 1, got -3"),
        (("localhost:1", 2, 2), "--process-id must be in [0, 1] for --num-processes 2, got 2"),
        (("localhost:1", 2, -2), "--process-id must be in [0, 1] for --num-processes 2, got -2"),
        (("localhost", 2, 0), "--coordinator must be HOST:PORT of process 0, got 'localhost'"),
        (("localhost:", 2, 0), "--coordinator must be HOST:PORT of process 0, got 'localhost:'"),
        ((":1234", 2, 0), "--coordinator must be HOST:PORT of process 0, got ':1234'"),
        (("localhost:http", 2, 0), "--coordinator must be HOST:PORT of process 0, got 'localhost:http'"),
    ],
)
def test_flags_that_are_refused(flags, message, monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: pytest.fail("nothing may be joined"))
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        hosts.start(*flags)


def test_others_that_cannot_be_joined_are_one_line(monkeypatch):
    def unreachable(*_, **__):
        raise RuntimeError("DEADLINE_EXCEEDED: no answer\nand much more")

    monkeypatch.setattr(jax.distributed, "initialize", unreachable)
    with pytest.raises(UserError, match=r"^the processes at --coordinator a:1 can't be joined: DEADLINE_.*no answer$"):
        hosts.start("a:1", 2, 1)
    with pytest.raises(UserError, match=r"^the processes of this cluster can't be joined: DEADLINE_.*no answer$"):
        hosts.start("", -1, -1)


def test_a_cluster_that_lacks_something_is_named(monkeypatch):
    def incomplete(*_, **__):
        raise ValueError("Number of processes must be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", incomplete)
    with pytest.raises(UserError, match=r"^the processes of this cluster can't be joined: Number of processes must"):
        hosts.start("", -1, -1)


def test_on_a_laptop_nothing_is_detected():
    code = (
        "import jax; from experiments.engine import hosts\n"
        "hosts.start('', -1, -1)\n"
        "print(jax.process_count(), jax.process_index(), jax.device_count(), hosts.several(), hosts.first())\n"
    )
    clean = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "JAX_PLATFORMS": "cpu"}
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=clean, capture_output=True, text=True, timeout=120
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "1 0 1 False True\n", "")


def test_one_process_alone():
    assert not hosts.several()
    assert hosts.first()
    values, tree = np.arange(6).reshape(2, 3), {"x": jax.numpy.ones(3)}
    np.testing.assert_array_equal(hosts.gathered(values), values[None])
    assert hosts.local(tree) is tree
    hosts.leave(3)  # nobody waits: the program ends by itself


def test_one_process_agrees_with_itself():
    hosts.agree(None)
    error = UserError("mine")
    with pytest.raises(UserError) as raised:
        hosts.agree(error)
    assert raised.value is error


@pytest.mark.parametrize("said", ["no é there", "é" * hosts.MESSAGE_BYTES, "x" + "é" * hosts.MESSAGE_BYTES])
def test_all_processes_raise_what_one_has_found(said, monkeypatch):
    """The second of three has found something; what is too long is cut between two letters."""
    sent = []

    def exchanged(values):
        sent.append(values)
        return np.stack([np.zeros_like(values), sent[0], np.zeros_like(values)])

    monkeypatch.setattr(hosts, "several", lambda: True)
    monkeypatch.setattr(hosts, "gathered", exchanged)
    messages = []
    for error in (UserError(said), None):
        with pytest.raises(UserError) as raised:
            hosts.agree(error)
        messages.append(str(raised.value))
    assert messages[0] == messages[1]
    assert said.startswith(messages[0])
    assert len(messages[0].encode()) >= min(len(said.encode()), hosts.MESSAGE_BYTES - 1)
    sent[0][:] = 0
    hosts.agree(None)
