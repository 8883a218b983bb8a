"""`streamproc matcher`, to which something happens at a chosen point.

FAULT names the point, see `install`. The file MARKS gets one letter each time that the point is
reached, and the fault comes only at one of those times: a matcher that is started again goes on.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from streamproc.cli import main
from streamproc.errors import MachineError
from streamproc.kafka.publisher import Publisher
from streamproc.services.matcher import matcher
from streamproc.services.matcher.faust_table import FaustTable

real_publish_all = Publisher.publish_all
real_write = FaustTable.write
real_decide = matcher.decide


def is_time(number: int) -> bool:
    """Note that the point is reached; whether it was the time with this number."""
    marks = Path(os.environ["MARKS"])
    with marks.open("a") as file:
        file.write("x")
    return marks.stat().st_size == number


def kill() -> None:
    """End this process as `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


async def publish_all_then_die(self, events, *, trace=None):
    """The events are published, and their entries are not sent."""
    await real_publish_all(self, events, trace=trace)
    if is_time(12):
        kill()


async def refuse_to_publish(self, events, *, trace=None):
    """The broker refuses."""
    if is_time(12):
        raise MachineError("refused")
    await real_publish_all(self, events, trace=trace)


def die_before_writing(self, partition, entries, offset):
    """The entries are in the changelog, and not in the local store."""
    if is_time(40):
        kill()
    real_write(self, partition, entries, offset)


def die_after_writing(self, partition, entries, offset):
    """The entries are in the local store, and their event is not acknowledged."""
    real_write(self, partition, entries, offset)
    if is_time(40):
        kill()


def write_on_a_full_disk(self, partition, entries, offset):
    """The disk is full."""
    if is_time(40):
        raise OSError(28, "No space left on device")
    real_write(self, partition, entries, offset)


def decide_with_a_bug(gallery, event, **options):
    """The core has a bug."""
    if is_time(30):
        raise RuntimeError("a bug")
    return real_decide(gallery, event, **options)


def decide_slowly(gallery, event, **options):
    """A closing takes until there is a file `go` beside the marks."""
    if event.kind == "video-closed":
        is_time(0)
        while not Path(os.environ["MARKS"]).with_name("go").exists():
            time.sleep(0.01)
    return real_decide(gallery, event, **options)


def install(fault: str) -> None:
    """Put the fault where it belongs."""
    match fault:
        case "killed-after-publishing":
            Publisher.publish_all = publish_all_then_die
        case "killed-before-the-local-store":
            FaustTable.write = die_before_writing
        case "killed-before-acknowledging":
            FaustTable.write = die_after_writing
        case "refused-by-the-broker":
            Publisher.publish_all = refuse_to_publish
        case "full-disk":
            FaustTable.write = write_on_a_full_disk
        case "bug":
            matcher.decide = decide_with_a_bug
        case "slow-closing":
            matcher.decide = decide_slowly


install(os.environ["FAULT"])
sys.argv[0] = "streamproc"
main()
