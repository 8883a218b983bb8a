"""What the boxes alone tell before a frame is decoded: who hides whom, who was seen beside whom, which are good."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from streamproc.types import Float32Array, Int64Array, Track

VETO_FRAMES = 3
VETO_IOU = 0.5
"""Two tracks with boxes apart (intersection over union below this) in this many frames are two people."""

_BLOCK_BOXES = 20_000


@dataclass(frozen=True, slots=True, eq=False)
class Overlaps:
    """For each box of each track (same order): the share of it that another box hides; and the pairs seen apart."""

    hidden: tuple[Float32Array, ...]
    seen_with: dict[int, tuple[int, ...]]


def find_overlaps(tracks: Sequence[Track]) -> Overlaps:
    """Compare all boxes that share a frame, a block of frames at a time (memory)."""
    if not tracks:
        return Overlaps((), {})
    frames = np.concatenate([track.frame_indices for track in tracks])
    order = np.argsort(frames, kind="stable")
    frames = frames[order]
    owner = np.repeat(np.arange(len(tracks)), [len(track) for track in tracks])[order]
    boxes = np.concatenate([track.boxes_xyxy for track in tracks])[order]
    hidden = np.zeros(len(frames), np.float32)
    counts: Counter[int] = Counter()
    new_frame = np.flatnonzero(np.r_[True, frames[1:] != frames[:-1]])
    starts = np.searchsorted(new_frame, np.arange(0, len(frames), _BLOCK_BOXES), side="right") - 1
    blocks = [*new_frame[np.unique(starts)], len(frames)]
    for start, end in pairwise(blocks):
        part = slice(start, end)
        codes = _compare(
            frames[part], owner[part], boxes[part].astype(np.float64), hidden[part], len(tracks)
        )
        found, times = np.unique(codes, return_counts=True)
        counts.update(dict(zip(found.tolist(), times.tolist(), strict=True)))
    back = np.empty_like(hidden)
    back[order] = hidden
    bounds = np.cumsum([len(track) for track in tracks])[:-1]
    return Overlaps(tuple(np.split(back, bounds)), _seen_with(tracks, counts))


def _compare(
    frames: Int64Array,
    owner: Int64Array,
    boxes: npt.NDArray[np.float64],
    hidden: Float32Array,
    track_count: int,
) -> Int64Array:
    """Compare every row with the next, the one after, … of its frame; note in `hidden`, return the pairs seen apart."""
    apart: list[Int64Array] = [np.zeros(0, np.int64)]
    lag = 1
    while (first := np.flatnonzero(frames[lag:] == frames[:-lag])).size:
        second = first + lag
        shared, areas_first, areas_second = _intersections(boxes[first], boxes[second])
        _hide(hidden, boxes, first, second, shared / areas_first, shared / areas_second)
        distinct = shared / (areas_first + areas_second - shared) < VETO_IOU
        apart.append(_pair_codes(owner[first[distinct]], owner[second[distinct]], track_count))
        lag += 1
    return np.concatenate(apart)


def _intersections(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Areas in px² of the intersections of boxes (n, 4), and of both boxes."""
    width = (np.minimum(a[:, 2], b[:, 2]) - np.maximum(a[:, 0], b[:, 0])).clip(0)
    height = (np.minimum(a[:, 3], b[:, 3]) - np.maximum(a[:, 1], b[:, 1])).clip(0)
    return width * height, *((box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]) for box in (a, b))


def _hide(hidden, boxes, first, second, share_of_first, share_of_second) -> None:  # type: ignore[no-untyped-def] # noqa: ANN001 - six arrays (n,)
    """Note how much of each box another covers; the one whose feet are lower stands in front and counts half."""
    first_in_front = boxes[first, 3] > boxes[second, 3]
    hidden[first] = np.maximum(
        hidden[first], np.where(first_in_front, 0.5, 1.0) * share_of_first
    )  # each box once
    hidden[second] = np.maximum(
        hidden[second], np.where(first_in_front, 1.0, 0.5) * share_of_second
    )


def _pair_codes(a: Int64Array, b: Int64Array, n: int) -> Int64Array:
    return np.minimum(a, b) * n + np.maximum(a, b)


def _seen_with(tracks: Sequence[Track], apart: Counter[int]) -> dict[int, tuple[int, ...]]:
    beside: dict[int, set[int]] = {}
    for code, frames in apart.items():
        if frames >= VETO_FRAMES:
            a, b = (tracks[i].person_id for i in divmod(code, len(tracks)))
            beside.setdefault(a, set()).add(b)
            beside.setdefault(b, set()).add(a)
    return {person: tuple(sorted(others)) for person, others in beside.items()}
