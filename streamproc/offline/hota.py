"""HOTA (Luiten et al., International Journal of Computer Vision 2021), as TrackEval computes it.

It is the geometric mean of how well boxes are found and how well they are linked, over 19 limits of
the IoU from which on a box lies on a person. Tests compare it with TrackEval's own numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from streamproc.offline.assignment import assign

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from streamproc.types import Float32Array, Float64Array, Int64Array, Track

LIMITS = np.arange(0.05, 0.99, 0.05)
_ROUNDING = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, slots=True, eq=False)
class FrameOverlaps:
    """One frame: the rows of the persons (p,) and of the tracks (t,) in it, and the IoU (p, t)."""

    persons: Int64Array
    tracks: Int64Array
    iou: Float64Array


class Overlapping:
    """The overlaps of tracks with the truth, from which HOTA is computed however tracks are merged.

    Rows are the places of tracks and persons in the sequences given.
    """

    def __init__(self, tracks: Sequence[Track], truth: Sequence[Track]) -> None:
        self._frames = list(_frames(tracks, truth))
        self._person_boxes = np.array([len(person) for person in truth], np.float64)
        self._track_boxes = np.array([len(track) for track in tracks], np.float64)

    def hota(self, merged: Sequence[int]) -> float:
        """Return HOTA where the tracks are known by the numbers `merged` (tracks,), from 0."""
        number = np.asarray(merged, np.int64)
        count = int(number.max(initial=-1)) + 1
        boxes = np.bincount(number, self._track_boxes, count)
        either = self._person_boxes[:, None] + boxes  # (persons, tracks)
        alignment = self._alignment(number, either)
        matches, found = self._matches(number, alignment)
        boxes_of_all = self._person_boxes.sum() + boxes.sum()
        of_limit = []
        for own, hits in zip(matches, found, strict=True):
            detection = hits / max(1.0, boxes_of_all - hits)
            association = (own * own / np.maximum(1.0, either - own)).sum() / max(1.0, hits)
            of_limit.append(np.sqrt(detection * association))
        return float(np.mean(of_limit))

    def _alignment(self, number: Int64Array, either: Float64Array) -> Float64Array:
        """Return how well persons and tracks fit over the whole video (persons, tracks)."""
        common = np.zeros_like(either)
        for frame in self._frames:
            union = frame.iou.sum(0)[None] + frame.iou.sum(1)[:, None] - frame.iou
            share = np.divide(frame.iou, union, np.zeros_like(union), where=union > _ROUNDING)
            np.add.at(common, np.ix_(frame.persons, number[frame.tracks]), share)
        aligned: Float64Array = common / np.maximum(either - common, _ROUNDING)
        return aligned

    def _matches(
        self, number: Int64Array, alignment: Float64Array
    ) -> tuple[Float64Array, Float64Array]:
        """Return matched boxes by limit, person and track, and their number by limit."""
        matches = np.zeros((len(LIMITS), *alignment.shape))
        found = np.zeros(len(LIMITS))
        for frame in self._frames:
            score = alignment[np.ix_(frame.persons, number[frame.tracks])] * frame.iou
            is_wide = score.shape[0] <= score.shape[1]
            pairs = np.array(list(assign(-(score if is_wide else score.T)).items())).reshape(-1, 2)
            rows, columns = pairs.T if is_wide else pairs.T[::-1]
            reached = frame.iou[rows, columns] >= LIMITS[:, None] - _ROUNDING  # (limits, pairs)
            limit, pair = np.nonzero(reached)
            own = number[frame.tracks[columns]]
            np.add.at(matches, (limit, frame.persons[rows][pair], own[pair]), 1)
            found += reached.sum(1)
        return matches, found


def _frames(tracks: Sequence[Track], truth: Sequence[Track]) -> Iterator[FrameOverlaps]:
    """Yield the frames that have both persons and tracks."""
    persons = _by_frame(truth)
    for frame, (rows, boxes) in sorted(_by_frame(tracks).items()):
        if frame in persons:
            person_rows, person_boxes = persons[frame]
            yield FrameOverlaps(person_rows, rows, _iou(person_boxes, boxes))


def _by_frame(tracks: Sequence[Track]) -> dict[int, tuple[Int64Array, Float32Array]]:
    """Return the rows (k,) and boxes (k, 4) of the tracks in each frame."""
    if not tracks:
        return {}
    frames = np.concatenate([track.frame_indices for track in tracks])
    rows = np.repeat(np.arange(len(tracks)), [len(track) for track in tracks])
    boxes = np.concatenate([track.boxes_xyxy for track in tracks])
    order = np.argsort(frames, kind="stable")
    names, starts = np.unique(frames[order], return_index=True)
    parts = np.split(order, starts[1:])
    return {int(name): (rows[part], boxes[part]) for name, part in zip(names, parts, strict=True)}


def _iou(a: Float32Array, b: Float32Array) -> Float64Array:
    """Return intersection over union (n, m) of boxes (n, 4) and (m, 4)."""
    one = a[:, None].astype(np.float64)
    other = b[None].astype(np.float64)
    sides = np.minimum(one[..., 2:], other[..., 2:]) - np.maximum(one[..., :2], other[..., :2])
    common = sides.clip(0).prod(-1)
    areas = (one[..., 2:] - one[..., :2]).prod(-1) + (other[..., 2:] - other[..., :2]).prod(-1)
    ratio: Float64Array = common / (areas - common)
    return ratio
