"""Where the animator puts its files: a folder, or an object store through fsspec."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from streamproc.storage.outputs import OutputStore, StoredFile, safe_name

if TYPE_CHECKING:
    from pathlib import Path

_RELATIVE = re.compile(
    r"[A-Za-z0-9_~-][A-Za-z0-9_.~-]*/[A-Za-z0-9_~-][A-Za-z0-9_.~-]*/person_-?\d+\.webp"
)
"""What `write` makes below its folder: neither a link to elsewhere nor a hidden file."""


class AnimationStore:
    """Writes `<uri>/<video_id>/<run_id>/person_<person_id>.webp`.

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

    def __repr__(self) -> str:
        return f"AnimationStore({self._files.uri!r})"

    def check(self) -> None:
        """Write and remove a small file, once at the start; raises UsageError if that fails."""
        self._files.check()

    def write(self, video_id: str, run_id: str, person_id: int, content: bytes) -> StoredFile:
        """Write one animation; raises MachineError if the disk or the store fails."""
        folder = f"{safe_name(video_id)}/{safe_name(run_id)}"
        return self._files.put(f"{folder}/person_{person_id}.webp", content)

    def read(self, uri: str) -> bytes | None:
        """Return an animation by the URI that `write` gave it, None where it is not there.

        None also for a URI of anything else: whoever writes events must not have files read that
        are none of this store. Raises MachineError if the disk or the store fails.
        """
        relative = self._files.relative_of(uri)
        if relative is None or not _RELATIVE.fullmatch(relative):
            return None
        return self._files.read(relative)

    def remove_older_than(self, seconds: float, now_seconds: float) -> int:
        """Remove animations in a folder that were written before; returns how many."""
        return self._files.remove_older_than("*/*/person_*.webp", seconds, now_seconds)
