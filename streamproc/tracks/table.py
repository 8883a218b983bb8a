"""A track file's boxes as one table, and the tracks that are made of it.

Every reader gives a `BoxTable`; what is wrong with its rows is judged here, once for all formats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from streamproc.errors import TracksError
from streamproc.types import Track

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Sequence
    from pathlib import Path

    from streamproc.types import BoolArray, BoxLayout, Float32Array, Float64Array, Int64Array

MAX_BOXES = 20_000_000
"""In one file: more than nine days of one person at 25 boxes a second."""
MAX_FRAME_NUMBER = 2**40
"""Beyond any video; keeps int64 arithmetic safe."""
MAX_FRAME_STRIDE = 1_000_000
_MAX_COORDINATE = 1e6
"""No picture is so large: a tracker's estimate that has diverged."""
_NO_ID = -1
"""What MOT Challenge's detections and others write where a box has no track."""
_MAX_EXACT = 2.0**53
"""Larger whole numbers are not exact as float64."""

_GOOD = 0
_MISSING = 1
_BROKEN = 2
_TOO_LARGE = 3


@dataclass(frozen=True, slots=True, eq=False)
class BoxTable:
    """One row a box, as the file has it: columns (n,) each, and boxes (n, 4).

    Ids and frame numbers are arrays of numbers, or lists of numbers and None (a missing value). The
    boxes are as `layout` says, in pixels, or as shares of the picture's width and height if
    `is_normalised`. `first_frame_number` and `frame_stride` are what the file or its format says of
    the numbers. `classes` counts the boxes by class, where the format has classes.
    """

    person_ids: np.ndarray[Any, Any] | Sequence[int | float | None]
    frame_numbers: np.ndarray[Any, Any] | Sequence[int | float | None]
    boxes: np.ndarray[Any, Any]
    confidences: np.ndarray[Any, Any]
    first_frame_number: int
    frame_stride: int = 1
    layout: BoxLayout = "xyxy"
    is_normalised: bool = False
    classes: Counter[str] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class FlatTracks:
    """The boxes of all tracks, by rising id and frame: (n,) each, boxes (n, 4) xyxy."""

    person_ids: Int64Array
    frame_indices: Int64Array
    boxes_xyxy: Float32Array
    confidences: Float32Array

    def split(self) -> tuple[Track, ...]:
        """Return one track an id; the arrays are views of these."""
        if not len(self.person_ids):
            return ()
        changes = np.flatnonzero(self.person_ids[1:] != self.person_ids[:-1]) + 1
        starts = [0, *changes.tolist()]
        ends = [*changes.tolist(), len(self.person_ids)]
        return tuple(
            Track(
                int(self.person_ids[start]),
                self.frame_indices[start:end],
                self.boxes_xyxy[start:end],
                self.confidences[start:end],
            )
            for start, end in zip(starts, ends, strict=True)
        )


def check_lengths(
    path: Path, what: str, ids: Any, numbers: Any, boxes: Any, confidences: Any
) -> None:
    """Raise TracksError unless the columns are numbers of equal length, boxes with four each."""
    shapes = [np.shape(column) for column in (ids, numbers, boxes, confidences)]
    n = shapes[0][0] if shapes[0] else -1
    if shapes != [(n,), (n,), (n, 4), (n,)]:
        raise TracksError(
            f"{path}: expected {what} as ids (n,), frames (n,), boxes (n, 4), confidences (n,), "
            f"got {shapes}"
        )
    if any(
        np.asarray(column).dtype.kind not in "iuf" for column in (ids, numbers, boxes, confidences)
    ):
        raise TracksError(f"{path}: expected numbers in {what}")


def corners(boxes: np.ndarray[Any, Any], layout: BoxLayout) -> Float64Array:
    """Return boxes (n, 4) of any layout as xyxy."""
    with np.errstate(over="ignore", invalid="ignore"):
        a, b, c, d = np.asarray(boxes).reshape(-1, 4).astype(np.float64).T
        if layout == "xyxy":
            return np.stack([a, b, c, d], axis=1)
        if layout == "xywh":
            return np.stack([a, b, a + c, b + d], axis=1)
        return np.stack([a - c / 2, b - d / 2, a + c / 2, b + d / 2], axis=1)


def flat_tracks(
    table: BoxTable, first_frame_number: int, frame_stride: int, problems: Counter[str]
) -> FlatTracks:
    """Make tracks of a table's rows; what is left out is counted in `problems`."""
    ids, id_states = _whole_numbers(table.person_ids)
    numbers, number_states = _whole_numbers(table.frame_numbers)
    with np.errstate(over="ignore"):
        boxes = corners(table.boxes, table.layout).astype(np.float32)
        confidences = np.asarray(table.confidences).astype(np.float32, copy=False)
    keep = np.ones(len(ids), bool)
    checks = {
        "ids-missing": (id_states != _MISSING) & ~((ids == _NO_ID) & (id_states == _GOOD)),
        "ids-not-whole": id_states != _BROKEN,
        "ids-too-large": id_states != _TOO_LARGE,
        "frame-numbers-missing": number_states != _MISSING,
        "frame-numbers-not-whole": number_states != _BROKEN,
        "frame-numbers-too-large": (
            (number_states == _GOOD) & (numbers > -MAX_FRAME_NUMBER) & (numbers < MAX_FRAME_NUMBER)
        ),
        **_box_checks(boxes),
        "frames-before-video": numbers >= first_frame_number,
    }
    for code, good in checks.items():
        problems[code] += int(np.count_nonzero(keep & ~good))
        keep &= good
    known = np.isfinite(confidences) & (confidences >= 0)
    confidences = np.where(known, confidences, np.float32(1)).clip(0, 1)
    rows = _rows_of_tracks(np.flatnonzero(keep), ids, numbers, confidences, problems)
    for code in [code for code, count in problems.items() if not count]:
        del problems[code]
    frames = (numbers[rows] - first_frame_number) * frame_stride
    return FlatTracks(ids[rows], frames, boxes[rows], confidences[rows])


def _box_checks(boxes: Float32Array) -> dict[str, BoolArray]:
    left, top, right, bottom = boxes.T
    with np.errstate(invalid="ignore"):
        return {
            "boxes-not-finite": ~np.isnan(boxes).any(axis=1),
            "boxes-diverged": (np.abs(boxes) <= _MAX_COORDINATE).all(axis=1),
            "boxes-empty": (right > left) & (bottom > top),
        }


def _whole_numbers(
    column: np.ndarray[Any, Any] | Sequence[int | float | None],
) -> tuple[Int64Array, np.ndarray[Any, np.dtype[np.uint8]]]:
    """Return a column as int64, exactly, and what is wrong with each value (0: nothing)."""
    if not isinstance(column, np.ndarray) or column.dtype.hasobject:
        return _whole_numbers_of_objects(list(column))
    states = np.zeros(len(column), np.uint8)
    if column.dtype.kind == "i":
        return column.astype(np.int64), states
    if column.dtype.kind == "u":
        states[column > np.iinfo(np.int64).max] = _TOO_LARGE
        return np.where(states == _GOOD, column, 0).astype(np.int64), states
    with np.errstate(invalid="ignore"):
        values = column.astype(np.float64)
        states[values != np.floor(values)] = _BROKEN
        states[np.abs(values) > _MAX_EXACT] = _TOO_LARGE
    states[np.isnan(values)] = _MISSING
    return np.where(states == _GOOD, values, 0).astype(np.int64), states


def _whole_numbers_of_objects(
    values: list[int | float | None],
) -> tuple[Int64Array, np.ndarray[Any, np.dtype[np.uint8]]]:
    states = np.zeros(len(values), np.uint8)
    whole: list[int] = []
    for position, value in enumerate(values):
        state = _state_of(value)
        states[position] = state
        whole.append(int(value) if state == _GOOD and value is not None else 0)
    return np.array(whole, np.int64), states


def _state_of(value: float | None) -> int:
    if value is None or value != value:  # noqa: PLR0124 - NaN alone differs from itself
        return _MISSING
    if isinstance(value, int):
        return _GOOD if -(2**63) <= value < 2**63 else _TOO_LARGE
    if abs(value) > _MAX_EXACT:
        return _TOO_LARGE
    return _GOOD if value == int(value) else _BROKEN


def _rows_of_tracks(
    rows: Int64Array,
    ids: Int64Array,
    numbers: Int64Array,
    confidences: Float32Array,
    problems: Counter[str],
) -> Int64Array:
    """Sort `rows` by id and frame number; of one id's boxes in a frame the surest stays."""
    same_id = ids[rows[1:]] == ids[rows[:-1]]
    falling = numbers[rows[1:]] < numbers[rows[:-1]]
    problems["frames-unsorted"] += int(np.count_nonzero(same_id & falling))
    order = rows[np.lexsort((-confidences[rows], numbers[rows], ids[rows]))]
    same_id = ids[order[1:]] == ids[order[:-1]]
    repeated = same_id & (numbers[order[1:]] == numbers[order[:-1]])
    problems["boxes-duplicate"] += int(repeated.sum())
    single: Int64Array = order[np.r_[True, ~repeated][: len(order)]]
    return single
