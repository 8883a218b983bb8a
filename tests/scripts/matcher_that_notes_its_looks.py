"""`streamproc matcher`, which often looks for events that wait, and notes what it finds.

The file MARKS gets a line for each look: how many partitions have records that are not done.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from streamproc.cli import main
from streamproc.services.matcher import faust_table
from streamproc.services.matcher.faust_table import FaustTable

MARKS = Path(os.environ["MARKS"])
real_backlogs = FaustTable._backlogs


async def backlogs(self):
    """Look, and note the number of partitions."""
    found = await real_backlogs(self)
    note(len(found))
    return found


def note(partitions: int) -> None:
    """Add a line."""
    with MARKS.open("a") as file:
        file.write(f"{partitions}\n")


FaustTable._backlogs = backlogs
faust_table._WATCH_SECONDS = 0.2
sys.argv[0] = "streamproc"
main()
