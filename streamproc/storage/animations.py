"""Where the animator puts its files: a folder, or an object store through fsspec."""

from __future__ import annotations

import re
from math import inf
from typing import TYPE_CHECKING

from streamproc.storage.marks import PATTERN, Marks
from streamproc.storage.outputs import OutputStore, StoredFile, safe_name

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

_RELATIVE = re.compile(
    r"[A-Za-z0-9_~-][A-Za-z0-9_.~-]*/[A-Za-z0-9_~-][A-Za-z0-9_.~-]*/person_-?\d+(?:\.crops)?\.webp"
)
"""What `write` makes below its folder: neither a link to elsewhere nor a hidden file."""


class AnimationStore:
    """Writes `<uri>/<video_id>/<run_id>/person_<person_id>.webp`, and `.crops.webp` beside it.

    Made by the animator and the live page; safe in several threads. For `uri`, and for the URIs of
    the files, see `OutputStore`. Raises UsageError if `uri` is invalid or needs a package that is
    not installed.
    """

    def __init__(
        self, uri: str, *, media_root: Path | None = None, s3_endpoint_url: str | None = None
    ) -> None:
        self._files = OutputStore(
            uri,
            setting="animator.output_uri",
            media_root=media_root,
            s3_endpoint_url=s3_endpoint_url,
        )
        self._marks = Marks(self._files)

    def __repr__(self) -> str:
        return f"AnimationStore({self._files.uri!r})"

    def check(self) -> None:
        """Write and remove a small file, once at the start; raises UsageError if that fails."""
        self._files.check()

    def write(self, video_id: str, run_id: str, person_id: int, content: bytes) -> StoredFile:
        """Write one animation; raises MachineError if the disk or the store fails."""
        return self._files.put(_name(video_id, run_id, person_id, "webp"), content)

    def write_strip(self, video_id: str, run_id: str, person_id: int, content: bytes) -> StoredFile:
        """Write the strip of a person's best crops; raises MachineError as `write` does."""
        return self._files.put(_name(video_id, run_id, person_id, "crops.webp"), content)

    def read(self, uri: str) -> bytes | None:
        """Return an animation or strip by the URI that it was given, None where it is not there.

        None also for a URI of anything else: whoever writes events must not have files read that
        are none of this store. Raises MachineError if the disk or the store fails.
        """
        relative = self._files.relative_of(uri)
        if relative is None or not _RELATIVE.fullmatch(relative):
            return None
        return self._files.read(relative)

    def remove_older_than(self, seconds: float, now_seconds: float) -> int:
        """Remove the files in a folder that were written before; returns how many."""
        self._files.remove_older_than(PATTERN, seconds, now_seconds)
        return self._files.remove_older_than("*/*/person_*.webp", seconds, now_seconds)

    def forget(
        self,
        video_id: str,
        person_ids: Collection[int] | None,
        *,
        at_ms: int,
        written_until: float,
    ) -> int:
        """Remove what there is of persons of a video, of all of them with None; returns how many.

        A run that was submitted before `at_ms` and is still under way leaves them out, see
        `leave_out`. Raises MachineError if the disk or the store fails.
        """
        self._marks.add(video_id, person_ids, at_ms)
        return self._remove(video_id, "*", person_ids, written_until)

    def leave_out(self, video_id: str, run_id: str, submitted_at_ms: int) -> int:
        """Remove what a run has written of those who were forgotten since; returns how many."""
        gone = self._marks.since(video_id, submitted_at_ms)
        if not gone:
            return 0
        person_ids = None if gone.everybody else gone.person_ids
        return self._remove(video_id, safe_name(run_id), person_ids, inf)

    def _remove(
        self, video_id: str, run: str, person_ids: Collection[int] | None, written_until: float
    ) -> int:
        names = ["person_*.webp"]
        if person_ids is not None:
            names = [
                f"person_{person_id}.{ending}"
                for person_id in sorted(person_ids)
                for ending in ("webp", "crops.webp")
            ]
        count = 0
        for name in names:
            pattern = f"{safe_name(video_id)}/{run}/{name}"
            for relative in self._files.find(pattern, written_until=written_until):
                self._files.remove(relative)
                count += 1
        return count


def _name(video_id: str, run_id: str, person_id: int, ending: str) -> str:
    return f"{safe_name(video_id)}/{safe_name(run_id)}/person_{person_id}.{ending}"
