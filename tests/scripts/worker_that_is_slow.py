"""`streamproc worker`, to which every video seems too long for its time, at once."""

from __future__ import annotations

import sys

from streamproc.cli import main
from streamproc.services import worker

worker.PROGRESS_SECONDS = 0.01
worker.FORECAST_SECONDS = 0.0
worker.forecast_seconds = lambda *_: 1e6
sys.argv[0] = "streamproc"
main()
