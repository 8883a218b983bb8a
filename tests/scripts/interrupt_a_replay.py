"""Calls `replay` in Python, and interrupts it as Ctrl-C does as soon as it decodes."""

from __future__ import annotations

import signal
import sys
import threading

import streamproc
from streamproc.video import Video

begun = threading.Event()
frames_of = Video.frames


def frames(video, wanted):
    """Tell that decoding has begun."""
    begun.set()
    return frames_of(video, wanted)


def interrupt() -> None:
    """Do what a terminal does on Ctrl-C."""
    begun.wait()
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)


Video.frames = frames
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in jobs of the background
threading.Thread(target=interrupt, daemon=True).start()
try:
    streamproc.replay(sys.argv[1], out=sys.argv[2], animate=False)
except KeyboardInterrupt:
    print("interrupted")
