"""`streamproc worker`, whose decoder never returns."""

from __future__ import annotations

import sys
import threading

from streamproc.cli import main
from streamproc.pipeline import pipeline
from streamproc.services import worker


def open_video(_path, **_options):
    """Wait for ever."""
    threading.Event().wait()


worker.WEDGED_SECONDS = 0.5
pipeline.open_video = open_video
sys.argv[0] = "streamproc"
main()
