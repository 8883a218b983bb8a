"""Tracks that hold two people: found by their crops' vectors and boxes, and taken apart.

A part has its own crops: those of the whole track's bucket that lie in its frames, of which as many
are embedded as of any person. `gallery.linking.purity` says where a track is cut.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from streamproc.crops.overlaps import were_apart
from streamproc.crops.selection import choose_embedded
from streamproc.crops.trajectory import thinned
from streamproc.gallery.linking.purity import LEAST_BOXES
from streamproc.ids import person_key_of
from streamproc.types import Bucket, Track, TrackSpan

if TYPE_CHECKING:
    from streamproc.crops.box_archive import BoxArchive
    from streamproc.gallery.linking.purity import TrackJudge
    from streamproc.pipeline.job import TrackedPerson
    from streamproc.types import Float32Array, Float64Array, Int64Array


@dataclass(frozen=True, slots=True)
class TrackPart:
    """What is kept of a part once it is published."""

    part: int
    span: TrackSpan
    crop_count: int


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """A track that seems to hold two people, and its parts in time order.

    `frame_index` is the first frame of the second one.
    """

    frame_index: int
    probability: float
    parts: tuple[TrackedPerson, TrackedPerson]


class TrackSplitter:
    """Takes tracks of one video apart; its methods are called one at a time, from any thread."""

    def __init__(
        self, judge: TrackJudge, boxes: BoxArchive, *, video_id: str, crops_embedded: int
    ) -> None:
        self._judge = judge
        self._boxes = boxes
        self._video_id = video_id
        self._crops_embedded = crops_embedded
        self._parts: dict[int, list[Track]] = {}

    def may_hold_two(self, person: TrackedPerson, vectors: Float32Array) -> bool:
        """Return whether `split` has to look at a person; `vectors` are of its embedded crops.

        Of most people their vectors say no, so that no boxes are read.
        """
        if person.span.box_count < LEAST_BOXES:
            return False
        return self._judge.may_hold_two(_in_time_order(person.bucket, vectors)[0])

    def split(self, person: TrackedPerson, vectors: Float32Array) -> Split | None:
        """Return the parts of a track that seems to hold two people, None of any other."""
        track = self._boxes.track(person.person_id)
        if track is None:
            return None
        in_time, frames = _in_time_order(person.bucket, vectors)
        boxes = track.boxes_xyxy.astype(np.float64)
        found = self._judge.judge(in_time, frames, track.frame_indices, boxes)
        if found is None:
            return None
        suspect, probability = found
        cut = int(np.searchsorted(track.frame_indices, suspect.frame_index))
        tracks = [_rows_of(track, slice(None, cut)), _rows_of(track, slice(cut, None))]
        first, second = (self._part(person, tracks, number) for number in (1, 2))
        self._parts[person.person_id] = tracks
        return Split(suspect.frame_index, probability, (first, second))

    def _part(self, person: TrackedPerson, tracks: list[Track], part: int) -> TrackedPerson:
        track = tracks[part - 1]
        begins, ends = int(track.frame_indices[0]), int(track.frame_indices[-1])
        crops = tuple(crop for crop in person.bucket.crops if begins <= crop.frame_index <= ends)
        embedded = choose_embedded(crops, self._crops_embedded)
        trajectory = thinned(track.frame_indices, track.boxes_xyxy)
        seen_with, keys = self._seen_apart(person, track)
        siblings = [self._key(person.person_id, own) for own in (1, 2) if own != part]
        return replace(
            person,
            bucket=Bucket(person.person_id, crops, embedded),
            span=TrackSpan(begins, ends, len(track), trajectory),
            seen_with=tuple(seen_with),
            revision=None,
            is_final=None,
            part=part,
            seen_with_keys=(*keys, *siblings),
        )

    def _seen_apart(self, person: TrackedPerson, part: Track) -> tuple[list[int], list[str]]:
        """Return which tracks were seen apart from a part, and which persons, by their keys.

        They are among those seen apart from the whole track.
        """
        ids: list[int] = []
        keys: list[str] = []
        for other_id in person.seen_with:
            other = self._boxes.track(other_id)
            if other is None or not were_apart(part, other):
                continue
            ids.append(other_id)
            parts = self._parts.get(other_id)
            if parts is None:
                keys.append(self._key(other_id))
            else:
                numbered = enumerate(parts, 1)
                keys += [self._key(other_id, own) for own, one in numbered if were_apart(part, one)]
        return ids, keys

    def _key(self, person_id: int, part: int | None = None) -> str:
        return person_key_of(self._video_id, person_id, part)


def _in_time_order(bucket: Bucket, vectors: Float32Array) -> tuple[Float64Array, Int64Array]:
    """Return the vectors (k, dim) of the embedded crops and their frames (k,), in time order."""
    order = np.argsort(np.array(bucket.embedded))
    frames = np.array([bucket.crops[i].frame_index for i in bucket.embedded], np.int64)
    return vectors[order].astype(np.float64), frames[order]


def _rows_of(track: Track, rows: slice) -> Track:
    return Track(
        track.person_id, track.frame_indices[rows], track.boxes_xyxy[rows], track.confidences[rows]
    )
