"""Writes five animations and a report into FOLDER, and stops at one point until it is killed.

Arguments: FOLDER MOVES. With MOVES 0 it stops while the files are staged, otherwise before the
MOVES-th of them is moved into place. It prints a line when it has stopped.
"""

from __future__ import annotations

import itertools
import signal
import sys
from pathlib import Path

from reports import report

from streamproc.offline.directory import OutputDirectory

moves = int(sys.argv[2])
moves_so_far = itertools.count(1)
replace = Path.replace


def stop() -> None:
    """Say so, and wait for the signal that kills this process."""
    print("stopped", flush=True)
    signal.pause()


def replace_or_stop(path, target):
    """Move a file into place, or stop before that."""
    if next(moves_so_far) == moves:
        stop()
    return replace(path, target)


Path.replace = replace_or_stop
out = OutputDirectory(sys.argv[1])
for person_id in range(5):
    out.write_webp(person_id, b"new" * 50_000)
    if person_id == 3 and moves == 0:
        stop()
out.write_report(report(0, 1, 2, 3, 4))
out.commit()
