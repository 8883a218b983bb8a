"""Keeps the boxes of tracks that are found, and writes them as track files."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Any

import numpy as np

from streamproc.errors import MachineError
from streamproc.tracks.npz import save_boxes

if TYPE_CHECKING:
    from pathlib import Path

    from streamproc.types import FrameBoxes

_ROW = np.dtype(
    [
        ("frame_index", np.int64),
        ("person_id", np.int64),
        ("box_xyxy", np.float32, 4),
        ("confidence", np.float32),
    ]
)
_ROWS_AT_ONCE = 100_000

Rows = np.ndarray[tuple[int], Any]


class TrackRecord:
    """All boxes of one video's tracks, in an unnamed temporary file.

    So memory does not grow with the video. `add` is called in one thread, the rest after it, and
    `close` last.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as this object
        self.box_count = 0

    def add(self, boxes: FrameBoxes) -> None:
        """Keep the boxes of one frame. Raises MachineError where there is no room for them."""
        rows = np.empty(len(boxes.person_ids), _ROW)
        rows["frame_index"] = boxes.frame_index
        rows["person_id"] = boxes.person_ids
        rows["box_xyxy"] = boxes.boxes_xyxy
        rows["confidence"] = boxes.confidences
        try:
            self._file.write(rows.tobytes())
        except OSError as error:
            raise MachineError(
                f"a temporary file of tracks cannot be written ({error.strerror}); make room in "
                f"{tempfile.gettempdir()}"
            ) from error
        self.box_count += len(rows)

    def close(self) -> None:
        """Let the temporary file go."""
        self._file.close()

    def write(self, path: Path) -> None:
        """Write them to a file: as MOT Challenge text, or as npz if the name ends with it."""
        if path.suffix.lower() == ".npz":
            self.write_npz(path)
        else:
            self.write_mot(path)

    def write_npz(self, path: Path) -> None:
        """Write streamproc's own npz."""
        rows = self._rows()
        save_boxes(
            path,
            person_ids=rows["person_id"],
            frame_indices=rows["frame_index"],
            boxes_xyxy=rows["box_xyxy"],
            confidences=rows["confidence"],
        )

    def write_mot(self, path: Path) -> None:
        """Write MOT Challenge text, frames from 1; all boxes have thousandths at most."""
        rows = self._rows()
        with path.open("w", encoding="ascii") as file:
            for start in range(0, len(rows), _ROWS_AT_ONCE):
                file.writelines(_mot_line(row) for row in rows[start : start + _ROWS_AT_ONCE])

    def _rows(self) -> Rows:
        self._file.flush()
        if not self.box_count:
            return np.zeros(0, _ROW)
        return np.memmap(self._file, _ROW, "r")


def _mot_line(row: Any) -> str:
    left, top, right, bottom = row["box_xyxy"].tolist()
    box = f"{left:.3f},{top:.3f},{right - left:.3f},{bottom - top:.3f}"
    return f"{row['frame_index'] + 1},{row['person_id']},{box},{row['confidence']:.4f},-1,-1,-1\n"
