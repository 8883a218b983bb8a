"""Chooses, before anything is decoded, which boxes of each track are cut: spread over the track, good, cheap to reach.

A track's boxes are divided into as many consecutive windows as crops are wanted; each window gives one. Within a window
all boxes of nearly its best placement count as equally good, and the one that costs the least further decoding is
taken: a frame that another person needs anyway costs nothing, one early in its group of pictures little.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import TYPE_CHECKING

import numpy as np

from streamproc.crops.boxes import find_overlaps, placement_quality, usable
from streamproc.crops.choice import spread
from streamproc.types import Cut, Skipped

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streamproc.types import Float32Array, FrameTable, Int64Array, Track

EQUALLY_GOOD = 0.85
"""Boxes of at least this share of their window's best placement quality are chosen among by cost."""


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
    """Which crops are cut from which frame. Made by `plan_crops`, used by the decoder, the cutter and the buckets.

    `frame_indices` (f,) ascending; `cuts` by frame; `seen_with`: the person ids seen beside each person (vetoes).
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
        return f"Plan({len(self.tracks)} persons, {crops} crops in {len(self.frame_indices)} frames)"


def plan_crops(tracks: Sequence[Track], table: FrameTable, *, width: int, height: int, options: CropOptions) -> Plan:
    """Plan the crops of all persons; tracks must lie within the video (`people.fit_to_video`)."""
    overlaps = find_overlaps(tracks)
    chosen, skipped = _choose_persons(tracks, options)
    persons: list[_Person] = []
    for position in chosen:
        track = tracks[position]
        quality = placement_quality(track, overlaps.hidden[position], width=width, height=height)
        rows = np.flatnonzero(usable(track.boxes_xyxy, width=width, height=height))
        if not rows.size:
            skipped.append(Skipped(track.person_id, "no usable crop: every box is too small or outside the picture"))
            continue
        persons.append(_Person(track, quality, _windows(track, rows, quality[rows], options.crops_per_person)))
    picks = _pick([window for person in persons for window in person.windows], _Costs(table))
    skipped.sort(key=lambda s: s.person_id)
    return _assemble(persons, picks, overlaps.seen_with, skipped, options.crops_embedded)


def _choose_persons(tracks: Sequence[Track], options: CropOptions) -> tuple[list[int], list[Skipped]]:
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
class _Window:
    """Consecutive boxes of one track, the first its box `first_row`, of which one is cut.

    `rows` and `frames` are those of the equally good boxes, the ones nearest the middle first.
    """

    first_row: int
    rows: Int64Array
    frames: Int64Array


@dataclass(frozen=True, slots=True, eq=False)
class _Person:
    """A track, the placement quality of all its boxes, and its windows."""

    track: Track
    quality: Float32Array
    windows: list[_Window]


def _windows(track: Track, rows: Int64Array, quality: Float32Array, count: int) -> list[_Window]:
    """Divide the usable boxes `rows` of a track, of this quality, into at most `count` windows as equal as can be."""
    count = min(count, rows.size)
    bounds = np.arange(count + 1) * (rows.size // count) + np.minimum(np.arange(count + 1), rows.size % count)
    sizes, starts = np.diff(bounds), bounds[:-1]
    window = np.repeat(np.arange(count), sizes)
    good = quality >= EQUALLY_GOOD * np.maximum.reduceat(quality, starts)[window]
    from_middle = np.abs(rows - rows[starts + sizes // 2][window])
    order = np.lexsort((from_middle, window))  # windows stay in place
    order = order[good[order]]
    ends = np.cumsum(np.bincount(window[good], minlength=count)).tolist()
    candidates = rows[order]
    frames = track.frame_indices[candidates]
    return [
        _Window(first, candidates[start:end], frames[start:end])
        for first, (start, end) in zip(rows[starts].tolist(), pairwise([0, *ends]), strict=True)
    ]


class _Costs:
    """How many pictures the decoder must still decode to reach a frame, given the frames already chosen."""

    def __init__(self, table: FrameTable) -> None:
        packets = int(table.decode_order.max(initial=-1)) + 1
        needed = np.zeros(packets + 1, np.int64)
        needed[table.decode_order[~table.disposable] + 1] = 1
        until = np.cumsum(needed)  # (packets + 1,): pictures before a packet that cannot be skipped
        # Windows are short: plain numbers are looked at in less time than arrays are made of them.
        depth = until[table.decode_order + 1] - until[table.start_order]
        self._starts, self._depth, self._alone = (
            array("q", column.astype(np.int64).tobytes()) for column in (table.start_order, depth, table.disposable)
        )
        self._reached: Counter[int] = Counter()  # by start packet
        self._chosen: set[int] = set()

    def choose(self, frames: Sequence[int]) -> int:
        """The place in `frames` of the first of the cheapest ones, which counts as chosen from now on."""
        best, least = 0, math.inf
        for place, frame in enumerate(frames):
            if frame in self._chosen:
                return place
            cost = max(0, self._depth[frame] - self._reached[self._starts[frame]]) + self._alone[frame]
            if cost < least:
                best, least = place, cost
        frame = frames[best]
        self._chosen.add(frame)
        start = self._starts[frame]
        self._reached[start] = max(self._reached[start], self._depth[frame])
        return best


def _pick(windows: Sequence[_Window], costs: _Costs) -> list[int]:
    """Return one row a window; windows with the least choice go first, the others can then share their frames."""
    picks = [0] * len(windows)
    for i in sorted(range(len(windows)), key=lambda i: (len(windows[i].rows), windows[i].first_row)):
        picks[i] = int(windows[i].rows[costs.choose(windows[i].frames.tolist())])
    return picks


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
        columns = track.boxes_xyxy[rows].tolist(), track.confidences[rows].tolist(), person.quality[rows].tolist()
        favourites = set(spread(columns[2], crops_embedded))
        for slot, (frame, box, confidence, quality) in enumerate(zip(frames, *columns, strict=True)):
            cut = Cut(person_id, slot, tuple(box), confidence, quality, is_favourite=slot in favourites)
            cuts.setdefault(frame, []).append(cut)
        tracks[person_id] = TrackSpan(int(track.frame_indices[0]), int(track.frame_indices[-1]), len(track))
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
