"""Track files: one registry of formats, recognised by their content or named by the caller.

A new format is a module with a reader and one entry of `FORMATS`. A reader gives the boxes as the
file has them; what is wrong with them is judged in `table`, once for all formats.
"""

from __future__ import annotations

import zipfile
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from streamproc.errors import TracksError
from streamproc.files import sha256_of
from streamproc.tracks import mot, npz
from streamproc.tracks.table import tracks_of
from streamproc.types import TrackSet

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from streamproc.tracks.table import BoxTable

_HEAD_BYTES = 4096
_ZIP_SIGNATURE = b"PK\x03\x04"

TRACK_FILE_PATTERNS = (
    "{stem}.persons.npz",
    "{stem}.canonical_persons.npz",
    "{stem}.mot.txt",
    "canonical_persons.npz",
)
"""The names that are looked for beside a video, in this order; `{stem}` is its name, unended."""


@dataclass(frozen=True, slots=True)
class Content:
    """What a format is recognised by: the file's name, its first bytes, the members of a zip."""

    name: str
    head: bytes
    members: tuple[str, ...]


class Reader(Protocol):
    """Reads a whole file. `object_class` keeps one class, where the format has classes."""

    def __call__(
        self, path: Path, problems: Counter[str], /, *, object_class: int | None
    ) -> BoxTable:
        """Return the boxes; count what is left out in `problems`. Raises TracksError."""
        ...


@dataclass(frozen=True, slots=True)
class TrackFormat:
    """One format, by the name that events use for it."""

    name: str
    recognises: Callable[[Content], bool]
    read: Reader


def _is_canonical(content: Content) -> bool:
    return "persons.npy" in content.members


def _is_npz(content: Content) -> bool:
    return content.head.startswith(_ZIP_SIGNATURE) or content.name.lower().endswith(".npz")


def _is_text(content: Content) -> bool:
    return not _is_npz(content)


# Asked in this order; the first that recognises a file reads it.
FORMATS = (
    TrackFormat("canonical-persons", _is_canonical, npz.read_canonical),
    TrackFormat("streamproc", _is_npz, npz.read_streamproc),
    TrackFormat("mot", _is_text, mot.read),
)


def format_named(name: str) -> TrackFormat:
    """Return the format of this name. Raises TracksError that lists the known ones."""
    for track_format in FORMATS:
        if track_format.name == name:
            return track_format
    known = ", ".join(track_format.name for track_format in FORMATS)
    raise TracksError(f"expected a format of tracks among {known}, got {name!r}")


def recognise(path: Path) -> TrackFormat:
    """Return the format of a file by its content. Raises TracksError."""
    content = _content_of(path)
    for track_format in FORMATS:
        if track_format.recognises(content):
            return track_format
    raise TracksError(f"{path}: its format is not recognised: name it with `format`")


def _content_of(path: Path) -> Content:
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    members: tuple[str, ...] = ()
    if head.startswith(_ZIP_SIGNATURE):
        try:
            with zipfile.ZipFile(path) as archive:
                members = tuple(archive.namelist())
        except (zipfile.BadZipFile, NotImplementedError):
            pass  # the reader of npz files says what is wrong with it
    return Content(path.name, head, members)


def track_files_beside(video: Path) -> tuple[Path, ...]:
    """Return where the tracks of a video are looked for, in this order."""
    return tuple(video.with_name(name.format(stem=video.stem)) for name in TRACK_FILE_PATTERNS)


def find_track_file(video: Path) -> Path | None:
    """Return the first track file that lies beside a video, or None."""
    for path in track_files_beside(video):
        if path.is_file():
            return path
    return None


def load_tracks(
    path: Path,
    *,
    first_frame_number: int | None = None,
    frame_stride: int | None = None,
    object_class: int | None = None,
    format_name: str | None = None,
) -> TrackSet:
    """Read a track file; frame indices are `(number - first_frame_number) * frame_stride`.

    None takes what the format says: MOT starts at 1, canonical_persons at 0, streamproc's npz says
    so itself. `object_class` keeps one class, where the format has classes. `format_name` forces a
    format; None recognises it by the content. Raises TracksError.
    """
    if not path.is_file():
        found = "a directory" if path.is_dir() else "nothing"
        raise TracksError(f"{path}: expected a track file, found {found} there")
    problems: Counter[str] = Counter()
    track_format = recognise(path) if format_name is None else format_named(format_name)
    table = track_format.read(path, problems, object_class=object_class)
    if first_frame_number is None:
        first_frame_number = table.first_frame_number
    if frame_stride is None:
        frame_stride = table.frame_stride
    tracks = tracks_of(table, first_frame_number, frame_stride, problems)
    return TrackSet(tuple(tracks), problems, source=str(path), sha256=sha256_of(path))
