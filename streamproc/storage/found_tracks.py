"""Where the worker puts the tracks that it found in a video: a folder, or an object store."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from streamproc.errors import MachineError, UsageError
from streamproc.storage.outputs import OutputStore, StoredFile, safe_name

if TYPE_CHECKING:
    from collections.abc import Callable

_ENDING = ".tracks.npz"
"""No video's track file is looked for by such a name (`TRACK_FILE_PATTERNS`), wherever these lie:
what an earlier run found is never taken for a file that somebody put beside the video."""


class TrackStore:
    """Writes `<uri>/<video_id>/<run_id>.tracks.npz`.

    Made by the worker; safe in several threads. For `uri`, and for the URIs of the files, see
    `OutputStore`. Raises UsageError if `uri` is invalid or needs a package that is not installed.
    """

    def __init__(
        self, uri: str, *, media_root: Path | None = None, s3_endpoint_url: str | None = None
    ) -> None:
        self._files = OutputStore(
            uri,
            setting="detector.output_uri",
            media_root=media_root,
            s3_endpoint_url=s3_endpoint_url,
        )

    def __repr__(self) -> str:
        return f"TrackStore({self._files.uri!r})"

    def check(self) -> None:
        """Write and remove a small file, once at the start; raises UsageError if that fails."""
        uri = self._files.uri_of("any")
        if uri.startswith("file:"):
            raise UsageError(
                f"detector.output_uri: expected a folder below media_root, where the animator "
                f"finds the tracks, or a bucket that it may read, got {self._files.uri}"
            )
        try:
            self._files.check()
        except UsageError as error:
            raise UsageError(
                f"{error}: a worker writes the tracks that it finds there; with "
                "detector.enabled false it finds none"
            ) from error

    def write(self, video_id: str, run_id: str, save: Callable[[Path], None]) -> StoredFile:
        """Write one file of tracks, which `save` writes to a temporary path first.

        Raises MachineError if the disk or the store fails.
        """
        with tempfile.TemporaryDirectory(prefix="streamproc-") as temporary:
            path = Path(temporary) / "tracks.npz"
            try:
                save(path)
            except OSError as error:
                raise MachineError(
                    f"{temporary}: cannot be written ({error.strerror or error}); make room"
                ) from error
            return self._files.put_copy(f"{safe_name(video_id)}/{safe_name(run_id)}{_ENDING}", path)

    def remove_older_than(self, seconds: float, now_seconds: float) -> int:
        """Remove tracks in a folder that were written before; returns how many."""
        return self._files.remove_older_than(f"*/*{_ENDING}", seconds, now_seconds)
