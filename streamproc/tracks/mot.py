"""MOT Challenge text: `frame,id,x,y,w,h,confidence,class,…`, a line a box, frames from 1.

The layout is that of https://motchallenge.net (Dendorfer et al., IJCV 2021): x and y are the left
and top edge. A confidence of -1 is unknown; in files of the truth 0 means "do not count".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from streamproc.errors import TracksError
from streamproc.tracks.table import BoxTable

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator
    from pathlib import Path

MAX_BYTES = 512 * 1024 * 1024
_LEAST_COLUMNS = 6
_COLUMNS_USED = 7
_CLASS_COLUMN = 7
_UNKNOWN = -1.0


def read(path: Path, problems: Counter[str], /, *, object_class: int | None) -> BoxTable:
    """Read a MOT text; rows of another class and rows marked "do not count" are left out."""
    rows = []
    for row in _rows(path):
        if object_class is None or _class_of(row) == object_class:
            rows.append((*row, _UNKNOWN)[:_COLUMNS_USED])
        else:
            problems["boxes-other-class"] += 1
    columns = np.array(rows, np.float64).reshape(-1, _COLUMNS_USED)
    ignored = columns[:, 6] == 0  # detectors write no zeros
    problems["boxes-marked-ignored"] += int(ignored.sum())
    number, ids, x, y, width, height, confidence = columns[~ignored].T
    boxes = np.stack([x, y, x + width, y + height], axis=1)
    return BoxTable(ids, number, boxes, confidence, first_frame_number=1)


def _class_of(row: tuple[float, ...]) -> float | None:
    return row[_CLASS_COLUMN] if len(row) > _CLASS_COLUMN else None


def _rows(path: Path) -> Iterator[tuple[float, ...]]:
    if path.stat().st_size > MAX_BYTES:
        raise TracksError(f"{path}: larger than the {MAX_BYTES} bytes that a track text may have")
    lines = path.read_bytes().decode("utf-8", "replace").splitlines()
    for line_number, line in enumerate(lines, 1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield _row(line, line_number, path)


def _row(line: str, line_number: int, path: Path) -> tuple[float, ...]:
    try:
        row = tuple(float(field) for field in line.replace(",", " ").split())
    except ValueError:
        row = ()
    if len(row) < _LEAST_COLUMNS:
        raise TracksError(
            f"{path}: line {line_number} is no MOT text (frame,id,x,y,w,h,confidence,…): "
            f"{line.strip()[:60]!r}"
        )
    return row
