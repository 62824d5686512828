"""How programs end."""

import os

import jax
import pytest

from experiments.engine import command_line, hosts


class Ended(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def ended(monkeypatch):
    """`ended(error)`: the code with which a program ends at once that raises this."""

    def at_once(code):
        raise Ended(code)

    monkeypatch.setattr(os, "_exit", at_once)
    monkeypatch.setattr(command_line, "_leave_the_tpu_library", lambda: None)
    monkeypatch.setattr("sys.argv", ["program"])

    def ended(error):
        def main():
            raise error

        with pytest.raises(Ended) as end:
            command_line.run(main, positional=True)
        return end.value.args[0]

    return ended


def test_an_interrupt_waits_for_no_thread(ended, capsys):
    assert ended(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.fixture
def one_of_several(monkeypatch):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(hosts, "several", lambda: True)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(2, "No such file", "there"),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes"),
        jax.errors.JaxRuntimeError("INVALID_ARGUMENT: Executable expected shape"),
    ],
)
@pytest.mark.usefixtures("one_of_several")
def test_an_error_of_one_process_is_shown_and_ends_it_at_once(error, ended, capsys):
    assert ended(error) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1].endswith(str(error))
    assert "has gone" not in "".join(lines)


@pytest.mark.usefixtures("one_of_several")
def test_a_process_that_has_lost_another_says_so(ended, capsys):
    said = "UNKNOWN: Gloo all-reduce failed: Connection closed by peer"
    assert ended(jax.errors.JaxRuntimeError(said)) == 1
    assert capsys.readouterr().err == hosts.GONE.format(what=said) + "\n"


def test_one_process_alone_raises(ended):
    with pytest.raises(FileNotFoundError):
        ended(FileNotFoundError("there"))
