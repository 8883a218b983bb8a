"""`streamproc replay`, on a disk that fills up while animations are written."""

from __future__ import annotations

import errno
import sys

import streamproc.animation
from streamproc.cli import main


def encode_webp(*_arguments, **_options):
    """Fail as the operating system does."""
    raise OSError(errno.ENOSPC, "No space left on device")


streamproc.animation.encode_webp = encode_webp
sys.argv[0] = "streamproc"
main()
