"""Boxes between key frames, as annotation tools draw them: each corner moves in a straight line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from streamproc.errors import TracksError
from streamproc.tracks.table import MAX_BOXES, MAX_FRAME_NUMBER, BoxTable

if TYPE_CHECKING:
    from collections import Counter
    from pathlib import Path

    from streamproc.types import Float64Array, Int64Array


@dataclass(slots=True)
class KeyFrames:
    """The key frames of one track, in the order of the file."""

    person_id: int
    frames: list[int] = field(default_factory=list)
    boxes_xyxy: list[tuple[float, ...]] = field(default_factory=list)
    is_shown: list[bool] = field(default_factory=list)
    """False: the person is not in the picture from this frame to the next key frame."""
    is_filled: list[bool] = field(default_factory=list)
    """Whether the person is in all frames up to the next key frame."""

    def add(
        self, frame: int, box: tuple[float, ...], *, is_shown: bool = True, is_filled: bool = True
    ) -> None:
        """Add a key frame."""
        self.frames.append(frame)
        self.boxes_xyxy.append(box)
        self.is_shown.append(is_shown)
        self.is_filled.append(is_filled)


def table_of(tracks: list[KeyFrames], path: Path, classes: Counter[str]) -> BoxTable:
    """Return the boxes of all frames, from frame 0 on. Raises TracksError for too many."""
    ids: list[Int64Array] = [np.zeros(0, np.int64)]
    frames: list[Int64Array] = [np.zeros(0, np.int64)]
    boxes: list[Float64Array] = [np.zeros((0, 4))]
    total = 0
    for track in tracks:
        counts, order = _counts(track, path)
        total += int(counts.sum())
        if total > MAX_BOXES:
            raise TracksError(
                f"{path}: the boxes between its key frames are more than {MAX_BOXES:,}"
            )
        track_frames, track_boxes = _filled(track, counts, order)
        ids.append(np.full(len(track_frames), track.person_id, np.int64))
        frames.append(track_frames)
        boxes.append(track_boxes)
    return BoxTable(
        np.concatenate(ids),
        np.concatenate(frames),
        np.concatenate(boxes),
        np.ones(total, np.float32),
        first_frame_number=0,
        classes=classes,
    )


def _counts(track: KeyFrames, path: Path) -> tuple[Int64Array, Int64Array]:
    """How many frames each key frame stands for, and the order of the key frames in time."""
    if any(not 0 <= frame < MAX_FRAME_NUMBER for frame in track.frames):
        raise TracksError(f"{path}: expected frame numbers from 0 in track {track.person_id}")
    frames = np.array(track.frames, np.int64)
    order = np.argsort(frames, kind="stable")
    gaps = np.diff(frames[order], append=frames.max(initial=0) + 1)
    filled = np.array(track.is_filled, bool)[order]
    shown = np.array(track.is_shown, bool)[order]
    return np.where(filled, gaps, np.minimum(gaps, 1)) * shown, order


def _filled(
    track: KeyFrames, counts: Int64Array, order: Int64Array
) -> tuple[Int64Array, Float64Array]:
    frames = np.array(track.frames, np.int64)[order]
    boxes = np.array(track.boxes_xyxy, np.float64).reshape(-1, 4)[order]
    key = np.repeat(np.arange(len(frames)), counts)
    offset = np.arange(len(key)) - np.repeat(np.cumsum(counts) - counts, counts)
    after = np.minimum(key + 1, len(frames) - 1)
    gap = np.maximum(frames[after] - frames[key], 1)
    with np.errstate(over="ignore", invalid="ignore"):
        moved = boxes[key] + (offset / gap)[:, None] * (boxes[after] - boxes[key])
    moved[offset == 0] = boxes[key[offset == 0]]
    return frames[key] + offset, moved
