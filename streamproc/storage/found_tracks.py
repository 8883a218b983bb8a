"""Where the worker puts the tracks that it found in a video: a folder, or an object store."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from streamproc.errors import MachineError, UsageError
from streamproc.storage.marks import PATTERN, Gone, Marks
from streamproc.storage.outputs import OutputStore, StoredFile, safe_name
from streamproc.tracks.npz import save_boxes

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

_ENDING = ".tracks.npz"
"""No video's track file is looked for by such a name (`TRACK_FILE_PATTERNS`), wherever these lie:
what an earlier run found is never taken for a file that somebody put beside the video."""
_BOX_ARRAYS = ("person_ids", "frame_indices", "boxes_xyxy", "confidences")


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
        self._marks = Marks(self._files)

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
        self._files.remove_older_than(PATTERN, seconds, now_seconds)
        return self._files.remove_older_than(f"*/*{_ENDING}", seconds, now_seconds)

    def forget(
        self,
        video_id: str,
        person_ids: Collection[int] | None,
        *,
        at_ms: int,
        written_until: float,
        runs_come: bool = True,
    ) -> list[StoredFile]:
        """Take persons out of the files of a video, or remove them with None.

        Returns the files that were written anew, without these persons. A run that was submitted
        before `at_ms` and is still under way leaves them out, see `leave_out`; where no `runs_come`
        nothing is written for those. Raises MachineError if the disk or the store fails.
        """
        if runs_come:
            self._marks.add(video_id, person_ids, at_ms)
        written = []
        pattern = f"{safe_name(video_id)}/*{_ENDING}"
        for relative in self._files.find(pattern, written_until=written_until):
            stored = self._without(relative, person_ids)
            if stored is not None:
                written.append(stored)
        return written

    def leave_out(self, video_id: str, run_id: str, submitted_at_ms: int) -> StoredFile | Gone:
        """Take those who were forgotten since out of the file that a run has written.

        Returns the file as it is then, or who is gone where it did not change or is no more.
        """
        gone = self._marks.since(video_id, submitted_at_ms)
        if not gone:
            return gone
        relative = f"{safe_name(video_id)}/{safe_name(run_id)}{_ENDING}"
        person_ids = None if gone.everybody else gone.person_ids
        return self._without(relative, person_ids) or gone

    def _without(self, relative: str, person_ids: Collection[int] | None) -> StoredFile | None:
        """Take persons out of a file; return it where it is another one then, None else."""
        if person_ids is None:
            self._files.remove(relative)
            return None
        content = self._files.read(relative)
        if content is None:
            return None
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            stays = ~np.isin(arrays["person_ids"], list(person_ids))
            if stays.all():
                return None
            boxes = {name: arrays[name][stays] for name in _BOX_ARRAYS}
        with tempfile.TemporaryDirectory(prefix="streamproc-") as temporary:
            path = Path(temporary) / "tracks.npz"
            save_boxes(path, **boxes)
            return self._files.put_copy(relative, path)
