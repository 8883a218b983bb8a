"""A track's trajectory: at most 64 of its boxes, chosen so that two runs share frames.

The first ten and the last ten boxes say how a track begins and ends. Those in between have frame
indices that are multiples of a power of two, the smallest for which no more than 64 boxes are kept.
So tracks that overlap in time, and two runs of one video, have frames in common.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from streamproc.types import Trajectory

if TYPE_CHECKING:
    from streamproc.types import Float32Array, Int64Array

MAX_BOXES = 64
END_BOXES = 10


def thinned(frame_indices: Int64Array, boxes_xyxy: Float32Array) -> Trajectory:
    """Return the trajectory of a whole track: ascending frame indices (n,), boxes (n, 4) in px."""
    rows = _kept_rows(frame_indices)
    return Trajectory(frame_indices[rows], boxes_xyxy[rows])


def _kept_rows(frame_indices: Int64Array) -> Int64Array:
    """Return which of n rows are kept, (k,) ascending."""
    rows = np.arange(len(frame_indices))
    if len(rows) <= MAX_BOXES:
        return rows
    at_end = (rows < END_BOXES) | (rows >= len(rows) - END_BOXES)
    step = 1
    while True:
        kept = np.flatnonzero(at_end | (frame_indices % step == 0))
        if len(kept) <= MAX_BOXES:
            return kept
        step *= 2


class GrowingTrajectory:
    """The trajectory of a track whose boxes come one by one, in bounded memory.

    It gives what `thinned` gives of all boxes: those that are dropped on the way are multiples of
    no step that the whole track may end with.
    """

    def __init__(self) -> None:
        self._first: list[tuple[int, Float32Array]] = []
        self._last: deque[tuple[int, Float32Array]] = deque(maxlen=END_BOXES)
        self._between: list[tuple[int, Float32Array]] = []
        self._step = 1

    def add(self, frame_index: int, box_xyxy: Float32Array) -> None:
        """Take the next box (4,); frames ascend."""
        row = (frame_index, box_xyxy)
        if len(self._first) < END_BOXES:
            self._first.append(row)
        self._last.append(row)
        if frame_index % self._step == 0:
            self._between.append(row)
        while len(self._between) > MAX_BOXES:
            self._step *= 2
            self._between = [kept for kept in self._between if kept[0] % self._step == 0]

    def finish(self) -> Trajectory:
        """Return the trajectory of the boxes so far."""
        boxes = dict(self._first) | dict(self._between) | dict(self._last)
        frames = np.array(sorted(boxes), np.int64)
        rows = np.array([boxes[frame] for frame in frames.tolist()], np.float32).reshape(-1, 4)
        return thinned(frames, rows)
