"""The videos of a replay with their tracks: found, and read while the rest is imported.

Nothing here imports the network's or the decoder's libraries, which take longer to import than
most track files take to read.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from streamproc.errors import TracksError, UsageError, VideoError
from streamproc.ids import video_id_of
from streamproc.tracks import ReadOptions, TracksFromFile, find_track_file, tracks_from_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


@dataclass(frozen=True, slots=True, eq=False)
class ReplaySource:
    """One video to replay, with its tracks; `options` say how their file is read.

    `tracks` and `tracks_path` are None where the tracks are to be found in the frames.
    """

    path: Path
    tracks_path: Path | None
    tracks: TracksFromFile | None
    video_id: str
    options: ReadOptions


def find_sources(
    videos: Sequence[Path],
    persons: Sequence[Path],
    options: ReadOptions | None = None,
    *,
    detect: bool = False,
) -> list[ReplaySource]:
    """Return the videos with their tracks and ids.

    `persons` are the track files, one for each video; where there are none, they are looked for
    beside the videos, unless people are to be found in the frames all the same (`detect`).
    `options` say how the files are read. Raises VideoError or UsageError.
    """
    if detect and persons:
        raise UsageError("expected --detect or --persons, got both")
    if persons and len(persons) != len(videos):
        raise UsageError(
            f"expected one --persons for each of the {len(videos)} videos, got {len(persons)}"
        )
    options = options or ReadOptions()
    names = Counter(video.name for video in videos)
    sources = []
    for i, video in enumerate(videos):
        _check_is_file(video)
        tracks_path = persons[i] if persons else None
        if tracks_path is None and not detect:
            tracks_path = find_track_file(video)
        tracks = None if tracks_path is None else tracks_from_file(tracks_path, options)
        # Two files of one name are told apart by their paths.
        uri = video.name if names[video.name] == 1 else video.as_posix()
        sources.append(ReplaySource(video, tracks_path, tracks, video_id_of(uri), options))
    if len({source.video_id for source in sources}) != len(sources):
        raise UsageError("a video is named twice: name each once")
    return sources


def _check_is_file(video: Path) -> None:
    if not video.is_file():
        found = "a directory" if video.is_dir() else "nothing"
        raise VideoError(f"{video}: expected a video file, found {found} there")


def require_tracks(sources: Sequence[ReplaySource]) -> None:
    """Raise TracksError for a video without tracks: nobody may look for people in it."""
    for source in sources:
        video = source.path
        if source.tracks is None:
            raise TracksError(
                f"{video}: no tracks found beside it: expected {video.stem}.persons.npz, "
                f"{video.stem}.mot.txt or canonical_persons.npz there, or --persons FILE"
            )


@contextmanager
def read_ahead(sources: Sequence[ReplaySource]) -> Iterator[None]:
    """Read the first video's tracks while the body runs; end the reading that is left after it."""
    tracks = sources[0].tracks
    if tracks is None:
        yield
        return
    tracks.begin()
    try:
        yield
    finally:
        tracks.close()
