"""Loads one track file; a fault in it is raised."""

from __future__ import annotations

import sys
from pathlib import Path

from streamproc.tracks import load_tracks

load_tracks(Path(sys.argv[1]))
