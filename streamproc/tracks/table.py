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
    from pathlib import Path

    import numpy.typing as npt

    from streamproc.types import BoolArray, Float32Array, Int64Array

_MAX_FRAME_NUMBER = 2**40  # beyond any video; keeps int64 arithmetic safe
_MAX_EXACT_ID = 2.0**53  # larger ids are not exact as float64


@dataclass(frozen=True, slots=True, eq=False)
class BoxTable:
    """One row a box, as the file has it: columns (n,) each, and boxes (n, 4) xyxy in pixels.

    `first_frame_number` and `frame_stride` are what the file or its format says of the numbers.
    """

    person_ids: np.ndarray[Any, Any]
    frame_numbers: np.ndarray[Any, Any]
    boxes_xyxy: np.ndarray[Any, Any]
    confidences: np.ndarray[Any, Any]
    first_frame_number: int
    frame_stride: int = 1


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


def tracks_of(
    table: BoxTable, first_frame_number: int, frame_stride: int, problems: Counter[str]
) -> list[Track]:
    """Make tracks of a table's rows, by rising id; what is left out is counted in `problems`."""
    ids = np.asarray(table.person_ids, np.float64)
    numbers = np.asarray(table.frame_numbers, np.float64)
    with np.errstate(over="ignore"):
        boxes = np.asarray(table.boxes_xyxy).reshape(-1, 4).astype(np.float32, copy=False)
        confidences = np.asarray(table.confidences).astype(np.float32, copy=False)
    keep = np.ones(len(ids), bool)
    for code, good in _checks(ids, numbers, boxes, first_frame_number).items():
        problems[code] += int(np.count_nonzero(keep & ~good))
        keep &= good
    known = np.isfinite(confidences) & (confidences >= 0)
    confidences = np.where(known, confidences, np.float32(1)).clip(0, 1)
    groups = _rows_of_tracks(np.flatnonzero(keep), ids, numbers, confidences, problems)
    for code in [code for code, count in problems.items() if not count]:
        del problems[code]
    tracks = []
    for rows in groups:
        frames = (numbers[rows].astype(np.int64) - first_frame_number) * frame_stride
        tracks.append(Track(int(ids[rows[0]]), frames, boxes[rows], confidences[rows]))
    return tracks


def _checks(
    ids: npt.NDArray[np.float64],
    numbers: npt.NDArray[np.float64],
    boxes: Float32Array,
    first_frame_number: int,
) -> dict[str, BoolArray]:
    """Which rows are good, by the code of what is wrong with the others; in order of judging."""
    finite = np.isfinite(boxes).all(axis=1) & np.isfinite(ids)
    whole = (numbers == np.floor(numbers)) & (ids == np.floor(ids))
    left, top, right, bottom = boxes.T
    return {
        "boxes-not-finite": finite & (np.abs(numbers) < _MAX_FRAME_NUMBER),
        "frame-numbers-broken": whole & (np.abs(ids) < _MAX_EXACT_ID),
        "boxes-empty": (right > left) & (bottom > top),
        "frames-before-video": numbers >= first_frame_number,
    }


def _rows_of_tracks(
    rows: Int64Array,
    ids: npt.NDArray[np.float64],
    numbers: npt.NDArray[np.float64],
    confidences: Float32Array,
    problems: Counter[str],
) -> list[Int64Array]:
    """Split `rows` by id, each part by rising frame number.

    Of several boxes of one id in a frame the most confident stays.
    """
    same_id = ids[rows[1:]] == ids[rows[:-1]]
    falling = numbers[rows[1:]] < numbers[rows[:-1]]
    problems["frames-unsorted"] += int(np.count_nonzero(same_id & falling))
    order = rows[np.lexsort((-confidences[rows], numbers[rows], ids[rows]))]
    same_id = ids[order[1:]] == ids[order[:-1]]
    repeated = same_id & (numbers[order[1:]] == numbers[order[:-1]])
    problems["boxes-duplicate"] += int(repeated.sum())
    single = order[np.r_[True, ~repeated][: len(order)]]
    starts = np.flatnonzero(ids[single[1:]] != ids[single[:-1]]) + 1
    return np.split(single, starts) if len(single) else []
