"""KITTI's tracking labels, and the folder that DeepStream writes for `kitti-track-output-dir`.

KITTI's are those of the benchmark's `devkit_tracking` (https://www.cvlibs.net/datasets/kitti): one
file a video, lines `frame id type truncated occluded alpha left top right bottom` and eight more,
of which the last may be a score; frames from 0. DeepStream's are those of
`write_kitti_track_output` in its reference application `deepstream_app.c`: one file
`NN_SSS_FFFFFF.txt` a frame, lines `type id truncated occluded alpha left top right bottom`, seven
zeros and a confidence.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from streamproc.errors import TracksError
from streamproc.tracks.delimited import ClassFilter, decimal, need_columns, numbered_lines, whole
from streamproc.tracks.table import MAX_BOXES, BoxTable
from streamproc.tracks.ultralytics import lines_of

if TYPE_CHECKING:
    from collections import Counter

    from streamproc.tracks.content import Content

_FILE = re.compile(r"\d{2,}_(?P<stream>\d{3,})_(?P<frame>\d{6,18})\.txt", re.ASCII)
_KITTI_COLUMNS = 17
_KITTI_SCORE = 17
_DEEPSTREAM_COLUMNS = 16
_DEEPSTREAM_CONFIDENCE = 16
_UNTRACKED = 2**64 - 1
"""DeepStream's id of an object that is not tracked."""


@dataclass(slots=True)
class _Rows:
    """What is collected of the lines."""

    wanted: ClassFilter
    ids: list[int | float | None] = field(default_factory=list)
    frames: list[int | float | None] = field(default_factory=list)
    numbers: list[list[float]] = field(default_factory=list)

    def add(
        self, label: str, person_id: float | None, frame: float | None, numbers: list[float]
    ) -> None:
        if len(self.ids) >= MAX_BOXES:
            raise ValueError(f"it holds more than {MAX_BOXES:,} boxes")
        if self.wanted.keeps(label):
            self.ids.append(person_id)
            self.frames.append(frame)
            self.numbers.append(numbers)

    def table(self, problems: Counter[str]) -> BoxTable:
        problems["boxes-other-class"] += self.wanted.left_out
        columns = np.array(self.numbers, np.float64).reshape(-1, 5)
        return BoxTable(
            self.ids,
            self.frames,
            columns[:, :4],
            columns[:, 4],
            first_frame_number=0,
            classes=self.wanted.seen,
        )


def is_tracking(content: Content) -> bool:
    """Whether the first line is one of KITTI's tracking labels."""
    first = content.head.lstrip().split("\n", 1)[0].split()
    return len(first) >= _KITTI_COLUMNS and first[0].isdecimal() and first[2][:1].isalpha()


def is_deepstream(content: Content) -> bool:
    """Whether it is a folder of DeepStream's files."""
    return bool(content.files) and _FILE.fullmatch(content.files[0].name) is not None


def read_tracking(
    content: Content, problems: Counter[str], /, *, object_class: int | str | None
) -> BoxTable:
    """Read KITTI's tracking labels; "DontCare" has the id -1, which is no person."""
    rows = _Rows(ClassFilter(object_class))
    for line_number, line in numbered_lines(content.text):
        fields = line.split()
        try:
            need_columns(fields, _KITTI_COLUMNS)
            box = [decimal(text) for text in fields[6:10]]
            score = decimal(fields[_KITTI_SCORE]) if len(fields) > _KITTI_SCORE else 1.0
            rows.add(fields[2], whole(fields[1]), whole(fields[0]), [*box, score])
        except ValueError as error:
            raise TracksError(
                f"{content.path}: line {line_number}: expected frame id type truncated occluded "
                f"alpha left top right bottom … ({error})"
            ) from error
    return rows.table(problems)


def read_deepstream(
    content: Content, problems: Counter[str], /, *, object_class: int | str | None
) -> BoxTable:
    """Read DeepStream's folder, of one stream."""
    if not content.files:
        raise TracksError(f"{content.path}: expected a folder with files NN_SSS_FFFFFF.txt")
    rows = _Rows(ClassFilter(object_class))
    streams: set[str] = set()
    for file in content.files:
        match = _FILE.fullmatch(file.name)
        if match is None:
            raise TracksError(f"{file}: expected a name such as 00_000_000000.txt")
        streams.add(match["stream"])
        if len(streams) > 1:
            raise TracksError(
                f"{content.path}: it holds several streams ({', '.join(sorted(streams))}): keep "
                "the files of one in a folder"
            )
        for line_number, line in enumerate(lines_of(file), 1):
            try:
                _add_deepstream(rows, line, int(match["frame"]))
            except ValueError as error:
                raise TracksError(
                    f"{file}: line {line_number}: expected type id truncated occluded alpha left "
                    f"top right bottom … ({error})"
                ) from error
    return rows.table(problems)


def _add_deepstream(rows: _Rows, line: str, frame: int) -> None:
    label, *fields = line.split()
    while fields and not fields[0].isdecimal():  # a label of several words
        label = f"{label} {fields.pop(0)}"
    fields = [label, *fields]
    need_columns(fields, _DEEPSTREAM_COLUMNS)
    box = [decimal(text) for text in fields[5:9]]
    has_confidence = len(fields) > _DEEPSTREAM_CONFIDENCE
    confidence = decimal(fields[_DEEPSTREAM_CONFIDENCE]) if has_confidence else 1.0
    person_id = whole(fields[1])
    rows.add(label, None if person_id == _UNTRACKED else person_id, frame, [*box, confidence])
