"""An output directory that is never seen half written.

Files are written below a hidden staging folder inside the directory, so on the same file system,
and `commit` moves them into place whole. If the process ends before or during that, each file is
either as it was or new, never half. run.json is removed first and written last: where it is
missing, a commit was cut off. (This does not hold for a power failure: files are not flushed to the
disk one by one, which would take longer than writing them.)
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Self

from streamproc.errors import MachineError, UsageError
from streamproc.offline.artifacts import ARTIFACT_NAMES, artifacts
from streamproc.offline.page import ASSET_NAMES, PAGE_NAME, asset_files, page_html, unused_assets
from streamproc.offline.replay_folder import DECISIONS_NAME, FOUND_TRACKS_NAME, NOT_CARRIED_NAME

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from streamproc.offline.report import GalleryReport
    from streamproc.tracks.detection.record import TrackRecord

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
_STAGING_PREFIX = ".streamproc-staging-"
_RUN_FILE = "run.json"
_VIEWER = Path("webp_viewer")
_WEBP = _VIEWER / "webp"
_ANIMATION_NAME = re.compile(r"person_-?\d+(?:\.crops)?\.webp")
TRACK_FILE_NAMES = ("tracks.mot.txt", FOUND_TRACKS_NAME)
"""The tracks of a video that had none."""
_OUR_NAMES = (
    *map(Path, ARTIFACT_NAMES),
    *map(Path, TRACK_FILE_NAMES),
    _VIEWER / PAGE_NAME,
    *(_VIEWER / "assets" / name for name in ASSET_NAMES),
)


class OutputDirectory:
    """Owns the files of one gallery below `path`: nothing shows there before `commit`.

    It holds a lock on the directory until `commit` or `abort`, so that two runs cannot mix their
    files. The kernel drops the lock when the process dies, and the next run removes what that one
    staged. As a context manager it aborts unless `commit` was called. `write_webp`
    and `write_strip` may be called by any thread; the rest by one at a time.

    `umask` are the permissions that files and folders are written without; a folder that exists
    keeps its own.

    Raises UsageError where `path` is a file or another run is writing there, MachineError where it
    cannot be made.
    """

    def __init__(self, path: str | os.PathLike[str], *, umask: int = 0o077) -> None:
        self.path = Path(path)
        self._folder_mode = 0o777 & ~umask
        self._file_mode = 0o666 & ~umask
        self._made = not self.path.exists()
        self._has_report = False
        self._assets: set[str] = set()  # staged already
        self._lock = _locked_directory(self.path, self._folder_mode)
        try:
            self._remove_stagings()  # we hold the lock, so whoever made them is dead
            self._staging: Path | None = Path(
                tempfile.mkdtemp(prefix=_STAGING_PREFIX, dir=self.path)
            )
        except OSError as error:
            os.close(self._lock)
            raise MachineError(_could_not_write(self.path, error)) from error

    def __repr__(self) -> str:
        return f"OutputDirectory({str(self.path)!r}, {'open' if self._staging else 'closed'})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.abort()

    def write_webp(self, person_id: int, data: bytes) -> str:
        """Stage one animation; return its path relative to the page's folder.

        Lets OSError out: an animation that could not be written is the caller's to count, not the
        end of a run.
        """
        return self._stage_picture(f"person_{person_id}.webp", data)

    def write_strip(self, person_id: int, data: bytes) -> str:
        """Stage the strip of a person's best crops, as `write_webp` does an animation."""
        return self._stage_picture(f"person_{person_id}.crops.webp", data)

    def _stage_picture(self, name: str, data: bytes) -> str:
        relative = _WEBP / name
        self._stage(relative, data)
        return relative.relative_to(_VIEWER).as_posix()

    def prepare(self) -> None:
        """Stage what most pages need (4.5 MB) ahead of the report, while there is time.

        This may be left out, and may fail: `write_report` stages what is missing, and raises. Any
        thread may call it, but not beside `write_report`, `commit` or `abort`.
        """
        with contextlib.suppress(OSError, MachineError):
            self._stage_assets()

    def write_report(self, report: GalleryReport) -> None:
        """Stage the artifacts and the page; raises MachineError where the disk is full or fails."""
        try:
            for name, data in artifacts(report):
                self._stage(Path(name), data)
            unused = unused_assets(report)
            self._stage_assets(unused)
            for name in unused:
                (self._open_staging() / _VIEWER / name).unlink(missing_ok=True)
            self._stage(_VIEWER / PAGE_NAME, page_html(report))
        except OSError as error:
            raise MachineError(_could_not_write(self.path, error)) from error
        self._has_report = True

    def write_tracks(self, record: TrackRecord) -> None:
        """Stage the tracks that were found; raises MachineError where the disk is full or fails."""
        try:
            for name in TRACK_FILE_NAMES:
                self._stage(Path(name), b"")
                record.write(self._open_staging() / name)
        except OSError as error:
            raise MachineError(_could_not_write(self.path, error)) from error

    def write_decisions(self, decisions: bytes, not_carried: bytes) -> None:
        """Stage the decisions where they are not what the folder has, and add those that were lost.

        Raises UsageError where a review of the folder is open, which would go on with the old file.
        """
        path = self.path / DECISIONS_NAME
        try:
            if not path.exists() or path.read_bytes() != decisions:
                _refuse_if_locked(path)
                self._stage(Path(DECISIONS_NAME), decisions)
            if not_carried:
                kept = self.path / NOT_CARRIED_NAME
                earlier = kept.read_bytes() if kept.exists() else b""
                self._stage(Path(NOT_CARRIED_NAME), earlier + not_carried)
        except OSError as error:
            raise MachineError(_could_not_write(self.path, error)) from error

    def commit(self) -> None:
        """Move everything into place, then remove the other files of an earlier run.

        Only names that streamproc writes are removed. Raises MachineError where a file cannot be
        moved; those before it are in place then, and `abort` removes the rest. Raises RuntimeError
        without a report: a run that failed would remove what an earlier one found.
        """
        staging = self._open_staging()
        if not self._has_report:
            raise RuntimeError(f"{self!r}: write_report comes before commit")
        staged = sorted(path.relative_to(staging) for path in staging.rglob("*") if path.is_file())
        try:
            (self.path / _RUN_FILE).unlink(missing_ok=True)
            run_file_last = sorted(staged, key=lambda path: path.name == _RUN_FILE)
            for relative in run_file_last:
                self._make_folder((self.path / relative).parent)
                (staging / relative).replace(self.path / relative)
            self._remove_old_files(set(staged))
        except OSError as error:
            raise MachineError(_could_not_write(self.path, error)) from error
        self.abort()

    def abort(self) -> None:
        """Remove what was staged and unlock the directory; after `commit` it does nothing.

        A directory that was made for this run and is empty is removed as well.
        """
        if self._staging is None:
            return
        shutil.rmtree(self._staging, ignore_errors=True)
        self._staging = None
        if self._made:
            with contextlib.suppress(OSError):  # not empty: committed, or another's files
                self.path.rmdir()
        os.close(self._lock)

    def _stage_assets(self, unused: Sequence[str] = ()) -> None:
        for name, source in asset_files():
            if name not in unused and name not in self._assets:
                self._stage(_VIEWER / name, source.read_bytes())
                self._assets.add(name)

    def _stage(self, relative: Path, data: bytes) -> None:
        path = self._open_staging() / relative
        try:
            self._make_folder(path.parent)
            os.close(os.open(path, _NEW_FILE, self._file_mode))
            path.write_bytes(data)
        except BaseException:
            path.unlink(missing_ok=True)  # or commit would move a half file
            raise

    def _make_folder(self, folder: Path) -> None:
        """Make a folder and those above it, all with the same permissions."""
        if not folder.is_dir():
            self._make_folder(folder.parent)
            folder.mkdir(exist_ok=True, mode=self._folder_mode)

    def _open_staging(self) -> Path:
        if self._staging is None:
            raise RuntimeError(f"{self!r}: nothing can be written after commit or abort")
        return self._staging

    def _remove_stagings(self) -> None:
        for path in self.path.glob(f"{_STAGING_PREFIX}*"):
            shutil.rmtree(path)

    def _remove_old_files(self, staged: set[Path]) -> None:
        ours = set(_OUR_NAMES)
        for path in (self.path / _WEBP).glob("person_*.webp"):
            if _ANIMATION_NAME.fullmatch(path.name):
                ours.add(_WEBP / path.name)
        for relative in ours - staged:
            (self.path / relative).unlink(missing_ok=True)


def _locked_directory(path: Path, mode: int) -> int:
    """Make the directory if needed; return a file descriptor that holds an exclusive lock on it."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=mode)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError(
            f"{path}: expected a directory to write to, but it or a part of it is a file"
        ) from error
    except OSError as error:
        raise MachineError(_could_not_write(path, error)) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise UsageError(
            f"{path}: another run is writing there; wait for it or name another directory"
        ) from error
    except OSError as error:
        os.close(descriptor)
        raise MachineError(
            f"{path}: cannot be locked ({error.strerror}); name a directory on a local disk"
        ) from error
    return descriptor


def _refuse_if_locked(path: Path) -> None:
    """Raise UsageError where another process has a file of decisions open for writing."""
    if not path.exists():
        return
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                f"{path}: a review is open, and its decisions are about to change: end it first"
            ) from error


def _could_not_write(path: Path, error: OSError) -> str:
    where = error.filename or path
    return (
        f"{where}: cannot be written: {error.strerror or error}; "
        "make room or name another directory, then run again"
    )
