"""Plans, before anything is decoded, which crops are cut from which frame.

`quality` judges the boxes, `selection` chooses among them; here the persons are chosen, and the
plan is put together. (Tracks that are found while decoding have no plan: `growing`.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from streamproc.crops.overlaps import find_overlaps
from streamproc.crops.quality import placement_quality, usable
from streamproc.crops.selection import JudgedTrack, choose_boxes, spread
from streamproc.crops.trajectory import thinned
from streamproc.types import Cut, Skipped, TrackSpan

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streamproc.types import FrameTable, Int64Array, Track


@dataclass(frozen=True, slots=True)
class CropOptions:
    """How many crops are cut, and of whom.

    `top_persons` is how many are chosen, those with the most boxes; with 0 everybody is, who has at
    least `min_track_frames` boxes. `split_tracks`: a track that holds two people is taken apart.
    """

    crops_per_person: int = 50
    crops_embedded: int = 8
    min_track_frames: int = 5
    top_persons: int = 0
    split_tracks: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Which crops are cut from which frame.

    Made by `plan_crops`, used by the decoder, the cutter and the buckets.

    `frame_indices` (f,) are those to decode, ascending; `cuts` are by frame index. By person id:
    `tracks`, `last_frame` (the index of the last frame from which a crop is cut), `crop_count`, and
    `seen_with` (the ids of persons seen apart from this one, who cannot be the same).
    """

    frame_indices: Int64Array
    cuts: Mapping[int, tuple[Cut, ...]]
    tracks: Mapping[int, TrackSpan]
    last_frame: Mapping[int, int]
    crop_count: Mapping[int, int]
    seen_with: Mapping[int, tuple[int, ...]]
    skipped: tuple[Skipped, ...]

    def full_after(self) -> Int64Array:
        """After how many of the planned frames one or more buckets are full.

        (k,) int64, ascending, each number once.
        """
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
    """Plan the crops of all persons; tracks must lie within the video (`tracks.fit_to_video`)."""
    overlaps = find_overlaps(tracks)
    chosen, skipped = _choose_persons(tracks, options)
    judged: list[JudgedTrack] = []
    for position in chosen:
        track = tracks[position]
        placements = placement_quality(track, overlaps.hidden[position], width=width, height=height)
        rows = np.flatnonzero(usable(track.boxes_xyxy, width=width, height=height))
        if rows.size:
            judged.append(JudgedTrack(track, placements, rows))
        else:
            reason = "no usable crop: every box is too small or outside the picture"
            skipped.append(Skipped(track.person_id, reason))
    rows_to_cut = choose_boxes(judged, options.crops_per_person, table)
    skipped.sort(key=lambda skip: skip.person_id)
    return _assemble(judged, rows_to_cut, overlaps.seen_with, skipped, options.crops_embedded)


def _choose_persons(
    tracks: Sequence[Track], options: CropOptions
) -> tuple[list[int], list[Skipped]]:
    """The positions in `tracks` of the persons to cut crops of, and who is left out."""
    skipped: list[Skipped] = []
    long_enough = [i for i, track in enumerate(tracks) if len(track) >= options.min_track_frames]
    most = sorted(long_enough, key=lambda i: (-len(tracks[i]), tracks[i].person_id))
    if options.top_persons:
        most = most[: options.top_persons]
    chosen = set(most)
    for i, track in enumerate(tracks):
        if i in chosen:
            continue
        if len(track) < options.min_track_frames:
            reason = f"{len(track)} boxes, fewer than the {options.min_track_frames} asked for"
        else:
            reason = f"not among the {options.top_persons} persons with the most frames"
        skipped.append(Skipped(track.person_id, reason))
    return sorted(chosen), skipped


def _assemble(
    judged_tracks: Sequence[JudgedTrack],
    rows_to_cut: Sequence[list[int]],
    seen_with: Mapping[int, tuple[int, ...]],
    skipped: Sequence[Skipped],
    crops_embedded: int,
) -> Plan:
    """Make the plan; `rows_to_cut` are those of each track, in order."""
    cuts: dict[int, list[Cut]] = {}
    tracks: dict[int, TrackSpan] = {}
    last_frame: dict[int, int] = {}
    crop_count: dict[int, int] = {}
    for judged, rows in zip(judged_tracks, rows_to_cut, strict=True):
        track = judged.track
        frames = track.frame_indices[rows].tolist()
        own_cuts = _cuts_of(judged, rows, crops_embedded)
        for frame, cut in zip(frames, own_cuts, strict=True):
            cuts.setdefault(frame, []).append(cut)
        tracks[track.person_id] = TrackSpan(
            first_frame_index=int(track.frame_indices[0]),
            last_frame_index=int(track.frame_indices[-1]),
            box_count=len(track),
            trajectory=thinned(track.frame_indices, track.boxes_xyxy),
        )
        last_frame[track.person_id] = max(frames)
        crop_count[track.person_id] = len(rows)
    return Plan(
        frame_indices=np.array(sorted(cuts), np.int64),
        cuts={frame: tuple(cuts[frame]) for frame in sorted(cuts)},
        tracks=tracks,
        last_frame=last_frame,
        crop_count=crop_count,
        seen_with=seen_with,
        skipped=tuple(skipped),
    )


def _cuts_of(judged: JudgedTrack, rows: list[int], crops_embedded: int) -> list[Cut]:
    """The crops of one person, in time order."""
    track = judged.track
    boxes = track.boxes_xyxy[rows].tolist()
    confidences = track.confidences[rows].tolist()
    placements = judged.placements[rows].tolist()
    preselected = set(spread(placements, crops_embedded))
    return [
        Cut(
            person_id=track.person_id,
            crop_index=index,
            box_xyxy=tuple(boxes[index]),
            confidence=confidences[index],
            placement_quality=placements[index],
            is_preselected=index in preselected,
        )
        for index in range(len(rows))
    ]
