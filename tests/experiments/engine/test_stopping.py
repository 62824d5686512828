"""A signal is heard between two intervals, saves, and says how to go on."""

import os
import signal
import threading

import pytest

from experiments.engine.stopping import Stopped, StopRequest
from tests.experiments.engine.test_loop import TASK, evaluate, trained


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

    def evaluate_and_signal(state, key):
        os.kill(os.getpid(), number)
        return evaluate(state, key)

    folder = tmp_path / "stopped"
    saved = folder / "checkpoints" / "6"
    with pytest.raises(Stopped, match=f"^stopped by {number.name} at step 6 of 12; saved {saved}. The same") as stopped:
        trained(folder, TASK._replace(evaluate=evaluate_and_signal), evaluate_every=6)
    assert stopped.value.number == number
    assert saved.is_dir()
    assert trained(folder, evaluate_every=6) == straight


def test_a_signal_in_the_last_interval_lets_the_run_end(tmp_path):
    def evaluate_and_signal(state, key):
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(state, key)

    fields = {"evaluate_every": 12}
    ended = trained(tmp_path / "signalled", TASK._replace(evaluate=evaluate_and_signal), **fields)
    assert ended == trained(tmp_path / "straight", **fields)
