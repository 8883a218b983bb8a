"""Prints whether the own detector finds people in a frame of VIDEO, and whether torch came in."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from streamproc.tracks.detection.detector import Detector, find_weights
from streamproc.video import open_video

with tempfile.TemporaryDirectory() as folder, open_video(Path(sys.argv[1])) as video:
    weights = find_weights(None, cache_folder=Path(folder))
    detector = Detector(weights, min_confidence=0.3, device="cpu")
    (frame,) = video.frames([60])
    print(len(detector.detect(frame)) > 0)
print("torch" in sys.modules)
