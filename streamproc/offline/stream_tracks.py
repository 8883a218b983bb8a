"""The tracks of a stream's videos, read again as their `video-ready` named them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from streamproc.errors import InputError, MachineError
from streamproc.tracks import ReadOptions, read_tracks

if TYPE_CHECKING:
    from pathlib import Path

    from streamproc.events import TracksReady, VideoReady
    from streamproc.storage.media import MediaAccess
    from streamproc.types import Track


@dataclass(frozen=True, slots=True, eq=False)
class StreamTracks:
    """The tracks of one video; `path` is the file that they are in, where it is a local one.

    `missing` says why they cannot be had, "" where they are there.
    """

    video_id: str
    name: str
    tracks: tuple[Track, ...] = ()
    path: Path | None = None
    missing: str = ""


def tracks_of_video(
    media: MediaAccess, event: VideoReady, found: TracksReady | None
) -> StreamTracks:
    """Read the tracks of a video: of the file that its event names, or that lies beside it.

    Where there is none, those that a worker `found` in it.
    """
    name = event.video_uri.partition("?")[0].rstrip("/").rpartition("/")[2].rpartition(".")[0]
    video_id = event.video_id
    try:
        return _read(media, event, found, name or video_id)
    except (InputError, MachineError) as error:
        return StreamTracks(video_id, name or video_id, missing=str(error))


def _read(
    media: MediaAccess, event: VideoReady, found: TracksReady | None, name: str
) -> StreamTracks:
    named = event.tracks
    uri = media.find_tracks(event.video_uri) if named is None else named.uri
    if uri is None and found is not None:
        named = found.tracks
        uri = named.uri
    if uri is None:
        text = "they were found in its frames, and are in no file"
        return StreamTracks(event.video_id, name, missing=text)
    options = None if named is None else ReadOptions.named_by(named)
    sha256 = None if named is None else named.sha256
    with media.open(uri, kind="tracks", stop=lambda: False, sha256=sha256) as path:
        content = read_tracks(path, options)
    if content.is_normalised:
        text = "their boxes are shares of a picture whose size is not known here"
        return StreamTracks(event.video_id, name, missing=text)
    return StreamTracks(event.video_id, name, content.tracks, path if path.exists() else None)
