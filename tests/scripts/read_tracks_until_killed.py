"""Begins to read a track file in a child process, prints the child's id, and waits to be killed."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from streamproc.tracks import ReadOptions
from streamproc.tracks.reading import Limits, _Reading

reading = _Reading(Path(sys.argv[1]), ReadOptions(), Limits())
reading.begin()
assert reading._process is not None
print(reading._process.pid, flush=True)
signal.pause()
