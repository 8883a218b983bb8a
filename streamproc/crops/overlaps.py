"""Which boxes hide each other, and which persons were seen apart: both by the boxes alone."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from streamproc.crops.crowds import CROWD_BOXES, frames_together, touching_pairs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamproc.types import BoolArray, Float32Array, Float64Array, Int64Array, Track

VETO_FRAMES = 3
"""Two tracks that are apart in this many frames are two people."""
VETO_IOU = 0.5
"""Two boxes are apart if their intersection over union is below this."""

_BLOCK_BOXES = 20_000
_FEW_PAIRS = 100_000
_MAX_PAIRS = 8_000_000
"""Beyond so many pairs (4,000 persons who are all seen together) no more vetoes are looked for."""


@dataclass(frozen=True, slots=True, eq=False)
class Overlaps:
    """How the boxes of a video's tracks overlap. Made by `find_overlaps`, used by `plan_crops`.

    `hidden` holds, for each track in order, the share (k,) of each box that another box hides;
    `seen_with`, by person id, the ids of those who were seen apart from this person.
    """

    hidden: tuple[Float32Array, ...]
    seen_with: dict[int, tuple[int, ...]]


def find_overlaps(tracks: Sequence[Track]) -> Overlaps:
    """Compare the boxes that share a frame.

    A frame with more than `crowds.MAX_BOXES_A_FRAME` boxes, or with a crowd where too many touch,
    is not judged: nobody counts as apart there, and no box as hidden.
    """
    if not tracks:
        return Overlaps((), {})
    lengths = [len(track) for track in tracks]
    frames = np.concatenate([track.frame_indices for track in tracks])
    order = np.argsort(frames, kind="stable")
    owner = np.repeat(np.arange(len(tracks)), lengths)[order]
    boxes = np.concatenate([track.boxes_xyxy for track in tracks])[order]
    comparison = _Comparison(frames[order], owner, boxes, len(tracks))
    comparison.run()
    by_track = np.empty_like(comparison.hidden)
    by_track[order] = comparison.hidden
    hidden_of_tracks = tuple(np.split(by_track, np.cumsum(lengths)[:-1]))
    return Overlaps(hidden_of_tracks, comparison.apart.seen_with(tracks))


def were_apart(one: Track, other: Track) -> bool:
    """Return whether two tracks are apart in enough of the frames that they share."""
    _, rows, other_rows = np.intersect1d(
        one.frame_indices, other.frame_indices, assume_unique=True, return_indices=True
    )
    if len(rows) < VETO_FRAMES:
        return False
    boxes = one.boxes_xyxy[rows].astype(np.float64)
    shared, areas, other_areas = _intersections(
        boxes, other.boxes_xyxy[other_rows].astype(np.float64)
    )
    is_apart = shared / (areas + other_areas - shared) < VETO_IOU
    return int(np.count_nonzero(is_apart)) >= VETO_FRAMES


def _blocks_of_frames(frames: Int64Array) -> list[slice]:
    """Divide rows that are sorted by frame into blocks of about equal size, of whole frames."""
    first_of_frame = np.flatnonzero(np.r_[True, frames[1:] != frames[:-1]])
    about = np.arange(0, len(frames), _BLOCK_BOXES)
    starts = np.unique(np.searchsorted(first_of_frame, about, side="right") - 1)
    return [slice(*bounds) for bounds in pairwise([*first_of_frame[starts], len(frames)])]


class _PairCounts:
    """In how many frames two tracks are apart; tracks go by their position."""

    def __init__(self, track_count: int) -> None:
        self._track_count = track_count
        self._codes = np.zeros(0, np.int64)  # of the pairs that were added up, ascending
        self._counts = np.zeros(0, np.int64)
        self._waiting: list[tuple[Int64Array, Int64Array]] = []
        self._waiting_size = 0

    def add(self, a: Int64Array, b: Int64Array, counts: Int64Array | None = None) -> None:
        """Add frames (n,), one for each pair if they are not given. A pair may come again."""
        codes = np.minimum(a, b) * self._track_count + np.maximum(a, b)
        if counts is None:
            codes, counts = np.unique(codes, return_counts=True)
        self._waiting.append((codes, counts))
        self._waiting_size += len(codes)
        # Adding up takes a sort, so that is done whenever the size has doubled.
        if self._waiting_size > max(_FEW_PAIRS, len(self._codes)):
            self._add_up()

    def subtract(self, a: Int64Array, b: Int64Array) -> None:
        """Subtract one frame for each pair."""
        self.add(a, b, np.full(len(a), -1))

    @property
    def is_full(self) -> bool:
        """Whether there are so many pairs that no more are counted."""
        return len(self._codes) > _MAX_PAIRS

    def _add_up(self) -> None:
        codes = np.concatenate([self._codes, *(codes for codes, _ in self._waiting)])
        counts = np.concatenate([self._counts, *(counts for _, counts in self._waiting)])
        order = np.argsort(codes, kind="stable")
        codes = codes[order]
        starts = np.flatnonzero(np.r_[True, codes[1:] != codes[:-1]][: len(codes)])
        self._codes = codes[starts]
        self._counts = np.add.reduceat(counts[order], starts)
        self._waiting = []
        self._waiting_size = 0

    def seen_with(self, tracks: Sequence[Track]) -> dict[int, tuple[int, ...]]:
        """By person id, the ascending ids of those who are apart from this person often enough."""
        self._add_up()
        pairs = self._codes[self._counts >= VETO_FRAMES]
        one, other = np.divmod(pairs, self._track_count)
        ids = np.array([track.person_id for track in tracks], np.int64)
        persons = np.concatenate([ids[one], ids[other]])
        others = np.concatenate([ids[other], ids[one]])
        order = np.lexsort((others, persons))
        persons = persons[order]
        starts = np.flatnonzero(np.r_[True, persons[1:] != persons[:-1]][: len(persons)])
        shared = {track.person_id: track.person_id for track in tracks}  # one object for each id
        return {
            int(persons[start]): tuple(map(shared.__getitem__, others[order[start:end]].tolist()))
            for start, end in pairwise([*starts, len(persons)])
        }


class _Comparison:
    """All boxes of a video, by frame: `hidden` (n,) and `apart` are what comes of it.

    Rows (n,) are sorted by frame; within a frame they are in the order of their tracks.
    """

    def __init__(
        self, frames: Int64Array, owner: Int64Array, boxes: Float32Array, track_count: int
    ) -> None:
        self._frames = frames
        self._owner = owner
        self._boxes = boxes
        self.hidden = np.zeros(len(frames), np.float32)
        self.apart = _PairCounts(track_count)

    def run(self) -> None:
        """Compare the boxes of each frame with each other."""
        first_rows = np.flatnonzero(np.r_[True, self._frames[1:] != self._frames[:-1]])
        sizes = np.diff([*first_rows, len(self._frames)])
        in_crowd = np.repeat(sizes > CROWD_BOXES, sizes)
        rows = np.flatnonzero(~in_crowd)
        for part in _blocks_of_frames(self._frames[rows]) if len(rows) else []:
            self._compare_every_pair(rows[part])
        judged = np.zeros(len(self._frames), bool)
        for start, size in zip(first_rows.tolist(), sizes.tolist(), strict=True):
            if size > CROWD_BOXES and not self.apart.is_full:
                judged[start : start + size] = self._compare_crowd(slice(start, start + size))
        rows = np.flatnonzero(judged)
        for one, other, counts in frames_together(self._frames[rows], self._owner[rows]):
            if not self.apart.is_full:
                self.apart.add(one, other, counts)

    def _compare_every_pair(self, rows: Int64Array) -> None:
        frames = self._frames[rows]
        lag = 1  # every row is compared with the next of its frame, then with the one after, …
        while (first := np.flatnonzero(frames[lag:] == frames[:-lag])).size:
            one = rows[first]
            other = rows[first + lag]
            is_apart = self._compare(one, other)
            self.apart.add(self._owner[one[is_apart]], self._owner[other[is_apart]])
            lag += 1

    def _compare_crowd(self, rows: slice) -> bool:
        """Compare the boxes of one frame; false if there are too many to judge them.

        Those that are not apart are subtracted from the frames in which two are together.
        """
        pairs = touching_pairs(self._boxes[rows].astype(np.float64))
        if pairs is None:
            return False
        one = rows.start + pairs[0]
        other = rows.start + pairs[1]
        is_close = ~self._compare(one, other)
        self.apart.subtract(self._owner[one[is_close]], self._owner[other[is_close]])
        return True

    def _compare(self, one: Int64Array, other: Int64Array) -> BoolArray:
        """Whether the boxes of two rows (k,) are apart; raises `hidden` where they are not."""
        boxes_one = self._boxes[one].astype(np.float64)
        boxes_other = self._boxes[other].astype(np.float64)
        shared, areas_one, areas_other = _intersections(boxes_one, boxes_other)
        in_front = boxes_one[:, 3] > boxes_other[:, 3]
        shares_one = _hidden_shares(shared, areas_one, in_front)
        shares_other = _hidden_shares(shared, areas_other, ~in_front)
        np.maximum.at(self.hidden, one, shares_one.astype(np.float32))
        np.maximum.at(self.hidden, other, shares_other.astype(np.float32))
        is_apart: BoolArray = shared / (areas_one + areas_other - shared) < VETO_IOU
        return is_apart


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


def overlaps_in_frame(boxes_xyxy: Float32Array) -> tuple[Float32Array, BoolArray]:
    """Compare the boxes (n, 4) of one frame.

    Returns the share of each box that another one hides (n,), and which pairs are apart (n, n),
    symmetric, false on the diagonal: as `find_overlaps` judges them over a whole video, crowds too.
    """
    boxes = boxes_xyxy.astype(np.float64)
    count = len(boxes)
    hidden = np.zeros(count)
    apart = np.zeros((count, count), bool)
    if count <= CROWD_BOXES:
        first, second = np.triu_indices(count, 1)
    else:
        touching = touching_pairs(boxes)
        if touching is None:
            return hidden.astype(np.float32), apart
        first, second = touching
        np.fill_diagonal(np.logical_not(apart, out=apart), val=False)
    shared, areas_first, areas_second = _intersections(boxes[first], boxes[second])
    in_front = boxes[first, 3] > boxes[second, 3]
    np.maximum.at(hidden, first, _hidden_shares(shared, areas_first, in_front))
    np.maximum.at(hidden, second, _hidden_shares(shared, areas_second, ~in_front))
    is_apart = shared / (areas_first + areas_second - shared) < VETO_IOU
    apart[first, second] = is_apart
    apart[second, first] = is_apart
    return hidden.astype(np.float32), apart
