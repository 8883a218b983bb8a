"""The folder `labels` of ultralytics' `track(save_txt=True)`: a file a frame, a line a box.

The layout is that of `Results.save_txt` in `ultralytics/engine/results.py`
(https://github.com/ultralytics/ultralytics): `<stem>_<frame>.txt`, frames from 1, with lines
`class x y width height [confidence] [id]`, where x and y are the box's centre and all four are
shares of the picture's width and height. Six columns may end in a confidence (no tracking) or in an
id (no `save_conf`): which, the caller must say.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from streamproc.errors import TracksError
from streamproc.tracks.delimited import ClassFilter, decimal, whole
from streamproc.tracks.table import MAX_BOXES, BoxTable

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator
    from pathlib import Path

    from streamproc.tracks.content import Content

_FILE = re.compile(r"(?P<stem>.+)_(?P<frame>\d{1,18})\.txt", re.ASCII | re.DOTALL)
_DETECTION_COLUMNS = 5
_SIX_COLUMNS = 6
_ALL_COLUMNS = 7
_MAX_FILE_BYTES = 16 * 1024 * 1024


def is_labels(content: Content) -> bool:
    """Whether it is a folder of `<stem>_<frame>.txt`."""
    return bool(content.files) and _FILE.fullmatch(content.files[0].name) is not None


def read(
    content: Content, problems: Counter[str], /, *, object_class: int | str | None
) -> BoxTable:
    """Read labels with confidences and ids: seven columns; boxes without an id have five or six."""
    return _read(content, problems, object_class, six_end_in_id=False)


def read_ids(
    content: Content, problems: Counter[str], /, *, object_class: int | str | None
) -> BoxTable:
    """Read labels without confidences, whose sixth column is the id."""
    return _read(content, problems, object_class, six_end_in_id=True)


def _read(
    content: Content,
    problems: Counter[str],
    object_class: int | str | None,
    *,
    six_end_in_id: bool,
) -> BoxTable:
    if not content.files:
        raise TracksError(f"{content.path}: expected a folder with files <stem>_<frame>.txt")
    wanted = ClassFilter(object_class)
    ids: list[int | float | None] = []
    frames: list[int] = []
    rows: list[list[float]] = []
    longest = 0
    for where, frame, fields in _lines(content):
        try:
            row, person_id = _row(fields, six_end_in_id=six_end_in_id)
        except ValueError as error:
            raise TracksError(
                f"{where}: expected class x y width height [confidence] [id] ({error})"
            ) from error
        longest = max(longest, len(fields))
        if wanted.keeps(fields[0]):
            ids.append(person_id)
            frames.append(frame)
            rows.append(row)
    if longest == _SIX_COLUMNS and not six_end_in_id:
        raise TracksError(
            f"{content.path}: its lines have six columns, of which the last may be a confidence or "
            "an id: if it is the id, say --tracks-format ultralytics-ids; else track again with "
            "save_conf=True"
        )
    problems["boxes-other-class"] += wanted.left_out
    columns = np.array(rows, np.float64).reshape(-1, _DETECTION_COLUMNS)
    return BoxTable(
        ids,
        frames,
        columns[:, :4],
        columns[:, 4],
        first_frame_number=1,
        layout="cxcywh",
        is_normalised=True,
        classes=wanted.seen,
    )


def _row(fields: list[str], *, six_end_in_id: bool) -> tuple[list[float], int | float | None]:
    """Return the box and its confidence, and the id."""
    if not _DETECTION_COLUMNS <= len(fields) <= _ALL_COLUMNS:
        raise ValueError(f"it has {len(fields)} columns")
    box = [decimal(field) for field in fields[1:5]]
    has_id = len(fields) == _ALL_COLUMNS or (six_end_in_id and len(fields) == _SIX_COLUMNS)
    has_confidence = len(fields) - _DETECTION_COLUMNS - has_id > 0
    confidence = decimal(fields[5]) if has_confidence else float("nan")
    return [*box, confidence], whole(fields[-1]) if has_id else None


def _lines(content: Content) -> Iterator[tuple[str, int, list[str]]]:
    """Yield where each line is, its frame and its fields; one video's files alone are admitted."""
    stem: str | None = None
    count = 0
    for file in content.files:
        match = _FILE.fullmatch(file.name)
        if match is None:
            raise TracksError(f"{file}: expected a name such as <stem>_<frame>.txt")
        if stem is not None and match["stem"] != stem:
            raise TracksError(
                f"{content.path}: it holds the labels of several videos ({stem!r:.60}, "
                f"{match['stem']!r:.60}): keep those of one in a folder"
            )
        stem = match["stem"]
        for number, line in enumerate(lines_of(file), 1):
            count += 1
            if count > MAX_BOXES:
                raise TracksError(f"{content.path}: it holds more than {MAX_BOXES:,} boxes")
            yield f"{file}: line {number}", int(match["frame"]), line.split()


def lines_of(file: Path) -> list[str]:
    """Return the lines of a frame's small file that are not empty. Raises TracksError."""
    if file.stat().st_size > _MAX_FILE_BYTES:
        raise TracksError(f"{file}: larger than the {_MAX_FILE_BYTES:,} bytes of a frame's boxes")
    text = file.read_bytes().decode("utf-8", "replace").removeprefix("\ufeff")
    return [line for line in text.splitlines() if line.strip()]
