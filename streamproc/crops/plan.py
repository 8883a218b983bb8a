"""Chooses, before anything is decoded, which boxes of each track are cut: spread over the track, good, cheap to reach.

A track's boxes are divided into as many consecutive windows as crops are wanted; each window gives one. Within a window
all boxes of nearly its best placement count as equally good, and the one that costs the least further decoding is
taken: a frame that another person needs anyway costs nothing, one early in its group of pictures little.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from streamproc.crops.boxes import find_overlaps, placement_quality, usable
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
    windows: list[_Window] = []
    for position in chosen:
        track = tracks[position]
        quality = placement_quality(track, overlaps.hidden[position], width=width, height=height)
        rows = np.flatnonzero(usable(track.boxes_xyxy, width=width, height=height))
        if not rows.size:
            skipped.append(Skipped(track.person_id, "no usable crop: every box is too small or outside the picture"))
            continue
        parts = np.array_split(rows, min(options.crops_per_person, rows.size))
        windows += [_Window(track, slot, part, quality[part]) for slot, part in enumerate(parts)]
    picks = _pick(windows, _Costs(table))
    return _assemble(windows, picks, overlaps.seen_with, sorted(skipped, key=lambda s: s.person_id))


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
    """Consecutive boxes of one track, `rows` into it, of which one is cut."""

    track: Track
    slot: int
    rows: Int64Array
    quality: Float32Array

    def candidates(self) -> Int64Array:
        """Rows of the equally good boxes, the ones nearest the middle first."""
        good = self.rows[self.quality >= EQUALLY_GOOD * self.quality.max()]
        middle = self.rows[len(self.rows) // 2]
        nearest: Int64Array = good[np.argsort(np.abs(good - middle), kind="stable")]
        return nearest


class _Costs:
    """How many pictures the decoder must still decode to reach a frame, given the frames already chosen."""

    def __init__(self, table: FrameTable) -> None:
        self._starts = table.start_order
        packets = int(table.decode_order.max(initial=-1)) + 1
        needed = np.zeros(packets + 1, np.int64)
        needed[table.decode_order[~table.disposable] + 1] = 1
        until = np.cumsum(needed)  # (packets + 1,): pictures before a packet that cannot be skipped
        self._depth = until[table.decode_order + 1] - until[table.start_order]
        self._alone = table.disposable.astype(np.int64)
        self._reached = np.zeros(packets, np.int64)  # by start packet
        self._chosen = np.zeros(len(table), bool)

    def further(self, frames: Int64Array) -> Int64Array:
        more = (self._depth[frames] - self._reached[self._starts[frames]]).clip(0)
        costs: Int64Array = np.where(self._chosen[frames], 0, more + self._alone[frames] + 1)
        return costs

    def choose(self, frame: int) -> None:
        start = self._starts[frame]
        self._reached[start] = max(self._reached[start], self._depth[frame])
        self._chosen[frame] = True


def _pick(windows: Sequence[_Window], costs: _Costs) -> list[int]:
    """Return one row a window; windows with the least choice go first, the others can then share their frames."""
    candidates = [window.candidates() for window in windows]
    picks = [0] * len(windows)
    for i in sorted(range(len(windows)), key=lambda i: (len(candidates[i]), int(windows[i].rows[0]))):
        rows = candidates[i]
        frames = windows[i].track.frame_indices[rows]
        best = int(np.argmin(costs.further(frames)))
        costs.choose(int(frames[best]))
        picks[i] = int(rows[best])
    return picks


def _assemble(
    windows: Sequence[_Window], picks: Sequence[int], seen_with: Mapping[int, tuple[int, ...]], skipped: list[Skipped]
) -> Plan:
    cuts: dict[int, list[Cut]] = {}
    tracks: dict[int, TrackSpan] = {}
    last_frame: dict[int, int] = {}
    crop_count: dict[int, int] = {}
    for window, row in zip(windows, picks, strict=True):
        track, person = window.track, window.track.person_id
        frame = int(track.frame_indices[row])
        x0, y0, x1, y1 = track.boxes_xyxy[row].tolist()
        quality = float(window.quality[np.searchsorted(window.rows, row)])
        cuts.setdefault(frame, []).append(
            Cut(person, window.slot, (x0, y0, x1, y1), float(track.confidences[row]), quality)
        )
        tracks[person] = TrackSpan(int(track.frame_indices[0]), int(track.frame_indices[-1]), len(track))
        last_frame[person] = max(frame, last_frame.get(person, -1))
        crop_count[person] = crop_count.get(person, 0) + 1
    return Plan(
        frame_indices=np.array(sorted(cuts), np.int64),
        cuts={frame: tuple(cuts[frame]) for frame in sorted(cuts)},
        tracks=tracks,
        last_frame=last_frame,
        crop_count=crop_count,
        seen_with=seen_with,
        skipped=tuple(skipped),
    )
