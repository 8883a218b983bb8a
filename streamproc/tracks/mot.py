"""MOT Challenge text: `frame,id,x,y,w,h,confidence,class,…`, a line a box, frames from 1.

The layout is that of https://motchallenge.net (Dendorfer et al., IJCV 2021): x and y are the left
and top edge. A confidence of -1 is unknown; in files of the truth 0 means "do not count". BoxMOT's
nine columns are the same (`frame,id,x,y,w,h,confidence,class,-1`: `write_mot_results` in
https://github.com/mikel-brostrom/boxmot). A header line may name the columns, and then x1, y1, x2
and y2 may stand for x, y, w and h.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from streamproc.errors import TracksError
from streamproc.tracks.delimited import layout_of, read_columns
from streamproc.tracks.table import BoxTable

if TYPE_CHECKING:
    from collections import Counter

    from streamproc.tracks.content import Content
    from streamproc.tracks.delimited import Column
    from streamproc.types import BoxLayout

_ORDER = ("frame", "id", "x", "y", "width", "height", "confidence", "class")
_WHAT = "MOT text (frame,id,x,y,w,h,confidence,…)"
_UNKNOWN = -1.0
_SIZES: dict[BoxLayout, tuple[str, ...]] = {
    "xyxy": ("x1", "y1", "x2", "y2"),
    "xywh": ("x", "y", "width", "height"),
}


def is_text(content: Content) -> bool:
    """Return whether it is a file that looks like neither JSON nor XML."""
    return not content.is_folder and not content.head.lstrip().startswith(("{", "[", "<"))


def read(
    content: Content, problems: Counter[str], /, *, object_class: int | str | None
) -> BoxTable:
    """Read a MOT text; rows of another class and rows marked "do not count" are left out."""
    layout = layout_of(content.text, _ORDER)
    if layout is None:
        return BoxTable([], [], np.zeros((0, 4)), np.zeros(0), first_frame_number=1)
    boxes_are: BoxLayout = "xyxy" if "x2" in layout.columns else "xywh"
    sides = _SIZES[boxes_are]
    names = ("frame", "id", *sides, "confidence", "class")
    columns = read_columns(
        content.text, layout, names, ("frame", "id", *sides), content.path, _WHAT
    )
    count = len(columns["id"])
    confidences = np.asarray(columns.get("confidence", np.full(count, _UNKNOWN)))
    keep = _of_class(columns, count, object_class, content)
    problems["boxes-other-class"] += int(np.count_nonzero(~keep))
    ignored = confidences == 0  # detectors write no zeros
    problems["boxes-marked-ignored"] += int(np.count_nonzero(keep & ignored))
    keep &= ~ignored
    return BoxTable(
        _kept(columns["id"], keep),
        _kept(columns["frame"], keep),
        np.stack([np.asarray(columns[name])[keep] for name in sides], axis=1),
        confidences[keep],
        first_frame_number=1,
        layout=boxes_are,
    )


def _of_class(
    columns: dict[str, Column], count: int, object_class: int | str | None, content: Content
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    if object_class is None:
        return np.ones(count, bool)
    try:
        wanted = float(object_class)
    except ValueError as error:
        raise TracksError(
            f"{content.path}: the classes of a MOT text are numbers, got --class {object_class!r}"
        ) from error
    classes = np.asarray(columns.get("class", np.full(count, np.nan)))
    is_wanted: np.ndarray[tuple[int], np.dtype[np.bool_]] = classes == wanted
    return is_wanted


def _kept(column: Column, keep: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Column:
    if isinstance(column, np.ndarray):
        return column[keep]
    return [value for value, is_kept in zip(column, keep.tolist(), strict=True) if is_kept]
