"""Frames with very many boxes, compared without looking at every pair of boxes.

A frame of 1,257 boxes has 790,000 pairs, few of which touch. The touching pairs are found by
sorting. Who is in the same frames is counted by a matrix product, which is fast, and only touching
pairs can be less than apart.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streamproc.types import Float64Array, Int64Array

CROWD_BOXES = 64
"""A frame with more boxes is a crowd; in others every pair is looked at, which is faster there."""
MAX_PAIRS_A_BOX = 256
"""A crowd has at most so many pairs for each box that may touch; else it was made to waste time."""
MAX_BOXES_A_FRAME = 4096
"""Beyond it a frame is not judged. A block of frames has as many tracks at most: the product takes
64 MiB then."""
_MAX_BOXES_A_BLOCK = 65_536


def touching_pairs(boxes: Float64Array) -> tuple[Int64Array, Int64Array] | None:
    """Positions (k,) and (k,) of the boxes (n, 4) that touch each other, the smaller first.

    None where too many may touch.
    """
    if len(boxes) > MAX_BOXES_A_FRAME:
        return None
    by_columns = _pairs_along(boxes, 0)
    by_rows = _pairs_along(boxes, 1)
    axis = 0 if by_columns[1].sum() <= by_rows[1].sum() else 1
    order, counts = (by_columns, by_rows)[axis]
    if counts.sum() > MAX_PAIRS_A_BOX * len(boxes):
        return None
    first = np.repeat(np.arange(len(boxes)), counts)
    starts = np.cumsum(counts) - counts
    second = np.arange(len(first)) - np.repeat(starts, counts) + first + 1
    other_axis = 1 - axis
    low = boxes[order, other_axis]
    high = boxes[order, other_axis + 2]
    touches = (low[first] < high[second]) & (low[second] < high[first])
    a = order[first[touches]]
    b = order[second[touches]]
    return np.minimum(a, b), np.maximum(a, b)


def _pairs_along(boxes: Float64Array, axis: int) -> tuple[Int64Array, Int64Array]:
    """The order (n,) of boxes along an axis, and with how many of those after it each overlaps."""
    order = np.argsort(boxes[:, axis], kind="stable")
    starts = boxes[order, axis]
    last = np.searchsorted(starts, boxes[order, axis + 2])
    return order, np.maximum(last - np.arange(len(boxes)) - 1, 0)


def frames_together(
    frames: Int64Array, owner: Int64Array
) -> Iterator[tuple[Int64Array, Int64Array, Int64Array]]:
    """Count in how many frames two tracks are together, some frames at a time.

    Rows (n,) are sorted by frame. Yields tracks (k,), (k,), the smaller first, and frames (k,).
    """
    starts = np.flatnonzero(np.r_[True, frames[1:] != frames[:-1]]) if len(frames) else frames
    begin = 0
    tracks: set[int] = set()
    for start, end in pairwise([*starts.tolist(), len(frames)]):
        own = set(owner[start:end].tolist())
        is_full = len(tracks | own) > MAX_BOXES_A_FRAME or end - begin > _MAX_BOXES_A_BLOCK
        if is_full and start > begin:
            yield _together(frames[begin:start], owner[begin:start])
            begin = start
            tracks = set()
        tracks |= own
    if len(frames):
        yield _together(frames[begin:], owner[begin:])


def _together(frames: Int64Array, owner: Int64Array) -> tuple[Int64Array, Int64Array, Int64Array]:
    tracks = np.unique(owner)
    frame_of = np.cumsum(np.r_[False, frames[1:] != frames[:-1]])
    presence = np.zeros((len(tracks), int(frame_of[-1]) + 1), np.float32)
    presence[np.searchsorted(tracks, owner), frame_of] = 1
    counts = np.triu(presence @ presence.T, 1)
    a, b = np.nonzero(counts)
    return tracks[a], tracks[b], counts[a, b].astype(np.int64)
