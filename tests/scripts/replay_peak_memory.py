"""Replays VIDEO with the track file TRACKS into OUT, and prints its peak memory in MiB."""

from __future__ import annotations

import resource
import sys

from streamproc import replay

video, tracks, out = sys.argv[1:]
replay(video, persons=tracks, out=out)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
