"""Prints how many frames of a video can be decoded."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from streamproc.video import open_video

with open_video(Path(sys.argv[1])) as video:
    print(len(list(video.frames(np.arange(video.frame_count)))))
