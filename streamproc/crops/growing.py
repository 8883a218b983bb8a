"""Crops of tracks that are found while decoding: chosen as their boxes come, in bounded memory.

A track's boxes are divided into windows of `stride` consecutive boxes, each of which keeps its best
crop. Once a track has as many windows as crops are wanted, neighbouring windows are joined, of two
crops the better stays, and the stride doubles. So the crops of a track are spread over all of it,
however long it becomes. (Tracks that are known before decoding are planned instead: `plan`.)

What a track has so far can be taken at any time, as a revision. The first is due when it has 64
boxes or was lost for a second, the next ones when its boxes have doubled, and the last when it has
ended, if it has got boxes since: at most 3 + log2(boxes / 64).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import TYPE_CHECKING

import numpy as np

from streamproc.crops.apart import SeenApart
from streamproc.crops.overlaps import overlaps_in_frame
from streamproc.crops.quality import placement_quality, usable
from streamproc.crops.selection import EQUALLY_GOOD, choose_embedded
from streamproc.crops.trajectory import GrowingTrajectory
from streamproc.types import Bucket, Cut, Skipped, Track, TrackSpan

if TYPE_CHECKING:
    from collections.abc import Iterable

    from streamproc.crops.box_archive import BoxArchive
    from streamproc.crops.plan import CropOptions
    from streamproc.types import Crop, Float32Array, FrameBoxes


FIRST_BOXES = 64
"""With so many boxes a track is published for the first time."""


@dataclass(slots=True, eq=False)
class _Growing:
    """One track so far. `crops` has a place for each window, None where no box was usable."""

    first_frame_index: int
    last_frame_index: int
    box_count: int = 0
    stride: int = 1
    crops: list[Crop | None] = field(default_factory=list)
    best_placement: float = 0.0
    """Of the boxes of the last window that were cut."""
    revision: int = 0
    """The last one that was taken, 0 before the first; `boxes_taken` is how many boxes it had."""
    boxes_taken: int = 0
    trajectory: GrowingTrajectory = field(default_factory=GrowingTrajectory)

    def take_box(self, frame_index: int, box_xyxy: Float32Array, most_crops: int) -> None:
        """Count one more box (4,), and open a window for it where one begins."""
        self.last_frame_index = frame_index
        self.trajectory.add(frame_index, box_xyxy)
        if self.box_count % self.stride == 0:
            if len(self.crops) == most_crops:
                self._join_windows()
            if self.box_count % self.stride == 0:
                self.crops.append(None)
                self.best_placement = 0.0
        self.box_count += 1

    def _join_windows(self) -> None:
        pairs = zip_longest(self.crops[::2], self.crops[1::2])  # an odd one is paired with None
        self.crops = [_better(one, other) for one, other in pairs]
        self.stride *= 2

    def is_due(self, frame_index: int, lost_frames: int) -> bool:
        """Return whether another revision is due, at this frame of the video."""
        if self.revision:
            is_due = self.box_count >= max(FIRST_BOXES, 2 * self.boxes_taken)
        else:
            is_lost = frame_index - self.last_frame_index >= lost_frames
            is_due = is_lost or self.box_count >= FIRST_BOXES
        return is_due and any(crop is not None for crop in self.crops)

    @property
    def span(self) -> TrackSpan:
        return TrackSpan(
            self.first_frame_index,
            self.last_frame_index,
            self.box_count,
            self.trajectory.finish(),
        )


def _better(one: Crop | None, other: Crop | None) -> Crop | None:
    if one is None or other is None:
        return one or other
    return other if other.quality > one.quality else one


@dataclass(frozen=True, slots=True, eq=False)
class GrownTrack:
    """A track as it is: its bucket, its extent, and the person ids seen apart from it.

    `skipped` says why nothing of it is published, None where it is. `revision` counts from 1. The
    `is_final` one is of a track that has ended; not `is_news`: it has no box that the one before
    had not, and is that one.
    """

    bucket: Bucket
    span: TrackSpan
    seen_with: tuple[int, ...]
    skipped: Skipped | None
    revision: int
    is_final: bool
    is_news: bool


class GrowingBuckets:
    """The buckets of one video whose tracks are found while decoding. Frames come in order.

    `track_count` is how many tracks there were so far. `boxes` takes all boxes.
    """

    def __init__(
        self, *, width: int, height: int, options: CropOptions, boxes: BoxArchive | None = None
    ) -> None:
        self._archive = boxes
        self._width = width
        self._height = height
        self._options = options
        self._tracks: dict[int, _Growing] = {}
        self.track_count = 0
        self._apart = SeenApart()

    def cuts(self, boxes: FrameBoxes) -> list[Cut]:
        """Take the boxes of the next frame; return the crops to cut of it."""
        hidden, apart = overlaps_in_frame(boxes.boxes_xyxy)
        qualities = self._placement_qualities(boxes, hidden)
        cuts = []
        for row, person_id in enumerate(boxes.person_ids.tolist()):
            track = self._track(person_id, boxes.frame_index)
            box = boxes.boxes_xyxy[row]
            track.take_box(boxes.frame_index, box, self._options.crops_per_person)
            if self._archive is not None:
                self._archive.add_box(person_id, boxes.frame_index, box)
            quality = float(qualities[row])
            if quality > 0 and EQUALLY_GOOD * quality > track.best_placement:
                track.best_placement = quality
                cuts.append(self._cut(boxes, row, quality, len(track.crops) - 1))
        self._apart.add(boxes.person_ids, apart)
        return cuts

    def add(self, crops: Iterable[Crop]) -> None:
        """Keep the crops that were cut of the frame whose boxes came last."""
        for crop in crops:
            kept = self._tracks[crop.person_id].crops
            kept[-1] = _better(kept[-1], crop)

    def due(self, frame_index: int, *, lost_frames: int) -> list[int]:
        """Return whose next revision is due at a frame; lost is who was not seen for so many."""
        least = self._options.min_track_frames
        return [
            person_id
            for person_id, track in self._tracks.items()
            if track.box_count >= least and track.is_due(frame_index, lost_frames)
        ]

    def revise(self, person_id: int) -> GrownTrack:
        """Take the next revision of a track, which goes on."""
        track = self._tracks[person_id]
        return self._taken(person_id, track, self._apart.seen_with(person_id), is_final=False)

    def close(self, person_id: int) -> GrownTrack:
        """End a track: nothing of it is kept here."""
        track = self._tracks.pop(person_id)
        return self._taken(person_id, track, self._apart.close(person_id), is_final=True)

    def _taken(
        self, person_id: int, track: _Growing, seen_with: tuple[int, ...], *, is_final: bool
    ) -> GrownTrack:
        is_news = track.box_count > track.boxes_taken
        track.revision += is_news
        track.boxes_taken = track.box_count
        crops = tuple(
            replace(crop, crop_index=index)
            for index, crop in enumerate(crop for crop in track.crops if crop is not None)
        )
        embedded = choose_embedded(crops, self._options.crops_embedded)
        bucket = Bucket(person_id, crops, embedded)
        skipped = self._why_skipped(bucket, track)
        return GrownTrack(bucket, track.span, seen_with, skipped, track.revision, is_final, is_news)

    def close_all(self) -> list[GrownTrack]:
        """End all tracks: the video has ended, or is given up."""
        return [self.close(person_id) for person_id in sorted(self._tracks)]

    def _track(self, person_id: int, frame_index: int) -> _Growing:
        if person_id not in self._tracks:
            self._tracks[person_id] = _Growing(frame_index, frame_index)
            self.track_count += 1
        return self._tracks[person_id]

    def _placement_qualities(self, boxes: FrameBoxes, hidden: Float32Array) -> Float32Array:
        """Return the placement quality (n,) of a frame's boxes, 0 where one is not usable."""
        frame_indices = np.full(len(boxes.person_ids), boxes.frame_index)
        rows = Track(0, frame_indices, boxes.boxes_xyxy, boxes.confidences)
        size = {"width": self._width, "height": self._height}
        quality = placement_quality(rows, hidden, **size)
        chosen: Float32Array = np.where(usable(boxes.boxes_xyxy, **size), quality, 0)
        return chosen

    def _cut(self, boxes: FrameBoxes, row: int, quality: float, crop_index: int) -> Cut:
        x0, y0, x1, y1 = boxes.boxes_xyxy[row].tolist()
        return Cut(
            int(boxes.person_ids[row]),
            crop_index,
            (x0, y0, x1, y1),
            float(boxes.confidences[row]),
            quality,
        )

    def _why_skipped(self, bucket: Bucket, track: _Growing) -> Skipped | None:
        least = self._options.min_track_frames
        if track.box_count < least:
            reason = f"{track.box_count} boxes, fewer than the {least} asked for"
        elif not bucket.crops:
            reason = "no usable crop: every box is too small or outside the picture"
        else:
            return None
        return Skipped(bucket.person_id, reason)
