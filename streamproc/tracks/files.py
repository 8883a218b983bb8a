"""Track files: one registry of formats, recognised by their content or named by the caller.

A new format is a module with a reader and one entry of `FORMATS`. A reader gives the boxes as the
file has them; what is wrong with them is judged in `table`, once for all formats.

Files come from anywhere, so only `child` calls `load_tracks` on those of users, in a process of its
own; see `reading`.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np

from streamproc.errors import TracksError
from streamproc.tracks.content import Content
from streamproc.tracks.problems import in_words
from streamproc.tracks.table import (
    MAX_BOXES,
    MAX_FRAME_NUMBER,
    MAX_FRAME_STRIDE,
    BoxTable,
    FlatTracks,
    corners,
    flat_tracks,
)
from streamproc.types import TrackSet

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from streamproc.events import TracksRef
    from streamproc.types import BoxLayout, TrackFormatName

_SHARE_OF_PICTURE = 1.5
"""Shares of the picture's size reach a little over 1 at its edges."""
_SHOWN_CLASSES = 5

TRACK_FILE_PATTERNS = (
    "{stem}.persons.npz",
    "{stem}.canonical_persons.npz",
    "{stem}.mot.txt",
    "canonical_persons.npz",
)
"""The names that are looked for beside a video, in this order; `{stem}` is its name, unended."""


class Reader(Protocol):
    """Reads a whole file. `object_class` keeps one class, where the format has classes."""

    def __call__(
        self, content: Content, problems: Counter[str], /, *, object_class: int | str | None
    ) -> BoxTable:
        """Return the boxes; count what is left out in `problems`. Raises TracksError."""
        ...


@dataclass(frozen=True, slots=True)
class TrackFormat:
    """One format, by the name that events and flags use for it.

    `module` of this package has the functions `recogniser`, which takes a `Content` and says
    whether it is of this format, and `reader`. It is imported when it is asked for: most files are
    of the first formats, and each file is read by a process that has to import what it needs.
    """

    name: TrackFormatName
    module: str
    reader: str
    recogniser: str | None

    def recognises(self, content: Content) -> bool:
        """Return whether the file is of this format; never, if there is nothing to tell it by."""
        return self.recogniser is not None and bool(self._function(self.recogniser)(content))

    @property
    def read(self) -> Reader:
        """The function that reads a whole file."""
        return cast("Reader", self._function(self.reader))

    def _function(self, name: str) -> Callable[..., object]:
        module = import_module(f"streamproc.tracks.{self.module}")
        return cast("Callable[..., object]", getattr(module, name))


# Asked in this order; the first that recognises a file reads it.
FORMATS = (
    TrackFormat("canonical-persons", "npz", "read_canonical", "is_canonical"),
    TrackFormat("streamproc", "npz", "read_streamproc", "is_npz"),
    TrackFormat("deepstream-kitti", "kitti", "read_deepstream", "is_deepstream"),
    TrackFormat("ultralytics", "ultralytics", "read", "is_labels"),
    TrackFormat("ultralytics-ids", "ultralytics", "read_ids", None),
    TrackFormat("cvat-video", "cvat", "read", "is_cvat"),
    TrackFormat("supervision-json", "supervision", "read_json", "is_json"),
    TrackFormat("coco-vid", "coco", "read", "is_coco"),
    TrackFormat("dive-json", "dive", "read_json", "is_json"),
    TrackFormat("supervision-csv", "supervision", "read_csv", "is_csv"),
    TrackFormat("viame-csv", "dive", "read_viame", "is_viame"),
    TrackFormat("kitti-tracking", "kitti", "read_tracking", "is_tracking"),
    TrackFormat("mot", "mot", "read", "is_text"),
)


def format_named(name: str) -> TrackFormat:
    """Return the format of this name. Raises TracksError that lists the known ones."""
    for track_format in FORMATS:
        if track_format.name == name:
            return track_format
    known = ", ".join(track_format.name for track_format in FORMATS)
    raise TracksError(f"expected a format of tracks among {known}, got {name!r:.80}")


def recognise(content: Content) -> TrackFormat:
    """Return the format of a file or folder by its content. Raises TracksError."""
    for track_format in FORMATS:
        if track_format.recognises(content):
            return track_format
    raise TracksError(
        f"{content.path}: the format of its tracks is not recognised: name it with --tracks-format "
        "(in an event: tracks.format)"
    )


def track_files_beside(video: Path) -> tuple[Path, ...]:
    """Return where the tracks of a video are looked for, in this order."""
    return tuple(video.with_name(name.format(stem=video.stem)) for name in TRACK_FILE_PATTERNS)


def find_track_file(video: Path) -> Path | None:
    """Return the first track file that lies beside a video, or None."""
    for path in track_files_beside(video):
        if path.is_file():
            return path
    return None


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How a track file is read; None takes what the file or its format says.

    Frame indices are `(number - first_frame_number) * frame_stride`. `object_class` keeps one
    class, by number or name. `boxes` says what a box's four numbers are, `is_normalised` that they
    are shares of the picture's size.
    """

    first_frame_number: int | None = None
    frame_stride: int | None = None
    object_class: int | str | None = None
    format_name: str | None = None
    boxes: BoxLayout | None = None
    is_normalised: bool | None = None

    @classmethod
    def named_by(cls, ref: TracksRef) -> ReadOptions:
        """Return what an event says of its track file."""
        return cls(
            first_frame_number=ref.first_frame_number,
            frame_stride=ref.frame_stride,
            object_class=ref.object_class,
            format_name=ref.format,
            boxes=ref.boxes,
            is_normalised=ref.normalised,
        )

    def identity(self, sha256: str) -> str:
        """Return what stands for a file that was read so: its hash alone where nothing is asked."""
        asked = {name: value for name, value in asdict(self).items() if value is not None}
        if not asked:
            return sha256
        text = json.dumps([sha256, asked], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """What was read of a track file, as arrays."""

    tracks: FlatTracks
    problems: Counter[str]
    hints: tuple[str, ...]
    sha256: str
    is_normalised: bool

    def track_set(self, path: Path, options: ReadOptions) -> TrackSet:
        """Return it as tracks."""
        return TrackSet(
            self.tracks.split(),
            self.problems,
            self.hints,
            source=str(path),
            sha256=self.sha256,
            identity=options.identity(self.sha256),
            is_normalised=self.is_normalised,
        )


def load_tracks(
    path: Path,
    *,
    first_frame_number: int | None = None,
    frame_stride: int | None = None,
    object_class: int | str | None = None,
    format_name: str | None = None,
    boxes: BoxLayout | None = None,
    is_normalised: bool | None = None,
) -> TrackSet:
    """Read a track file in this process, for files that are trusted; see `ReadOptions`.

    Raises TracksError, also where the file has boxes and none is left.
    """
    options = ReadOptions(
        first_frame_number, frame_stride, object_class, format_name, boxes, is_normalised
    )
    return load(path, options).track_set(path, options)


def load(path: Path, options: ReadOptions) -> Loaded:
    """Read a track file or folder, as `load_tracks` does."""
    if not path.is_file() and not path.is_dir():
        found = "a device or a pipe" if path.exists() else "nothing"
        raise TracksError(f"{path}: expected a track file, found {found} there")
    content = Content(path)
    problems: Counter[str] = Counter()
    name = options.format_name
    if content.is_folder and not content.files:
        raise TracksError(f"{path}: expected a folder of track files, it has no .txt files")
    track_format = recognise(content) if name is None else format_named(name)
    if name is not None and not content.is_folder and _reads_folders(track_format):
        raise TracksError(f"{path}: expected a folder for the format {name}, got a file")
    table = track_format.read(content, problems, object_class=options.object_class)
    table = _as_asked(table, options)
    first_frame_number, frame_stride = _numbering(table, options, path)
    if len(table.person_ids) > MAX_BOXES:
        raise TracksError(f"{path}: it holds more than {MAX_BOXES:,} boxes")
    row_count = len(table.person_ids) + problems.total()
    _refuse_shares_of_pixels(table, path)
    tracks = flat_tracks(table, first_frame_number, frame_stride, problems)
    hints = _hints(table, problems, row_count)
    if row_count and not len(tracks.person_ids):
        reason = "; ".join([in_words(problems), *hints])
        raise TracksError(f"{path}: no box is left of {row_count}: {reason}")
    return Loaded(tracks, problems, tuple(hints), content.sha256(), table.is_normalised)


def _reads_folders(track_format: TrackFormat) -> bool:
    return track_format.name in ("ultralytics", "ultralytics-ids", "deepstream-kitti")


def _as_asked(table: BoxTable, options: ReadOptions) -> BoxTable:
    return BoxTable(
        table.person_ids,
        table.frame_numbers,
        table.boxes,
        table.confidences,
        table.first_frame_number,
        table.frame_stride,
        options.boxes or table.layout,
        table.is_normalised if options.is_normalised is None else options.is_normalised,
        table.classes,
    )


def _numbering(table: BoxTable, options: ReadOptions, path: Path) -> tuple[int, int]:
    """Return the first frame's number and the stride, of the options or the file."""
    first = options.first_frame_number
    first = table.first_frame_number if first is None else first
    stride = options.frame_stride
    stride = table.frame_stride if stride is None else stride
    if not -MAX_FRAME_NUMBER <= first <= MAX_FRAME_NUMBER:
        raise TracksError(
            f"{path}: expected a number of the first frame within {MAX_FRAME_NUMBER}, "
            f"got {first:.3e}"
        )
    if not 1 <= stride <= MAX_FRAME_STRIDE:
        raise TracksError(
            f"{path}: expected a frame stride from 1 to {MAX_FRAME_STRIDE}, got {stride}"
        )
    return first, stride


def _refuse_shares_of_pixels(table: BoxTable, path: Path) -> None:
    if table.is_normalised or not len(table.boxes):
        return
    numbers = np.asarray(table.boxes, np.float64)
    numbers = numbers[np.isfinite(numbers)]
    small = len(numbers) and (np.abs(numbers) <= _SHARE_OF_PICTURE).all()
    if small and not (numbers == np.floor(numbers)).all():
        raise TracksError(
            f"{path}: the boxes look normalised, as shares of the picture's size: no number is "
            f"above {_SHARE_OF_PICTURE}: if they are, say --normalised, and with --boxes whether "
            "they are xywh, cxcywh or xyxy"
        )


def _hints(table: BoxTable, problems: Counter[str], row_count: int) -> list[str]:
    hints = []
    if table.layout == "xyxy" and problems["boxes-empty"] > row_count / 2:
        as_sizes = corners(table.boxes, "xywh")
        if (as_sizes[:, 2:] > as_sizes[:, :2]).all(axis=1).mean() > 0.5:  # noqa: PLR2004 - most
            hints.append(
                "most boxes end before they begin: they may be left, top, width and height, "
                "try --boxes xywh"
            )
    if problems["frames-before-video"]:
        hints.append(
            "some frame numbers lie before the first one: the file may start at 0, "
            "try --first-frame-number 0"
        )
    if table.classes is not None and len(table.classes) > 1:
        counts = ", ".join(
            f"{name or 'without a name'} {count}"
            for name, count in table.classes.most_common(_SHOWN_CLASSES)
        )
        if not problems["boxes-other-class"]:
            hints.append(f"it has boxes of several classes ({counts}): --class keeps one of them")
    return hints
