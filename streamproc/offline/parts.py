"""Tracks as replay took them apart where they seem to hold two people."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import orjson

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from streamproc.types import Track

SUSPECTS_NAME = "track_suspects.jsonl"


def read_cuts(folder: Path) -> dict[str, dict[int, int]]:
    """Return where a folder's tracks were cut: first frames of second parts, by video and track.

    Folders of older versions have none. Raises OSError, ValueError, KeyError or TypeError.
    """
    path = folder / SUSPECTS_NAME
    cuts: dict[str, dict[int, int]] = {}
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        said = orjson.loads(line)
        own = cuts.setdefault(str(said["video_id"]), {})
        own[int(said["person_id"])] = int(said["frame_index"])
    return cuts


def in_parts(tracks: Iterable[Track], cuts: Mapping[int, int]) -> Iterator[Track]:
    """Yield tracks, those in `cuts` in two parts; `cuts` are first frames of second parts, by id.

    One of which a part would have no box stays whole.
    """
    for track in tracks:
        frames = track.frame_indices
        row = int(np.searchsorted(frames, cuts.get(track.person_id, -1)))
        if not 0 < row < len(frames):
            yield track
            continue
        for part, rows in enumerate((slice(None, row), slice(row, None)), 1):
            yield replace(
                track,
                frame_indices=frames[rows],
                boxes_xyxy=track.boxes_xyxy[rows],
                confidences=track.confidences[rows],
                part=part,
            )


def with_ids(tracks: Iterable[Track]) -> tuple[list[Track], dict[str, int]]:
    """Give each part an id that no other has; return the tracks, and the ids by their names.

    A whole track is called "7", its parts "7#1" and "7#2".
    """
    known = list(tracks)
    free = max((track.person_id for track in known), default=0) + 1
    found: list[Track] = []
    names: dict[str, int] = {}
    for track in known:
        name = str(track.person_id) if track.part is None else f"{track.person_id}#{track.part}"
        if track.part is None or track.part == 1:
            names[name] = track.person_id
        else:
            names[name] = free
            free += 1
        found.append(replace(track, person_id=names[name], part=None))
    return found, names
