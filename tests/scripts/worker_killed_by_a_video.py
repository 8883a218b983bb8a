"""`streamproc worker`, which dies of a video with "killer" in its name.

So it would in a decoder that reads where it must not.
"""

from __future__ import annotations

import os
import signal
import sys

from streamproc.cli import main
from streamproc.pipeline import pipeline

real_open_video = pipeline.open_video


def open_video(path, **options):
    """Open the video, or die at once."""
    if "killer" in path.name:
        os.kill(os.getpid(), signal.SIGKILL)
    return real_open_video(path, **options)


pipeline.open_video = open_video
sys.argv[0] = "streamproc"
main()
