"""Writing tracks under other ids: MOT text, CSV, streamproc's npz and `canonical_persons.npz`.

Each of these is read again by `files`. CSV has supervision's columns, see `supervision`.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import numpy as np

from streamproc.errors import UsageError
from streamproc.files import replace_file
from streamproc.tracks.npz import save_tracks
from streamproc.types import WrittenFormat

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from streamproc.types import Int64Array, Track

ENDINGS: dict[WrittenFormat, str] = {
    "mot": ".mot.txt",
    "streamproc": ".persons.npz",
    "canonical-persons": ".canonical_persons.npz",
    "csv": ".csv",
}
"""How a file of each format is named after its video."""

_LEAST_CONFIDENCE = 1e-6  # in MOT text 0 says "do not count"
_CSV_COLUMNS = (
    "x_min",
    "y_min",
    "x_max",
    "y_max",
    "class_id",
    "confidence",
    "tracker_id",
    "frame_index",
    "original_tracker_id",
)


@dataclass(frozen=True, slots=True, eq=False)
class MergedTrack:
    """A track made of one or more: `original_ids` are theirs, `box_ids` (k,) whose each box was."""

    track: Track
    original_ids: tuple[int, ...]
    box_ids: Int64Array


def format_of(path: Path) -> WrittenFormat:
    """Return the format that a file's name asks for. Raises UsageError."""
    name = path.name.lower()
    if name.endswith(".txt"):
        return "mot"
    if name.endswith(".csv"):
        return "csv"
    if name.endswith("canonical_persons.npz"):
        return "canonical-persons"
    if name.endswith(".npz"):
        return "streamproc"
    raise UsageError(
        f"{path}: expected a name that ends in .txt (MOT), .csv, .npz or canonical_persons.npz, "
        f"or --format with one of {', '.join(get_args(WrittenFormat))}"
    )


def write_merged(path: Path, tracks: Sequence[MergedTrack], written: WrittenFormat) -> None:
    """Write a file that is never seen half written. Raises OSError."""
    writers: dict[WrittenFormat, Callable[[Sequence[MergedTrack]], bytes]] = {
        "mot": _mot,
        "streamproc": _own,
        "canonical-persons": _canonical,
        "csv": _csv,
    }
    replace_file(path, writers[written](tracks))


def _boxes(tracks: Sequence[MergedTrack]) -> list[tuple[int, int, list[float], float, int]]:
    """Return frame index, id, box, confidence and original id of each box, by frame and id."""
    rows: list[tuple[int, int, list[float], float, int]] = []
    for merged in tracks:
        track = merged.track
        columns = (
            track.frame_indices.tolist(),
            [track.person_id] * len(track),
            track.boxes_xyxy.tolist(),
            track.confidences.tolist(),
            merged.box_ids.tolist(),
        )
        rows += zip(*columns, strict=True)
    return sorted(rows, key=lambda row: row[:2])


def _mot(tracks: Sequence[MergedTrack]) -> bytes:
    lines = []
    for frame, person_id, (x0, y0, x1, y1), confidence, _ in _boxes(tracks):
        numbers = f"{x0:.3f},{y0:.3f},{x1 - x0:.3f},{y1 - y0:.3f}"
        lines.append(
            f"{frame + 1},{person_id},{numbers},{max(confidence, _LEAST_CONFIDENCE):.6g},-1,-1,-1\n"
        )
    return "".join(lines).encode()


def _csv(tracks: Sequence[MergedTrack]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    for frame, person_id, box, confidence, original in _boxes(tracks):
        sides = [f"{side:.3f}" for side in box]
        writer.writerow([*sides, 0, f"{confidence:.6g}", person_id, frame, original])
    return text.getvalue().encode()


def _own(tracks: Sequence[MergedTrack]) -> bytes:
    file = io.BytesIO()
    save_tracks(file, (merged.track for merged in tracks))
    return file.getvalue()


def _canonical(tracks: Sequence[MergedTrack]) -> bytes:
    """Write the object array of dicts that the batch pipeline's next stage reads."""
    persons = np.empty(len(tracks), object)
    for row, merged in enumerate(tracks):
        track = merged.track
        persons[row] = {
            "person_id": track.person_id,
            "frame_numbers": track.frame_indices,
            "bboxes": track.boxes_xyxy,
            "confidences": track.confidences,
            "original_tracklet_ids": list(merged.original_ids),
            "num_tracklets_merged": len(merged.original_ids),
        }
    file = io.BytesIO()
    np.savez_compressed(file, persons=persons)
    return file.getvalue()
