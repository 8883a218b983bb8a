"""`streamproc matcher`, whose Faust forgets events that it has read.

So it does when it takes up fetching after a recovery. CHANCE is the share of events that are
forgotten. The event whose record contains LAST is forgotten three times. The file MARKS gets one
letter for each forgotten event.
"""

from __future__ import annotations

import itertools
import os
import random
import sys
from pathlib import Path

from mode.utils.queues import FlowControlQueue

from streamproc.cli import main
from streamproc.services.matcher import faust_table

CHANCE = float(os.environ["CHANCE"])
LAST = os.environ["LAST"].encode()
MARKS = Path(os.environ["MARKS"])

real_put = FlowControlQueue.put_nowait_enhanced
chance = random.Random(1)
forget_the_last = itertools.repeat(True, 3)


def put_nowait_enhanced(self, value, **options):
    """Put it into the queue, or forget it."""
    if value.message.topic.endswith("person-embeddings") and is_forgotten(value.message.value):
        with MARKS.open("a") as file:
            file.write("x")
        return False
    return real_put(self, value, **options)


def is_forgotten(record: bytes) -> bool:
    """Whether this time is one of those."""
    return (LAST in record and next(forget_the_last, False)) or chance.random() < CHANCE


FlowControlQueue.put_nowait_enhanced = put_nowait_enhanced
faust_table._WATCH_SECONDS = 0.5
sys.argv[0] = "streamproc"
main()
