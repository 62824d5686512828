"""Records that survive kills, TensorBoard files, plain lines on pipes and a bar on terminals."""

import json
import os
import pty
import re
import struct
import subprocess
import sys

import pytest

from experiments.engine import logs
from tests.experiments.helpers import ROOT


def line(step, loss=0.5):
    return json.dumps({"step": step, "loss": loss}) + "\n"


def test_reading(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert logs.read(path) == []
    path.write_text("")
    assert logs.read(path) == []
    path.write_text(line(1, 0.1) + line(2, 1e-30))
    assert logs.read(path) == [{"step": 1, "loss": 0.1}, {"step": 2, "loss": 1e-30}]


@pytest.mark.parametrize("length", [1, 5, 10, len(line(3)) - 2])
def test_a_last_line_cut_short_is_left_out(length, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(line(1) + line(2) + line(3)[:length])
    assert [record["step"] for record in logs.read(path)] == [1, 2]


def test_records_are_on_disk_at_once(tmp_path):
    records = logs.Records(tmp_path, 0)
    records.write({"step": 1, "loss": 0.1 + 0.2})
    assert logs.read(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 0.1 + 0.2}] == records.lines
    records.close()


def test_going_on_drops_what_comes_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(line(5) + line(10) + line(15) + line(20)[:9])
    records = logs.Records(tmp_path, 10)
    assert path.read_text() == line(5) + line(10)
    records.write({"step": 15, "loss": 0.25})
    records.close()
    assert path.read_text() == line(5) + line(10) + line(15, 0.25)
    assert [record["step"] for record in records.lines] == [5, 10, 15]
    assert not list(tmp_path.glob("*.partial"))


def test_starting_anew_drops_everything(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(line(5) + line(10))
    logs.Records(tmp_path, 0).close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def events(folder):
    """What TensorBoard would read: each event is its length, a checksum, its bytes, a checksum."""
    from tensorboardX.proto.event_pb2 import Event  # after `Records` has imported the package, without PyTorch

    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            yield Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]


def test_tensorboard_shows_the_same_numbers(tmp_path):
    records = logs.Records(tmp_path, 0)
    records.write({"step": 5, "loss": 0.5})
    records.write({"step": 10, "loss": 0.25, "accuracy": 0.75})
    records.close()
    shown = [
        (event.step, value.tag, value.simple_value)
        for event in events(tmp_path / "tensorboard")
        for value in event.summary.value
    ]
    assert shown == [(5, "loss", 0.5), (10, "loss", 0.25), (10, "accuracy", 0.75)]


def test_pytorch_is_neither_imported_nor_barred(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] in ("torch", "tensorboardX")]:
        monkeypatch.delitem(sys.modules, name)
    assert logs._summary_writer().__name__ == "SummaryWriter"
    assert "torch" not in sys.modules


def test_plain_lines_on_a_pipe(capsys):
    display = logs.Display(100, 0, "digits")
    display.advance(40, 0.12345, 2.0)
    display.line(40, 0.12345, 2.0)
    display.say("digits  step 40  in runs/[digits]")
    display.line(100, 1234567.0, 12.34)
    display.close()
    assert capsys.readouterr().out.splitlines() == [
        "digits  step 40/100  loss 0.1235  2.0 steps/s  0:30 left",
        "digits  step 40  in runs/[digits]",
        "digits  step 100/100  loss 1.235e+06  12.3 steps/s  0:00 left",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (0.4, "0:00"),
        (59.4, "0:59"),
        (59.6, "1:00"),
        (61, "1:01"),
        (3599.9, "1:00:00"),
        (3661, "1:01:01"),
        (100 * 3600 + 62, "100:01:02"),
        (float("inf"), "?"),
    ],
)
def test_clock(seconds, text):
    assert logs._clock(seconds) == text


ON_A_TERMINAL = """
from experiments.engine.logs import Display

display = Display(400, 100, "digits")
display.advance(200, 0.12345, 34.56)
display.say("digits  step 200  in runs/[digits]")
display.line(200, 0.12345, 34.56)
display.close()
"""


def on_a_terminal(script):
    """What a program writes to a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, env=environment, stdout=theirs, stderr=theirs)
    os.close(theirs)
    output = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # how Linux says that nobody holds the other end any more
            break
        if not part:
            break
        output += part
    os.close(ours)
    assert process.wait() == 0, output.decode()
    return output.decode()


def test_a_bar_on_a_terminal():
    output = on_a_terminal(ON_A_TERMINAL)
    assert "\x1b[" in output
    plain = re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", output)
    assert "100/400" in plain
    assert "compiling" in plain
    last = plain.splitlines()[-1]
    for part in ("digits", "━", "200/400", "34.6 steps/s", "loss 0.1235"):
        assert part in last, plain
    assert "digits  step 200  in runs/[digits]" in plain.splitlines()
    assert "step 200/400" not in plain
