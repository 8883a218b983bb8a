"""From a `video-ready` record to a video and its tracks as files, for worker and animator."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Literal

from streamproc.errors import EventError, TracksError
from streamproc.events import TracksRef, VideoReady, timestamp_of
from streamproc.kafka.records import time_ms_of
from streamproc.pipeline.job import VideoJob, crop_options
from streamproc.shown import shown
from streamproc.tracks import TRACK_FILE_PATTERNS, ReadOptions, tracks_from_file

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from streamproc.crops import CropOptions
    from streamproc.kafka.records import Record
    from streamproc.settings import Settings
    from streamproc.storage.media import MediaAccess


@dataclass(frozen=True, slots=True)
class Request:
    """What a `video-ready` record asks for; what it leaves open is as in the settings."""

    event: VideoReady
    submitted_at: str
    submitted_at_ms: int
    options: CropOptions
    similarity_threshold: float
    time_limit_seconds: float
    animate: bool


def read_request(record: Record, settings: Settings) -> Request:
    """Parse a record of `video-ready`; raises EventError."""
    event = VideoReady.from_json(record.value or b"")
    asked = event.options
    submitted_at = event.submitted_at
    if submitted_at is None:
        submitted_at_ms = time_ms_of(record)
        submitted_at = timestamp_of(submitted_at_ms)
    else:
        submitted_at_ms = int(datetime.fromisoformat(submitted_at).timestamp() * 1000)
    similarity_threshold = asked.similarity_threshold
    if similarity_threshold is None:
        similarity_threshold = settings.clustering.similarity_threshold
    time_limit_seconds = settings.jobs.time_limit_seconds
    if asked.time_limit_seconds is not None:
        time_limit_seconds = min(asked.time_limit_seconds, time_limit_seconds)
    return Request(
        event=event,
        submitted_at=submitted_at,
        submitted_at_ms=submitted_at_ms,
        options=crop_options(settings, asked),
        similarity_threshold=similarity_threshold,
        time_limit_seconds=time_limit_seconds,
        animate=settings.animate and asked.animate is not False,
    )


def event_of(record: Record) -> VideoReady | None:
    """Return the event of a `video-ready` record, None if it cannot be read."""
    try:
        return VideoReady.from_json(record.value or b"")
    except EventError:
        return None


@asynccontextmanager
async def open_job(
    request: Request, media: MediaAccess, stop: asyncio.Event
) -> AsyncIterator[VideoJob]:
    """Fetch the video and its tracks, and give the job; copies are removed on leaving.

    Raises VideoError, TracksError or EventError for what cannot be used, MachineError for what may
    work later, and MediaStoppedError if `stop` was set while a file was fetched.
    """
    event = request.event
    tracks = event.tracks or await _tracks_beside(event.video_uri, media)
    async with (
        _fetched(
            media,
            tracks.uri,
            kind="tracks",
            sha256=tracks.sha256,
            size_bytes=tracks.size_bytes,
            stop=stop,
        ) as tracks_path,
        _fetched(
            media,
            event.video_uri,
            kind="video",
            sha256=event.video_sha256,
            size_bytes=event.video_size_bytes,
            stop=stop,
        ) as video_path,
    ):
        yield VideoJob(
            path=video_path,
            # Checked while the file was fetched, so it needs not be computed again.
            sha256=None if event.video_sha256 is None else event.video_sha256.lower(),
            video_id=event.video_id,
            gallery_id=event.gallery_id,
            tracks=tracks_from_file(
                tracks_path,
                ReadOptions(
                    first_frame_number=tracks.first_frame_number,
                    frame_stride=tracks.frame_stride,
                    format_name=tracks.format,
                    boxes=tracks.boxes,
                    is_normalised=tracks.normalised,
                ),
            ),
            submitted_at=request.submitted_at,
            options=request.options,
            similarity_threshold=request.similarity_threshold,
            recorded_at=event.recorded_at,
            camera_id=event.camera_id,
        )


async def _tracks_beside(video_uri: str, media: MediaAccess) -> TracksRef:
    found = await asyncio.to_thread(media.find_tracks, video_uri)
    if found is None:
        names = ", ".join(pattern.format(stem="NAME") for pattern in TRACK_FILE_PATTERNS)
        raise TracksError(
            f"{shown(video_uri)}: no tracks found beside it: expected one of {names} there, "
            "or `tracks` in the event"
        )
    return TracksRef(uri=found)


@asynccontextmanager
async def _fetched(
    media: MediaAccess,
    uri: str,
    *,
    kind: Literal["video", "tracks"],
    sha256: str | None,
    size_bytes: int | None,
    stop: asyncio.Event,
) -> AsyncIterator[Path]:
    """`MediaAccess.open` in a thread; if the wait is cancelled, the download ends as well."""
    cancelled = threading.Event()
    manager = media.open(
        uri,
        kind=kind,
        sha256=sha256,
        size_bytes=size_bytes,
        stop=lambda: cancelled.is_set() or stop.is_set(),
    )
    entering = asyncio.ensure_future(asyncio.to_thread(manager.__enter__))
    try:
        path = await asyncio.shield(entering)
    except asyncio.CancelledError:
        cancelled.set()
        (entered,) = await asyncio.gather(entering, return_exceptions=True)
        if not isinstance(entered, BaseException):
            # The file was there already: remove the copy.
            await asyncio.to_thread(manager.__exit__, None, None, None)
        raise
    try:
        yield path
    finally:
        await asyncio.shield(asyncio.to_thread(manager.__exit__, None, None, None))
