"""Which boxes hide each other, and which persons were seen apart: both by the boxes alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamproc.types import BoolArray, Float32Array, Float64Array, Int64Array, Track

VETO_FRAMES = 3
"""Two tracks that are apart in this many frames are two people."""
VETO_IOU = 0.5
"""Two boxes are apart if their intersection over union is below this."""

_BLOCK_BOXES = 20_000


@dataclass(frozen=True, slots=True, eq=False)
class Overlaps:
    """How the boxes of a video's tracks overlap. Made by `find_overlaps`, used by `plan_crops`.

    `hidden` holds, for each track in order, the share (k,) of each box that another box hides;
    `seen_with`, by person id, the ids of those who were seen apart from this person.
    """

    hidden: tuple[Float32Array, ...]
    seen_with: dict[int, tuple[int, ...]]


def find_overlaps(tracks: Sequence[Track]) -> Overlaps:
    """Compare all boxes that share a frame, a block of frames at a time to save memory."""
    if not tracks:
        return Overlaps((), {})
    lengths = [len(track) for track in tracks]
    frames = np.concatenate([track.frame_indices for track in tracks])
    order = np.argsort(frames, kind="stable")
    frames = frames[order]
    owner = np.repeat(np.arange(len(tracks)), lengths)[order]
    boxes = np.concatenate([track.boxes_xyxy for track in tracks])[order]
    hidden = np.zeros(len(frames), np.float32)
    frames_apart: Counter[int] = Counter()  # by the code of the pair
    for part in _blocks_of_frames(frames):
        codes = _compare(
            frames[part], owner[part], boxes[part].astype(np.float64), hidden[part], len(tracks)
        )
        pairs, counts = np.unique(codes, return_counts=True)
        frames_apart.update(dict(zip(pairs.tolist(), counts.tolist(), strict=True)))
    by_track = np.empty_like(hidden)
    by_track[order] = hidden
    hidden_of_tracks = tuple(np.split(by_track, np.cumsum(lengths)[:-1]))
    return Overlaps(hidden_of_tracks, _seen_with(tracks, frames_apart))


def _blocks_of_frames(frames: Int64Array) -> list[slice]:
    """Divide rows that are sorted by frame into blocks of about equal size, of whole frames."""
    first_of_frame = np.flatnonzero(np.r_[True, frames[1:] != frames[:-1]])
    about = np.arange(0, len(frames), _BLOCK_BOXES)
    starts = np.unique(np.searchsorted(first_of_frame, about, side="right") - 1)
    return [slice(*bounds) for bounds in pairwise([*first_of_frame[starts], len(frames)])]


def _compare(
    frames: Int64Array,
    owner: Int64Array,
    boxes: Float64Array,
    hidden: Float32Array,
    track_count: int,
) -> Int64Array:
    """Compare the boxes (n, 4) of each frame with each other; rows are sorted by frame.

    Raises `hidden` (n,) where another box hides more of one. Returns the codes of the pairs of
    tracks that are apart, one a frame.
    """
    apart: list[Int64Array] = [np.zeros(0, np.int64)]
    lag = 1  # every row is compared with the next of its frame, then with the one after, …
    while (first := np.flatnonzero(frames[lag:] == frames[:-lag])).size:
        second = first + lag
        shared, areas_first, areas_second = _intersections(boxes[first], boxes[second])
        in_front = boxes[first, 3] > boxes[second, 3]
        shares_first = _hidden_shares(shared, areas_first, in_front)
        shares_second = _hidden_shares(shared, areas_second, ~in_front)
        # Each row is once in `first` and once in `second` at most.
        hidden[first] = np.maximum(hidden[first], shares_first)
        hidden[second] = np.maximum(hidden[second], shares_second)
        is_apart = shared / (areas_first + areas_second - shared) < VETO_IOU
        apart.append(_pair_codes(owner[first[is_apart]], owner[second[is_apart]], track_count))
        lag += 1
    return np.concatenate(apart)


def _intersections(
    a: Float64Array, b: Float64Array
) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Areas (n,) in px² of the intersections of boxes (n, 4), of the boxes `a`, and of `b`."""
    width = (np.minimum(a[:, 2], b[:, 2]) - np.maximum(a[:, 0], b[:, 0])).clip(0)
    height = (np.minimum(a[:, 3], b[:, 3]) - np.maximum(a[:, 1], b[:, 1])).clip(0)
    return width * height, _areas(a), _areas(b)


def _areas(boxes: Float64Array) -> Float64Array:
    areas: Float64Array = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return areas


def _hidden_shares(shared: Float64Array, areas: Float64Array, in_front: BoolArray) -> Float64Array:
    """How much of each box (n,) another covers; half of that where the box stands in front.

    The box whose feet are lower stands in front.
    """
    return np.where(in_front, 0.5, 1.0) * shared / areas


def _pair_codes(a: Int64Array, b: Int64Array, track_count: int) -> Int64Array:
    """One number for each pair of positions of tracks, whichever comes first."""
    return np.minimum(a, b) * track_count + np.maximum(a, b)


def _seen_with(tracks: Sequence[Track], frames_apart: Counter[int]) -> dict[int, tuple[int, ...]]:
    seen_with: dict[int, set[int]] = {}
    for code, frames in frames_apart.items():
        if frames >= VETO_FRAMES:
            a, b = (tracks[i].person_id for i in divmod(code, len(tracks)))
            seen_with.setdefault(a, set()).add(b)
            seen_with.setdefault(b, set()).add(a)
    return {person: tuple(sorted(others)) for person, others in seen_with.items()}


def overlaps_in_frame(boxes_xyxy: Float32Array) -> tuple[Float32Array, BoolArray]:
    """Compare the boxes (n, 4) of one frame.

    Returns the share of each box that another one hides (n,), and which pairs are apart (n, n),
    symmetric, false on the diagonal: as `find_overlaps` judges them over a whole video.
    """
    boxes = boxes_xyxy.astype(np.float64)
    first, second = np.triu_indices(len(boxes), 1)
    shared, areas_first, areas_second = _intersections(boxes[first], boxes[second])
    shares = np.zeros((len(boxes), len(boxes)))
    in_front = boxes[first, 3] > boxes[second, 3]
    shares[first, second] = _hidden_shares(shared, areas_first, in_front)
    shares[second, first] = _hidden_shares(shared, areas_second, ~in_front)
    apart = np.zeros(shares.shape, bool)
    apart[first, second] = shared / (areas_first + areas_second - shared) < VETO_IOU
    return shares.max(axis=1, initial=0).astype(np.float32), apart | apart.T
