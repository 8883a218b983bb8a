"""Links the boxes of successive frames into tracks.

The way is ByteTrack's (Zhang et al., "ByteTrack: Multi-Object Tracking by Associating Every
Detection Box", ECCV 2022): confident boxes go to tracks first, then the others to tracks that are
still without one. How near a box is to a track is the buffered IoU of C-BIoU (Yang et al., "Hard to
Track Objects with Irregular Motions and Similar Appearances? Make It Easier by Buffering the
Matching Space", WACV 2023): both boxes are enlarged before they are compared, a little at first,
and more for tracks that found none. Both were written from the papers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import lap
import numpy as np

from streamproc.tracks.detection.boxes import BOX_STEP_PX, iou_matrix
from streamproc.tracks.detection.motion import Motion
from streamproc.types import FrameBoxes

if TYPE_CHECKING:
    from streamproc.tracks.detection.boxes import Detections
    from streamproc.types import BoolArray, Float32Array, Float64Array, Int64Array

VERSION = 1
"""Of the tracker. Raise it with every change that links other boxes: it is part of a run's id."""
_UNKNOWN = 0
"""The id of a track that was seen once only and is not yet announced."""


class Tracker(Protocol):
    """Links boxes: detections of a frame in, tracks out. Made for one video."""

    def update(self, frame_index: int, detections: Detections | None) -> FrameBoxes:
        """Take the next frame; None: nobody looked at it, so tracks go on as they moved.

        Every frame comes once, in order.
        """
        ...


@dataclass(frozen=True, slots=True)
class TrackerOptions:
    """How boxes are linked.

    Boxes from `high_confidence` on go to tracks first, and from `new_confidence` on may begin one.
    `buffers`: by how much of their size boxes are enlarged on each side, first and then.
    `least_similarity` is the buffered IoU that box and track must have; `least_low_similarity` for
    a box of low confidence, `least_new_similarity` for a track that was seen only once. They are
    higher than in the papers: a track that changes from one person to another is worse than one
    that breaks, as streamproc joins pieces by how people look. A track that was not seen goes on as
    it moved for `hidden_seconds`, and ends after `lost_seconds`.
    """

    high_confidence: float = 0.6
    new_confidence: float = 0.7
    buffers: tuple[float, float] = (0.3, 0.5)
    least_similarity: float = 0.55
    least_low_similarity: float = 0.5
    least_new_similarity: float = 0.4
    lost_seconds: float = 1.0
    hidden_seconds: float = 0.1


class BufferedByteTracker:
    """ByteTrack with buffered IoU: see the module.

    A track is announced in the second frame in which it is seen; those of the video's first frame
    are announced at once. The arrays have a row a track.
    """

    def __init__(self, options: TrackerOptions, *, frames_per_second: float) -> None:
        self._options = options
        self._most_lost_frames = max(1, round(options.lost_seconds * (frames_per_second or 30)))
        self._most_hidden_frames = round(options.hidden_seconds * (frames_per_second or 30))
        self._next_id = 1
        self._is_first = True
        self._motion = Motion()
        self._ids: Int64Array = np.zeros(0, np.int64)
        self._boxes: Float32Array = np.zeros((0, 4), np.float32)
        self._confidences: Float32Array = np.zeros(0, np.float32)
        self._last_seen: Int64Array = np.zeros(0, np.int64)
        self._is_lost: BoolArray = np.zeros(0, bool)

    def update(self, frame_index: int, detections: Detections | None) -> FrameBoxes:
        """Take the next frame: see `Tracker`."""
        if self._is_lost.any():
            self._motion.hold_size(self._is_lost)
        self._motion.predict()
        if detections is None:
            return self._frame_boxes(frame_index, self._moved_boxes(), ())
        self._link(frame_index, detections)
        self._is_lost = self._last_seen < frame_index
        ended = self._drop(frame_index)
        is_lost = self._is_lost[:, None]
        boxes = np.where(is_lost, self._moved_boxes(), self._boxes)
        return self._frame_boxes(frame_index, boxes, ended)

    def _moved_boxes(self) -> Float32Array:
        """Return where tracks should be now (n, 4), rounded as detections are."""
        moved = self._motion.boxes_xyxy().astype(np.float32)
        boxes: Float32Array = np.round(moved / BOX_STEP_PX) * np.float32(BOX_STEP_PX)
        return boxes

    def _link(self, frame_index: int, detections: Detections) -> None:
        options = self._options
        first, second = options.buffers
        is_high = detections.confidences >= options.high_confidence
        weights = np.where(is_high, detections.confidences, 1)
        is_known = self._ids != _UNKNOWN
        rounds = (
            (is_known, is_high, first, options.least_similarity),
            (is_known, is_high, second, options.least_similarity),
            (is_known & ~self._is_lost, ~is_high, second, options.least_low_similarity),
            (~is_known, is_high, first, options.least_new_similarity),
        )
        predicted = self._motion.boxes_xyxy()
        free = np.ones(len(detections), bool)
        open_tracks = np.ones(len(self._ids), bool)
        for tracks, which, buffer, least in rounds:
            rows = np.flatnonzero(tracks & open_tracks)
            columns = np.flatnonzero(which & free)
            if not (rows.size and columns.size):
                continue
            boxes = detections.boxes_xyxy[columns]
            similarity = buffered_iou(predicted[rows], boxes, buffer)
            gain = np.where(similarity >= least, similarity * weights[columns], 0)
            matched_rows, matched_columns = assigned(gain)
            if not matched_rows.size:
                continue
            rows, columns = rows[matched_rows], columns[matched_columns]
            self._take(frame_index, rows, detections.take(columns))
            open_tracks[rows] = False
            free[columns] = False
        is_new = free & (detections.confidences >= options.new_confidence)
        self._begin(frame_index, detections.take(is_new))
        self._is_first = False

    def _take(self, frame_index: int, rows: Int64Array, seen: Detections) -> None:
        """Give the tracks of these rows the boxes in which they are seen."""
        self._motion.correct(rows, seen.boxes_xyxy)
        self._boxes[rows] = seen.boxes_xyxy
        self._confidences[rows] = seen.confidences
        self._last_seen[rows] = frame_index
        self._announce(rows[self._ids[rows] == _UNKNOWN])

    def _announce(self, rows: Int64Array) -> None:
        self._ids[rows] = np.arange(self._next_id, self._next_id + len(rows))
        self._next_id += len(rows)

    def _begin(self, frame_index: int, new: Detections) -> None:
        """Begin a track with each of these boxes."""
        if not len(new):
            return
        count = len(self._ids)
        self._motion.add(new.boxes_xyxy)
        self._ids = np.concatenate([self._ids, np.full(len(new), _UNKNOWN)])
        self._boxes = np.concatenate([self._boxes, new.boxes_xyxy])
        self._confidences = np.concatenate([self._confidences, new.confidences])
        self._last_seen = np.concatenate([self._last_seen, np.full(len(new), frame_index)])
        if self._is_first:
            self._announce(np.arange(count, len(self._ids)))

    def _drop(self, frame_index: int) -> tuple[int, ...]:
        """Forget tracks that have ended; return the ids of those that were announced."""
        unseen_frames = frame_index - self._last_seen
        is_known = self._ids != _UNKNOWN
        keep = np.where(is_known, unseen_frames <= self._most_lost_frames, unseen_frames == 0)
        if keep.all():
            return ()
        ended = tuple(self._ids[~keep & is_known].tolist())
        self._motion.keep(keep)
        self._ids = self._ids[keep]
        self._boxes = self._boxes[keep]
        self._confidences = self._confidences[keep]
        self._last_seen = self._last_seen[keep]
        self._is_lost = self._is_lost[keep]
        return ended

    def _frame_boxes(
        self, frame_index: int, boxes: Float32Array, ended: tuple[int, ...]
    ) -> FrameBoxes:
        """Return those boxes, one a track, that belong to tracks which are known and not lost."""
        is_shown = frame_index - self._last_seen <= self._most_hidden_frames
        shown = (self._ids != _UNKNOWN) & (~self._is_lost | is_shown)
        return FrameBoxes(
            frame_index, self._ids[shown], boxes[shown], self._confidences[shown], ended
        )


def buffered_iou(a: Float64Array, b: Float32Array, buffer: float) -> Float64Array:
    """Return IoU (n, m) of boxes that are enlarged by a share of their size on each side."""
    return iou_matrix(_enlarged(a, buffer), _enlarged(b, buffer))


def _enlarged(boxes: Float32Array | Float64Array, buffer: float) -> Float64Array:
    margins = (boxes[:, 2:] - boxes[:, :2]) * buffer
    larger: Float64Array = np.concatenate([boxes[:, :2] - margins, boxes[:, 2:] + margins], 1)
    return larger


def assigned(gain: Float64Array) -> tuple[Int64Array, Int64Array]:
    """Return rows and columns (k,) of the pairs with the largest sum of gains, of those above 0."""
    _, column_of, _ = lap.lapjv(-gain, extend_cost=True, cost_limit=0.0)
    rows = np.flatnonzero(column_of >= 0)
    columns = column_of[rows]
    above = gain[rows, columns] > 0
    return rows[above], columns[above]
