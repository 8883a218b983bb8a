"""Room for fetched files: many are fetched at once, and together they must fit on the disk."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from streamproc.errors import MachineError
from streamproc.storage.allowed import RefusedError

if TYPE_CHECKING:
    from pathlib import Path


class Room:
    """What the fetched files of this process take, or are about to. Safe in several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._claims: set[Claim] = set()

    def claim(self) -> Claim:
        """Return the claim of one file, which has no room yet; release it in any case."""
        return Claim(self)

    def take(self, claim: Claim, name: str, folder: Path, size_bytes: int) -> bool:
        """Give a file its room; False: not now, but when others have left.

        Raises RefusedError for a file that can never fit, MachineError if others have the room.
        """
        disk = os.statvfs(folder)
        total, free = disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize
        if size_bytes > total:
            raise RefusedError(
                f"{name}: its {size_bytes:,} bytes do not fit where files are fetched to ({folder} "
                f"holds {total:,} in all); set TMPDIR to a folder with more room"
            )
        with self._lock:
            self._claims.discard(claim)  # of an attempt before
            free -= sum(other.size_bytes - other.written_bytes for other in self._claims)
            if size_bytes <= free:
                claim.size_bytes = size_bytes
                self._claims.add(claim)
                return True
            if sum(other.size_bytes for other in self._claims) >= size_bytes - free:
                return False
        raise MachineError(
            f"{name}: needs {size_bytes:,} bytes of room, {max(0, free):,} are free in {folder}; "
            "make room there or name another TMPDIR"
        )

    def release(self, claim: Claim) -> None:
        """Say that a file is gone."""
        with self._lock:
            self._claims.discard(claim)


class Claim:
    """One file's room. Used by the thread that fetches the file."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self.size_bytes = 0
        self.written_bytes = 0

    def take(self, name: str, folder: Path, size_bytes: int) -> bool:
        """See `Room.take`."""
        return self._room.take(self, name, folder, size_bytes)

    def release(self) -> None:
        """See `Room.release`."""
        self._room.release(self)


ROOM = Room()
"""The process's: all schemes fetch to the same disk."""
