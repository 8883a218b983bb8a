"""One byte budget for the pixels of all buckets: memory, then a temporary file without a name."""

from __future__ import annotations

import mmap
import os
import tempfile
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from streamproc.errors import MachineError

if TYPE_CHECKING:
    from streamproc.types import Uint8Array

CROP_BYTES = 256 * 1024
"""The largest crop: a whole number of memory pages, and 2.7 times what the network takes."""
_CROPS_A_CHUNK = 192


class PixelStore:
    """Keeps crops of up to 256 KiB within `budget_bytes` of memory, the rest in a temporary file.

    `keep` may be called by one thread. What it returns is a read-only array that any thread may
    read. The array and all views of it (a slice, a reshape, a transpose) hold its place in memory
    or in the file: as soon as nobody refers to any of them, the place is free for another crop.
    """

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._used_bytes = 0
        # Re-entrant: the garbage collector may release a crop while the lock is held.
        self._lock = threading.RLock()
        self._free: list[tuple[mmap.mmap, int]] = []  # places in the file: chunk and offset
        self._file: int | None = None
        self._chunks = 0
        self.spilled = 0
        """How many crops went to the file so far."""

    def keep(self, pixels: Uint8Array) -> Uint8Array:
        """Return an equal array that holds its place, as the class says.

        Raises:
            MachineError: The temporary file cannot grow.
        """
        with self._lock:
            fits = self._used_bytes + pixels.nbytes <= self._budget_bytes
            if fits:
                self._used_bytes += pixels.nbytes
        if not fits:
            return self._spill(pixels)
        kept = np.ascontiguousarray(pixels).view()
        kept.flags.writeable = False
        weakref.finalize(_owner_of(kept), self._release_memory, pixels.nbytes)
        return kept

    def _release_memory(self, size: int) -> None:
        with self._lock:
            self._used_bytes -= size

    def _spill(self, pixels: Uint8Array) -> Uint8Array:
        try:
            chunk, offset = self._take_place()
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
        weakref.finalize(_owner_of(kept), self._release_place, chunk, offset)
        return kept

    def _take_place(self) -> tuple[mmap.mmap, int]:
        with self._lock:
            if not self._free:
                self._grow()
            return self._free.pop()

    def _grow(self) -> None:
        if self._file is None:
            handle, path = tempfile.mkstemp(prefix="streamproc-crops-")
            Path(path).unlink()  # at once: the space is free again however the process ends
            self._file = handle
            weakref.finalize(self, os.close, handle)
        size = _CROPS_A_CHUNK * CROP_BYTES
        # With its space allocated, a full disk is an error here, not a signal later.
        os.posix_fallocate(self._file, self._chunks * size, size)
        chunk = mmap.mmap(self._file, size, offset=self._chunks * size)
        self._chunks += 1
        self._free += [(chunk, i * CROP_BYTES) for i in range(_CROPS_A_CHUNK)]

    def _release_place(self, chunk: mmap.mmap, offset: int) -> None:
        chunk.madvise(mmap.MADV_DONTNEED, offset, CROP_BYTES)
        with self._lock:
            self._free.append((chunk, offset))


def _owner_of(array: Uint8Array) -> Uint8Array:
    """The array to which every view of this one refers, as long as there is one."""
    owner = array
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    return owner
