"""Clips in which bright squares cross a grey picture: people, to the small detectors."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import av
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SIDE = 288
WIDTH = 130
RATE = 10


def write_squares(path: Path, frames: int, appearances: Sequence[tuple[int, int]]) -> Path:
    """Write a clip with one square in the frames from `first` to before `last` of each pair."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        stream.time_base = Fraction(1, RATE)
        for number in range(frames):
            pixels = np.full((SIDE, SIDE, 3), 90, np.uint8)
            for first, last in appearances:
                if first <= number < last:
                    left = 4 * (number - first)
                    pixels[80:210, left : left + WIDTH] = 250
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode(None))
    return path
