"""The helpers of the tests: waits that end with their process, and shared data out of sight."""

from __future__ import annotations

import sys
import time

import pytest
import shared_data
from processes import Process, eventually


def python(tmp_path, code) -> Process:
    """A process that runs one line of Python."""
    return Process("child", [sys.executable, "-c", code], tmp_path / "log")


def test_a_wait_ends_when_its_process_ends_and_shows_its_last_lines(tmp_path) -> None:
    """The wait does not last its 60 s, and the failure has the exit code and the output."""
    start = time.monotonic()
    child = python(tmp_path, "import sys; sys.exit('no jars here')")
    with pytest.raises(AssertionError, match=r"child ended with code 1; .*words[\s\S]*no jars"):
        eventually(lambda: "never" in child.log, "words", processes=[child])
    assert time.monotonic() - start < 30


def test_the_last_thing_that_a_process_does_is_still_seen(tmp_path) -> None:
    """What is waited for may come just before the process ends."""
    child = python(tmp_path, "print('done')")
    assert eventually(lambda: "done" in child.log, "done", processes=[child])


def test_a_process_that_a_test_has_ended_fails_no_wait(tmp_path) -> None:
    """Ends that a test brought about or waited for are no surprise."""
    killed = python(tmp_path, "import time; time.sleep(60)")
    killed.kill()
    ended = python(tmp_path, "pass")
    assert ended.wait() == 0
    assert eventually(lambda: True, "at once", processes=[killed, ended])
    with pytest.raises(AssertionError, match=r"not within 0 s: nothing"):
        eventually(lambda: False, "nothing", seconds=0, processes=[killed, ended])


@pytest.mark.parametrize("value", ["none", "required"])
def test_shared_data_can_be_hidden_or_required(value, monkeypatch) -> None:
    """STREAMPROC_TEST_SHARED decides, whether the folder is there or not."""
    monkeypatch.setenv(shared_data.VARIABLE, value)
    assert shared_data.is_required() == (value == "required")
    if value == "none":
        assert shared_data.shared_folder() is None


def test_a_test_that_asks_for_shared_data_is_marked(request) -> None:
    """The marker is added by what a test asks for, and to no other."""
    marked = {item.name for item in request.session.items if item.get_closest_marker("shared")}
    asking = {item.name for item in request.session.items if "shared" in item.fixturenames}
    assert marked == asking
    assert request.node.get_closest_marker("shared") is None
