"""How signals end a service, whatever its threads do."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest
from processes import Process, eventually

SCRIPT = Path(__file__).parents[1] / "scripts" / "service_that_is_busy.py"


def start(tmp_path, what, *, grace_seconds=60) -> Process:
    """Start the service, and wait until it is busy."""
    command = [sys.executable, str(SCRIPT), what, str(grace_seconds)]
    process = Process("service", command, tmp_path / "log")
    eventually(lambda: "busy" in process.log, "busy", processes=[process])
    return process


@pytest.mark.parametrize("what", ["loop", "thread"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_second_signal_ends_it_at_once(tmp_path, what, number, code):
    """Neither a busy event loop nor a thread that hangs holds it up, long before the grace time."""
    process = start(tmp_path, what)
    process.send(number)
    # Two signals of one kind that come at the same time are one.
    eventually(lambda: "stopping" in process.log, "the first is heard", processes=[process])
    process.send(number)
    assert process.wait(seconds=10) == code
    assert "stopped by force" in process.log
    assert "Traceback" not in process.log


def test_the_first_signal_ends_in_order(tmp_path):
    """Work that ends when it is asked to ends with exit code 0."""
    process = start(tmp_path, "nothing")
    assert process.stop() == 0
    assert "has stopped" in process.log


def test_a_signal_while_python_goes_changes_no_exit_code(tmp_path):
    """A second signal that comes when the work has ended finds nothing to end: exit code 0."""
    process = start(tmp_path, "end")
    process.send(signal.SIGTERM)
    eventually(lambda: "going" in process.log, "its last moments", processes=[process])
    process.send(signal.SIGTERM)
    assert process.wait(seconds=10) == 0


@pytest.mark.parametrize("what", ["loop", "thread"])
def test_the_end_of_the_grace_time_ends_it(tmp_path, what):
    """What does not end by itself is ended, with the code of the signal."""
    process = start(tmp_path, what, grace_seconds=0.5)
    assert process.stop(seconds=20) == 143
