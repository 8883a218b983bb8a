"""Annotations of Kitware's DIVE: its JSON, and VIAME's CSV, frames from 0.

The layouts are those of https://kitware.github.io/dive/DataFormats/. JSON: `tracks` by id, each
with `features` of `frame`, `bounds` as left, top, right, bottom, and `interpolate`, and with
`confidencePairs` of class and confidence. CSV: track id, image, frame, left, top, right, bottom,
confidence, length, and pairs of class and confidence; comments begin with #.
"""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING, Any

import numpy as np

from streamproc.errors import TracksError
from streamproc.tracks.delimited import (
    ClassFilter,
    as_number,
    decimal,
    need_columns,
    numbered_lines,
    whole,
)
from streamproc.tracks.interpolation import KeyFrames, table_of
from streamproc.tracks.table import BoxTable

if TYPE_CHECKING:
    from collections import Counter

    from streamproc.tracks.content import Content

_CSV_COLUMNS = 9
_CSV_CLASS = 9
_BOX_NUMBERS = 4


def is_json(content: Content) -> bool:
    """Whether it is JSON with DIVE's tracks."""
    if not content.head.lstrip().startswith("{"):
        return False
    document = content.document
    tracks = document.get("tracks") if isinstance(document, dict) else None
    if not isinstance(tracks, dict):
        return False
    return all(isinstance(track, dict) and "features" in track for track in tracks.values())


def is_viame(content: Content) -> bool:
    """Whether the first line is the comment that VIAME and DIVE write."""
    first = content.head.lstrip().split("\n", 1)[0].lstrip('"').casefold()
    return first.startswith("# 1: detection or track-id")


def read_json(
    content: Content, problems: Counter[str], /, *, object_class: int | str | None
) -> BoxTable:
    """Read DIVE's JSON, with the boxes between key frames."""
    wanted = ClassFilter(object_class)
    try:
        tracks = [_track(track, wanted) for track in content.document["tracks"].values()]
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise TracksError(
            f"{content.path}: expected tracks with id, and features with frame and bounds "
            f"({type(error).__name__}: {error!s:.100})"
        ) from error
    problems["boxes-other-class"] += wanted.left_out
    return table_of(tracks, content.path, wanted.seen)


def _track(track: Any, wanted: ClassFilter) -> KeyFrames:
    person_id = as_number(track["id"] if "id" in track else track["trackId"])
    if not isinstance(person_id, int) or not -(2**63) <= person_id < 2**63:
        raise ValueError("a track's id is no whole number")
    keys = KeyFrames(person_id)
    pairs = track.get("confidencePairs") or [["", 1]]
    label = max(pairs, key=lambda pair: pair[1])[0]
    for feature in track["features"]:
        box = tuple(float(number) for number in feature["bounds"])
        if len(box) != _BOX_NUMBERS:
            raise ValueError(f"bounds have {len(box)} numbers")
        if wanted.keeps(label):
            keys.add(int(feature["frame"]), box, is_filled=bool(feature.get("interpolate")))
    return keys


def read_viame(
    content: Content, problems: Counter[str], /, *, object_class: int | str | None
) -> BoxTable:
    """Read VIAME's CSV; of several classes of a box the first counts."""
    wanted = ClassFilter(object_class)
    ids: list[int | float | None] = []
    frames: list[int | float | None] = []
    rows: list[list[float]] = []
    for line_number, line in numbered_lines(content.text):
        try:
            (fields,) = csv.reader([line])
            if fields[0].startswith("#"):
                continue
            need_columns(fields, _CSV_COLUMNS)
            row = [decimal(text.strip()) for text in fields[3:8]]
            person_id = whole(fields[0].strip())
            frame = whole(fields[2].strip())
        except (ValueError, csv.Error) as error:
            raise TracksError(
                f"{content.path}: line {line_number}: expected id, image, frame, left, top, right, "
                f"bottom, confidence, length ({error})"
            ) from error
        if wanted.keeps(fields[_CSV_CLASS] if len(fields) > _CSV_CLASS else ""):
            ids.append(person_id)
            frames.append(frame)
            rows.append(row)
    problems["boxes-other-class"] += wanted.left_out
    columns = np.array(rows, np.float64).reshape(-1, 5)
    return BoxTable(
        ids,
        frames,
        columns[:, :4],
        columns[:, 4],
        first_frame_number=0,
        classes=wanted.seen,
    )
