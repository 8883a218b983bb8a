"""Detections that supervision's `CSVSink` and `JSONSink` saved, with a tracker's ids.

The columns are those of `BASE_HEADER` in `supervision/detection/tools/csv_sink.py` and
`json_sink.py` (https://github.com/roboflow/supervision): x_min, y_min, x_max, y_max, class_id,
confidence, tracker_id. The frame is not among them: it must be given as custom data, from 0, under
a name such as frame_index or frame_number. JSON has a list of objects, with numbers as text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from streamproc.errors import TracksError
from streamproc.tracks.delimited import (
    ClassFilter,
    as_number,
    header_of,
    layout_of,
    numbered_lines,
    split,
)
from streamproc.tracks.table import BoxTable

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator, Mapping

    from streamproc.tracks.content import Content

_SIDES = ("x_min", "y_min", "x_max", "y_max")
_FRAME_KEYS = ("frame_index", "frame_number", "frame", "frame_id", "frame_idx", "frame_no")


def is_csv(content: Content) -> bool:
    """Whether the header line is supervision's."""
    first = content.head.split("\n", 1)[0]
    return {"x_min", "x_max", "tracker_id"} <= set(split(first, ",")) and bool(
        header_of(content.head)
    )


def is_json(content: Content) -> bool:
    """Whether it is a list of objects with supervision's names."""
    if not content.head.lstrip().startswith("["):
        return False
    document = content.document
    first = document[0] if isinstance(document, list) and document else None
    return isinstance(first, dict) and {"x_min", "tracker_id"} <= first.keys()


def read_csv(
    content: Content, problems: Counter[str], /, *, object_class: int | str | None
) -> BoxTable:
    """Read what `CSVSink` saved."""
    return _table(_csv_rows(content), content, problems, object_class)


def read_json(
    content: Content, problems: Counter[str], /, *, object_class: int | str | None
) -> BoxTable:
    """Read what `JSONSink` saved."""
    document = content.document
    if not isinstance(document, list):
        raise TracksError(f"{content.path}: expected a list of objects, as JSONSink saves it")
    rows = ((f"object {number}", row) for number, row in enumerate(document))
    return _table(rows, content, problems, object_class)


def _csv_rows(content: Content) -> Iterator[tuple[str, Mapping[str, str]]]:
    layout = layout_of(content.text, ())
    delimiter = "," if layout is None else layout.delimiter
    names: list[str] = []
    for line_number, line in numbered_lines(content.text):
        fields = split(line, delimiter)
        if not names:
            names = [name.casefold() for name in fields]
        else:
            yield f"line {line_number}", dict(zip(names, fields, strict=False))


def _table(
    rows: Iterator[tuple[str, Any]],
    content: Content,
    problems: Counter[str],
    object_class: int | str | None,
) -> BoxTable:
    wanted = ClassFilter(object_class)
    ids: list[int | float | None] = []
    frames: list[int | float | None] = []
    numbers: list[list[float]] = []
    for where, row in rows:
        frame_key = _frame_key(row, where, content)
        if not wanted.keeps(row.get("class_id", "")):
            continue
        try:
            ids.append(as_number(row["tracker_id"]))
            frames.append(as_number(row[frame_key]))
            sides = [as_number(row[side]) for side in _SIDES]
            numbers.append(_floats([*sides, as_number(row.get("confidence"))]))
        except (KeyError, ValueError, OverflowError) as error:
            raise TracksError(
                f"{content.path}: {where}: expected x_min, y_min, x_max, y_max, tracker_id and "
                f"{frame_key} as numbers ({error})"
            ) from error
    problems["boxes-other-class"] += wanted.left_out
    columns = np.array(numbers, np.float64).reshape(-1, 5)
    return BoxTable(
        ids,
        frames,
        columns[:, :4],
        columns[:, 4],
        first_frame_number=0,
        classes=wanted.seen,
    )


def _floats(values: list[int | float | None]) -> list[float]:
    return [float("nan") if value is None else float(value) for value in values]


def _frame_key(row: object, where: str, content: Content) -> str:
    if isinstance(row, dict):
        for key in _FRAME_KEYS:
            if key in row:
                return key
    raise TracksError(
        f"{content.path}: {where}: expected the frame's number from 0 as custom data, such as "
        "sink.append(detections, custom_data={'frame_index': index})"
    )
