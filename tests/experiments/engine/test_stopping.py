"""A signal is heard between two intervals, saves, and says how to go on."""

import os
import signal
import threading

import pytest

from experiments.engine.checkpoint import Checkpoints
from experiments.engine.stopping import Stopped, StopRequest, raised
from tests.experiments.engine.test_loop import TASK, evaluate, trained


def signalling(*numbers):
    def evaluate_and_signal(state, key):
        for number in numbers:
            os.kill(os.getpid(), number)
        return evaluate(state, key)

    return TASK._replace(evaluate=evaluate_and_signal)


def test_a_first_signal_is_noted_and_handlers_come_back():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    with StopRequest() as stop:
        assert stop.received is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == signal.SIGTERM
    assert {number: signal.getsignal(number) for number in before} == before


def test_a_second_interrupt_interrupts():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_other_threads_change_no_handler():
    before, inside = signal.getsignal(signal.SIGINT), []

    def work():
        with StopRequest():
            inside.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [before]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_goes_on_as_if_never_stopped(number, tmp_path):
    straight = trained(tmp_path / "straight", evaluate_every=6)
    folder = tmp_path / "stopped"
    saved = folder / "checkpoints" / "6"
    with pytest.raises(Stopped, match=f"^stopped by {number.name} at step 6 of 12; saved {saved}. The same") as stopped:
        trained(folder, signalling(number), evaluate_every=6)
    assert stopped.value.number == number
    assert saved.is_dir()
    assert trained(folder, evaluate_every=6) == straight


@pytest.fixture
def closed(monkeypatch):
    """How a second SIGTERM would be met each time that checkpoints wait for what is written."""
    handlers, close = [], Checkpoints.close

    def close_and_look(self):
        handlers.append(signal.getsignal(signal.SIGTERM))
        close(self)

    monkeypatch.setattr(Checkpoints, "close", close_and_look)
    return handlers


def test_a_second_signal_does_not_end_the_save(closed, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped):
        trained(tmp_path, signalling(signal.SIGTERM), evaluate_every=6)
    (handler,) = closed
    assert handler != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_second_interrupt_waits_for_no_save(closed, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, signalling(signal.SIGINT, signal.SIGINT), evaluate_every=6)
    assert closed == []


def test_an_interrupt_of_the_wait_ends_it(tmp_path, monkeypatch):
    def interrupted(self):
        raise KeyboardInterrupt

    checkpoints, closed = Checkpoints(tmp_path, keep=1), []
    monkeypatch.setattr(Checkpoints, "wait", interrupted)
    monkeypatch.setattr(checkpoints._manager, "close", lambda: closed.append(True))
    with pytest.raises(KeyboardInterrupt):
        checkpoints.close()
    assert not closed


def test_a_signal_in_the_last_interval_lets_the_run_end(tmp_path):
    fields = {"evaluate_every": 12}
    ended = trained(tmp_path / "signalled", signalling(signal.SIGTERM), **fields)
    assert ended == trained(tmp_path / "straight", **fields)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_first_signal_can_be_raised_and_later_ones_are_passed_over(number):
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}

    def signalled():
        try:
            os.kill(os.getpid(), number)
        finally:
            for each in before:
                os.kill(os.getpid(), each)

    with raised("it goes on"), pytest.raises(Stopped, match="it goes on") as stopped:
        signalled()
    assert stopped.value.number == number
    assert {each: signal.getsignal(each) for each in before} == before
