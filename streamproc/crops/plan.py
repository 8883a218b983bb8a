"""Chooses, before anything is decoded, which boxes of each track are cut: spread over the track, good, cheap to reach.

A track's boxes are divided into as many consecutive windows as crops are wanted; each window gives
one. Within a window all boxes of nearly its best placement count as equally good, and the one that
costs the least further decoding is taken: a frame that another person needs anyway costs nothing,
one early in its group of pictures little.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from streamproc.crops.overlaps import find_overlaps
from streamproc.crops.quality import placement_quality, usable
from streamproc.crops.selection import DecodingCosts, Window, pick_boxes, spread, windows_of
from streamproc.types import Cut, Skipped

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streamproc.types import Float32Array, FrameTable, Int64Array, Track


@dataclass(frozen=True, slots=True)
class CropOptions:
    """What is cut: `top_persons` 0 is everybody with at least `min_track_frames` boxes."""

    crops_per_person: int = 50
    crops_embedded: int = 8
    min_track_frames: int = 5
    top_persons: int = 0


@dataclass(frozen=True, slots=True)
class TrackSpan:
    """What is kept of a track once its crops are planned: the boxes of a long video are many."""

    first_frame_index: int
    last_frame_index: int
    box_count: int


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Which crops are cut from which frame.

    Made by `plan_crops`, used by the decoder, the cutter and the buckets.

    `frame_indices` (f,) ascending; `cuts` by frame; `seen_with`: the person ids seen beside each
    person (vetoes).
    """

    frame_indices: Int64Array
    cuts: Mapping[int, tuple[Cut, ...]]
    tracks: Mapping[int, TrackSpan]
    last_frame: Mapping[int, int]
    crop_count: Mapping[int, int]
    seen_with: Mapping[int, tuple[int, ...]]
    skipped: tuple[Skipped, ...]

    def full_after(self) -> Int64Array:
        """After how many of the planned frames one or more buckets are full (k,): ascending, each once."""
        last = np.fromiter(self.last_frame.values(), np.int64)
        return np.unique(np.searchsorted(self.frame_indices, last, side="right"))

    def __repr__(self) -> str:
        crops = sum(self.crop_count.values())
        return (
            f"Plan({len(self.tracks)} persons, {crops} crops in {len(self.frame_indices)} frames)"
        )


def plan_crops(
    tracks: Sequence[Track], table: FrameTable, *, width: int, height: int, options: CropOptions
) -> Plan:
    """Plan the crops of all persons; tracks must lie within the video (`people.fit_to_video`)."""
    overlaps = find_overlaps(tracks)
    chosen, skipped = _choose_persons(tracks, options)
    persons: list[_Person] = []
    for position in chosen:
        track = tracks[position]
        quality = placement_quality(track, overlaps.hidden[position], width=width, height=height)
        rows = np.flatnonzero(usable(track.boxes_xyxy, width=width, height=height))
        if not rows.size:
            skipped.append(
                Skipped(
                    track.person_id, "no usable crop: every box is too small or outside the picture"
                )
            )
            continue
        persons.append(
            _Person(
                track, quality, windows_of(track, rows, quality[rows], options.crops_per_person)
            )
        )
    picks = pick_boxes(
        [window for person in persons for window in person.windows], DecodingCosts(table)
    )
    skipped.sort(key=lambda s: s.person_id)
    return _assemble(persons, picks, overlaps.seen_with, skipped, options.crops_embedded)


def _choose_persons(
    tracks: Sequence[Track], options: CropOptions
) -> tuple[list[int], list[Skipped]]:
    skipped: list[Skipped] = []
    long_enough = [i for i, track in enumerate(tracks) if len(track) >= options.min_track_frames]
    most = sorted(long_enough, key=lambda i: (-len(tracks[i]), tracks[i].person_id))
    chosen = set(most[: options.top_persons] if options.top_persons else most)
    for i, track in enumerate(tracks):
        if i in chosen:
            continue
        short = len(track) < options.min_track_frames
        reason = (
            f"{len(track)} boxes, fewer than the {options.min_track_frames} asked for"
            if short
            else f"not among the {options.top_persons} persons with the most frames"
        )
        skipped.append(Skipped(track.person_id, reason))
    return sorted(chosen), skipped


@dataclass(frozen=True, slots=True, eq=False)
class _Person:
    """A track, the placement quality of all its boxes, and its windows."""

    track: Track
    quality: Float32Array
    windows: list[Window]


def _assemble(
    persons: Sequence[_Person],
    picks: Sequence[int],
    seen_with: Mapping[int, tuple[int, ...]],
    skipped: Sequence[Skipped],
    crops_embedded: int,
) -> Plan:
    """`picks` are the rows of all persons' windows, in order."""
    cuts: dict[int, list[Cut]] = {}
    tracks: dict[int, TrackSpan] = {}
    last_frame: dict[int, int] = {}
    crop_count: dict[int, int] = {}
    remaining = iter(picks)
    for person in persons:
        track, person_id = person.track, person.track.person_id
        rows = list(islice(remaining, len(person.windows)))
        frames = track.frame_indices[rows].tolist()
        columns = (
            track.boxes_xyxy[rows].tolist(),
            track.confidences[rows].tolist(),
            person.quality[rows].tolist(),
        )
        favourites = set(spread(columns[2], crops_embedded))
        for slot, (frame, box, confidence, quality) in enumerate(
            zip(frames, *columns, strict=True)
        ):
            cut = Cut(
                person_id, slot, tuple(box), confidence, quality, is_favourite=slot in favourites
            )
            cuts.setdefault(frame, []).append(cut)
        tracks[person_id] = TrackSpan(
            int(track.frame_indices[0]), int(track.frame_indices[-1]), len(track)
        )
        last_frame[person_id] = max(frames)
        crop_count[person_id] = len(rows)
    return Plan(
        frame_indices=np.array(sorted(cuts), np.int64),
        cuts={frame: tuple(cuts[frame]) for frame in sorted(cuts)},
        tracks=tracks,
        last_frame=last_frame,
        crop_count=crop_count,
        seen_with=seen_with,
        skipped=tuple(skipped),
    )
