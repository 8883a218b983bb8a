"""All boxes of a video's tracks, for who asks for some track again: beyond 8 MiB on disk.

Once its crops are chosen, little is kept of a track (`TrackSpan`), as the boxes of a long video are
many. Few tracks are looked at again, those that seem to hold two people.
"""

from __future__ import annotations

import tempfile
import threading
import weakref
from typing import TYPE_CHECKING

import numpy as np

from streamproc.errors import MachineError
from streamproc.types import Track

if TYPE_CHECKING:
    from collections.abc import Iterable

    from streamproc.types import Float32Array, Int64Array

MEMORY_BYTES = 8 * 2**20
_ROWS_A_CHUNK = 64
_ROW = np.dtype([("frame", "<i8"), ("box", "<f4", (4,))])


class BoxArchive:
    """Boxes by person id, in memory or in a temporary file without a name.

    Any thread may call it. Raises MachineError where the file cannot grow or be read.
    """

    def __init__(self) -> None:
        # Closed when this is gone: the space is free again however the process ends.
        file = tempfile.SpooledTemporaryFile(MEMORY_BYTES, prefix="streamproc-boxes-")  # noqa: SIM115
        weakref.finalize(self, file.close)
        self._file = file
        self._end = 0
        self._chunks: dict[int, list[tuple[int, int]]] = {}  # by person id: offset and rows
        self._waiting: dict[int, list[tuple[int, Float32Array]]] = {}
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"BoxArchive({len(self._chunks)} tracks, {self._end} bytes)"

    def add(self, tracks: Iterable[Track]) -> None:
        """Take whole tracks."""
        with self._lock:
            for track in tracks:
                self._write(track.person_id, track.frame_indices, track.boxes_xyxy)

    def add_box(self, person_id: int, frame_index: int, box_xyxy: Float32Array) -> None:
        """Take the next box (4,) of a track that grows; frames ascend."""
        with self._lock:
            waiting = self._waiting.setdefault(person_id, [])
            waiting.append((frame_index, box_xyxy))
            if len(waiting) == _ROWS_A_CHUNK:
                self._flush(person_id)

    def track(self, person_id: int) -> Track | None:
        """Return a track as far as it was taken, None where nothing was; confidences are all 1."""
        with self._lock:
            self._flush(person_id)
            chunks = self._chunks.get(person_id)
            if chunks is None:
                return None
            rows = np.concatenate([self._read(*chunk) for chunk in chunks])
        sure = np.ones(len(rows), np.float32)
        return Track(person_id, rows["frame"].astype(np.int64), rows["box"].copy(), sure)

    def _flush(self, person_id: int) -> None:
        """Write the boxes that wait."""
        waiting = self._waiting.pop(person_id, None)
        if waiting:
            frames = np.array([frame for frame, _ in waiting], np.int64)
            self._write(person_id, frames, np.stack([box for _, box in waiting]))

    def _write(self, person_id: int, frames: Int64Array, boxes: Float32Array) -> None:
        rows = np.empty(len(frames), _ROW)
        rows["frame"] = frames
        rows["box"] = boxes
        try:
            self._file.seek(self._end)
            self._file.write(rows.tobytes())
        except OSError as error:
            raise MachineError(
                f"the temporary file for boxes cannot grow ({error.strerror}): free disk space"
            ) from error
        self._chunks.setdefault(person_id, []).append((self._end, len(rows)))
        self._end += rows.nbytes

    def _read(self, offset: int, count: int) -> np.ndarray:
        try:
            self._file.seek(offset)
            return np.frombuffer(self._file.read(count * _ROW.itemsize), _ROW)
        except OSError as error:
            raise MachineError(
                f"the temporary file for boxes cannot be read ({error.strerror})"
            ) from error
