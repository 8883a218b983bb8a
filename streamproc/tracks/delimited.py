"""Text with a line a row: fields between commas, semicolons, tabs or spaces, and maybe a header.

An empty field is a missing value, and the fields after it keep their place. The common case,
numbers alone, is read by numpy's parser in C, everything else line by line.
"""

from __future__ import annotations

import io
import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from streamproc.errors import TracksError
from streamproc.tracks.table import MAX_BOXES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    Column = np.ndarray[Any, Any] | list[int | float | None]

_HEADER_NAMES = {
    "frame": "frame frame_id frame_number frame_index frame_no frame_num frameid image_id",
    "id": "id track_id tracker_id trackid person_id object_id obj_id track identity",
    "x": "x left bb_left bbox_left bbox_x x_left",
    "y": "y top bb_top bbox_top bbox_y y_top",
    "width": "w width bb_width bbox_width bbox_w",
    "height": "h height bb_height bbox_height bbox_h",
    "x1": "x1 xmin x_min xtl",
    "y1": "y1 ymin y_min ytl",
    "x2": "x2 xmax x_max xbr right",
    "y2": "y2 ymax y_max ybr bottom",
    "confidence": "confidence conf score confidence_score",
    "class": "class class_id cls category category_id",
}
_MEANINGS = {name: meaning for meaning, names in _HEADER_NAMES.items() for name in names.split()}
_NUMBER = re.compile(
    r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|[-+]?(nan|inf|infinity)", re.IGNORECASE | re.ASCII
)
_WHOLE = re.compile(r"([-+]?\d+)(\.0*)?", re.ASCII)
_DECIMAL_COMMA = re.compile(r"[-+]?\d+,\d+", re.ASCII)
_MISSING_WORDS = {"", "none", "null", "na", "n/a", "-"}
_MAX_DIGITS = 40
_FAST_BYTES = b"0123456789+-.eE, ;\t\r\n"
_INTEGERS = ("frame", "id")


@dataclass(frozen=True, slots=True)
class Layout:
    """How the lines of a text are split, and what each column is."""

    delimiter: str | None
    """None: any run of spaces or tabs."""
    columns: Mapping[str, int]
    has_header: bool
    first_line: int
    start: int
    """Where the first row begins, in bytes."""


def layout_of(text: bytes, order: Sequence[str]) -> Layout | None:
    """Look at the first lines of a text; None where it has no rows.

    `order` are the columns of a text without a header, or with one whose names are not known.
    """
    start = 0
    line_number = 0
    header: list[str] | None = None
    while start < len(text):
        end = text.find(b"\n", start) + 1 or len(text)
        line = text[start:end].decode("utf-8", "replace").strip()
        line_number += 1
        if line and not line.startswith("#"):
            delimiter = _delimiter_of(line)
            fields = split(line, delimiter)
            if header is None and _is_header(fields):
                header = fields
            else:
                columns = _columns(header, order)
                return Layout(delimiter, columns, header is not None, line_number, start)
        start = end
    return None


def header_of(head: str) -> list[str]:
    """Return the meanings of a text's header line, "" for names that are not known."""
    for line in head.splitlines():
        if line.strip() and not line.startswith("#"):
            fields = split(line.strip(), _delimiter_of(line.strip()))
            return [_meaning(field) for field in fields] if _is_header(fields) else []
    return []


def _meaning(field: str) -> str:
    return _MEANINGS.get(field.strip().casefold().replace(" ", "_"), "")


def _columns(header: list[str] | None, order: Sequence[str]) -> dict[str, int]:
    if header is not None:
        named: dict[str, int] = {}
        for position, field in enumerate(header):
            named.setdefault(_meaning(field), position)
        named.pop("", None)
        if "id" in named and ({"x", "y", "width", "height"} <= named.keys() or "x2" in named):
            return named
    return {name: position for position, name in enumerate(order) if name}


def _is_header(fields: list[str]) -> bool:
    words = [field for field in fields if field and not _NUMBER.fullmatch(field)]
    return len(words) > len(fields) / 2 and all(re.match(r"[^\W\d]", word) for word in words)


_LEAST_FIELDS = 4
"""No row of any layout has fewer."""


def _delimiter_of(line: str) -> str | None:
    for delimiter in (";", "\t"):
        if line.count(delimiter) > 1:  # one may be part of a word
            return delimiter
    fields = line.split()
    decimal_commas = [field for field in fields if _DECIMAL_COMMA.fullmatch(field)]
    if len(fields) >= _LEAST_FIELDS and len(decimal_commas) > 1:
        return None
    return "," if "," in line else None


def split(line: str, delimiter: str | None) -> list[str]:
    """Return the fields of a line, without the spaces and quotes around them."""
    return [field.strip().strip('"').strip() for field in line.split(delimiter)]


def read_columns(
    text: bytes,
    layout: Layout,
    names: Sequence[str],
    required: Sequence[str],
    path: Path,
    what: str,
) -> dict[str, Column]:
    """Return the columns of these names that the text has, as numbers; None or NaN is missing.

    `what` says in errors how a line should look. Raises TracksError with the line.
    """
    if text.count(b"\n", layout.start) > MAX_BOXES:
        raise TracksError(f"{path}: it holds more than {MAX_BOXES:,} lines")
    missing = [name for name in required if name not in layout.columns]
    if missing:
        raise TracksError(f"{path}: expected a column of {missing[0]} ({what})")
    wanted = [name for name in names if name in layout.columns]
    columns = _read_fast(text, layout, wanted, required)
    if columns is None:
        columns = _read_lines(text, layout, wanted, required, path, what)
    return columns


def _read_fast(
    text: bytes, layout: Layout, names: list[str], required: Sequence[str]
) -> dict[str, Column] | None:
    """Read by numpy's parser, where the rows are numbers in equal columns alone."""
    first_end = text.find(b"\n", layout.start)
    first = text[layout.start : first_end if first_end >= 0 else len(text)]
    count = len(split(first.decode("utf-8", "replace"), layout.delimiter))
    names = [name for name in names if layout.columns[name] < count]
    if not set(required) <= set(names) or text[layout.start :].translate(None, _FAST_BYTES):
        return None
    types = [(name, np.int64 if name in _INTEGERS else np.float64) for name in names]
    file = io.BytesIO(text)
    file.seek(layout.start)
    try:
        rows = np.loadtxt(
            io.TextIOWrapper(file, "ascii"),
            dtype=types,
            delimiter=layout.delimiter,
            usecols=[layout.columns[name] for name in names],
            comments=None,
            ndmin=1,
        )
    except (ValueError, OverflowError):
        return None
    return {name: rows[name] for name in names}


def _read_lines(
    text: bytes,
    layout: Layout,
    names: list[str],
    required: Sequence[str],
    path: Path,
    what: str,
) -> dict[str, Column]:
    least = 1 + max(layout.columns[name] for name in required)
    columns: dict[str, list[int | float | None]] = {name: [] for name in names}
    places = [(columns[name], layout.columns[name], name in _INTEGERS) for name in names]
    for line_number, line in numbered_lines(text, layout.start, layout.first_line):
        # Without a header each line may have its own way.
        delimiter = layout.delimiter if layout.has_header else _delimiter_of(line)
        fields = split(line, delimiter)
        try:
            need_columns(fields, least)
            for column, position, is_whole in places:
                field = fields[position] if position < len(fields) else ""
                column.append(whole(field) if is_whole else decimal(field))
        except ValueError as error:
            reason = _reason(fields, error)
            raise TracksError(
                f"{path}: line {line_number} is no {what}: {reason}: {line.strip()[:60]!r}"
            ) from error
    return {
        name: column if name in _INTEGERS else np.array(column, np.float64)
        for name, column in columns.items()
    }


def _reason(fields: list[str], error: ValueError) -> str:
    for field in fields:
        if _DECIMAL_COMMA.fullmatch(field):
            return f"{field!r} has a decimal comma, write a decimal point"
    return str(error)


def numbered_lines(text: bytes, start: int = 0, number: int = 1) -> Iterator[tuple[int, str]]:
    """Yield the lines that are neither empty nor comments, with their numbers, one at a time."""
    while start < len(text):
        end = text.find(b"\n", start) + 1 or len(text)
        line = text[start:end].decode("utf-8", "replace").strip("\r\n")
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, line
        start = end
        number += 1


def need_columns(fields: Sequence[str], least: int) -> None:
    """Raise ValueError for a line of fewer columns."""
    if len(fields) < least:
        raise ValueError(f"it has {len(fields)} columns")


def decimal(field: str) -> float:
    """Read a number; a missing one is NaN. Raises ValueError."""
    if _NUMBER.fullmatch(field):
        return float(field)
    if field.casefold() in _MISSING_WORDS:
        return math.nan
    raise ValueError(f"{field[:40]!r} is no number")


def whole(field: str) -> int | float | None:
    """Read an id or a frame number, exactly; a missing one is None. Raises ValueError."""
    exact = _WHOLE.fullmatch(field)
    if exact is not None:
        digits = exact[1]
        return int(digits) if len(digits) <= _MAX_DIGITS else math.inf
    value = decimal(field)
    return None if math.isnan(value) else value


def as_number(value: object) -> int | float | None:
    """Return a JSON value or a text as a number; None is missing. Raises ValueError."""
    if value is None or isinstance(value, int | float):
        return value
    if isinstance(value, str):
        return whole(value.strip())
    raise ValueError(f"expected a number, got {type(value).__name__}")


class ClassFilter:
    """Which boxes are of the class that was asked for. Counts what it sees, by class."""

    def __init__(self, wanted: int | str | None) -> None:
        self._wanted = None if wanted is None else _class_name(wanted)
        self.seen: Counter[str] = Counter()
        self.left_out = 0

    def keeps(self, value: object) -> bool:
        """Say whether a box of this class is kept."""
        name = _class_name(value)
        self.seen[name] += 1
        kept = self._wanted is None or name == self._wanted
        self.left_out += not kept
        return kept


def _class_name(value: object) -> str:
    try:
        number = float(str(value))
    except ValueError:
        return str(value).strip().casefold()[:80]
    return f"{number:g}"
