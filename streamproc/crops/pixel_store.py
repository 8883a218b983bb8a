"""One byte budget for the pixels of all buckets: memory first, then a temporary file that has no name."""

from __future__ import annotations

import mmap
import os
import tempfile
import threading
import weakref
from typing import TYPE_CHECKING

import numpy as np

from streamproc.errors import MachineError

if TYPE_CHECKING:
    from streamproc.types import Uint8Array

CROP_BYTES = (
    256 * 1024
)  # the largest crop: a whole number of memory pages, and 2.7 times what the network takes
_CHUNK_SLOTS = 192


class PixelStore:
    """Keeps crops of up to 256 KiB within `budget_bytes` of memory; what is beyond lies in a temporary file.

    `keep` may be called by one thread; what it returns is an ordinary read-only array, which any
    thread may read, and its place is free again as soon as nobody holds it.
    """

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._used_bytes = 0
        self._lock = (
            threading.RLock()
        )  # re-entrant: the garbage collector may release a crop while it is held
        self._free: list[tuple[mmap.mmap, int]] = []
        self._file: int | None = None
        self._chunks = 0
        self.spilled = 0
        """How many crops went to the file so far."""

    def keep(self, pixels: Uint8Array) -> Uint8Array:
        """Return an equal array that is accounted for; raises MachineError where the temporary file cannot grow."""
        with self._lock:
            fits = self._used_bytes + pixels.nbytes <= self._budget_bytes
            self._used_bytes += pixels.nbytes if fits else 0
        if not fits:
            return self._spill(pixels)
        kept = np.ascontiguousarray(pixels).view()
        kept.flags.writeable = False
        weakref.finalize(kept, self._release_memory, pixels.nbytes)
        return kept

    def _release_memory(self, size: int) -> None:
        with self._lock:
            self._used_bytes -= size

    def _spill(self, pixels: Uint8Array) -> Uint8Array:
        try:
            chunk, offset = self._slot()
            chunk[offset : offset + pixels.nbytes] = pixels.tobytes()
        except OSError as error:
            raise MachineError(
                f"the temporary file for crops cannot grow ({error.strerror}): free disk space"
            ) from error
        # Written pages go to the file and out of this process's memory; reading brings them back.
        chunk.madvise(mmap.MADV_DONTNEED, offset, CROP_BYTES)
        self.spilled += 1
        kept = np.frombuffer(chunk, np.uint8, pixels.nbytes, offset).reshape(pixels.shape)
        kept.flags.writeable = False
        weakref.finalize(kept, self._release_slot, chunk, offset)
        return kept

    def _slot(self) -> tuple[mmap.mmap, int]:
        with self._lock:
            if not self._free:
                self._grow()
            return self._free.pop()

    def _grow(self) -> None:
        if self._file is None:
            handle, path = tempfile.mkstemp(prefix="streamproc-crops-")
            os.unlink(path)  # noqa: PTH108 - unlinked at once: the space is free again however the process ends
            self._file = handle
            weakref.finalize(self, os.close, handle)
        size = _CHUNK_SLOTS * CROP_BYTES
        os.posix_fallocate(
            self._file, self._chunks * size, size
        )  # a full disk is an error here, not a signal later
        chunk = mmap.mmap(self._file, size, offset=self._chunks * size)
        self._chunks += 1
        self._free += [(chunk, i * CROP_BYTES) for i in range(_CHUNK_SLOTS)]

    def _release_slot(self, chunk: mmap.mmap, offset: int) -> None:
        chunk.madvise(mmap.MADV_DONTNEED, offset, CROP_BYTES)
        with self._lock:
            self._free.append((chunk, offset))
