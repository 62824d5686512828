"""How programs end."""

import os

import pytest

from experiments.engine import command_line


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
