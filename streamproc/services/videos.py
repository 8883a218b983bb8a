"""From a `video-ready` or `tracks-ready` record to a video and its tracks as files."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeVar

from streamproc.errors import EventError
from streamproc.events import (
    TracksReady,
    TracksRef,
    VideoReady,
    check_submitted_at,
    timestamp_of,
)
from streamproc.kafka.records import time_ms_of
from streamproc.pipeline.job import VideoJob, crop_options
from streamproc.storage.media import MediaStoppedError
from streamproc.tracks import ReadOptions, tracks_from_file

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from streamproc.crops import CropOptions
    from streamproc.kafka.records import Record
    from streamproc.services.people import PeopleFinder
    from streamproc.settings import Settings
    from streamproc.storage.media import MediaAccess
    from streamproc.tracks import TracksFromFile, TrackSource

T = TypeVar("T")

_FETCHING = ThreadPoolExecutor(128, "fetch")
"""Its threads mostly wait. asyncio's own few would have videos wait for each other's servers."""
_LARGE_BYTES = 64 * 1024 * 1024
"""Files from this size on are hashed before it is their turn: that takes seconds."""
_CHUNK_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Request:
    """What a record asks for; what it leaves open is as in the settings."""

    event: VideoReady
    submitted_at: str
    submitted_at_ms: int
    options: CropOptions
    similarity_threshold: float
    time_limit_seconds: float
    animate: bool
    detect: bool | None
    """Whether people are found in the frames: always, never, or (None) without tracks."""

    @property
    def named_run_id(self) -> str | None:
        """The run that the event's tracks are of; None where they are of no run."""
        return self.event.run_id if isinstance(self.event, TracksReady) else None


def is_of_tracks_ready(record: Record, settings: Settings) -> bool:
    """Return whether a record is of `tracks-ready`."""
    return record.topic == settings.kafka.topic_prefix + TracksReady.topic


def read_request(record: Record, settings: Settings) -> Request:
    """Parse a record of `video-ready` or `tracks-ready`; raises EventError."""
    event_type = TracksReady if is_of_tracks_ready(record, settings) else VideoReady
    event = event_type.from_json(record.value or b"")
    asked = event.options
    detect = None if asked.detector is None else asked.detector.enabled
    if detect and event.tracks is not None and not isinstance(event, TracksReady):
        raise EventError("options.detector.enabled: expected this or `tracks`, got both")
    submitted_at = event.submitted_at
    if submitted_at is None:
        submitted_at_ms = time_ms_of(record)
        submitted_at = timestamp_of(submitted_at_ms)
    else:
        check_submitted_at(submitted_at)
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
        detect=detect,
    )


def event_of(record: Record) -> VideoReady | None:
    """Return the event of a `video-ready` record, None if it cannot be read."""
    try:
        return VideoReady.from_json(record.value or b"")
    except EventError:
        return None


async def tracks_ref_of(
    request: Request, media: MediaAccess, stop: asyncio.Event
) -> TracksRef | None:
    """Return the track file of a video: the one that is named, or else lies beside it.

    None: its people are to be found in its frames. Raises VideoError, MachineError and
    MediaStoppedError as `MediaAccess.find_tracks` does.
    """
    event = request.event
    if event.tracks is not None:
        return event.tracks
    if request.detect:
        return None

    def find(is_stopped: Callable[[], bool]) -> str | None:
        return media.find_tracks(event.video_uri, stop=is_stopped)

    beside = await _in_thread(find, stop)
    return None if beside is None else TracksRef(uri=beside)


@asynccontextmanager
async def open_job(
    request: Request,
    tracks_ref: TracksRef | None,
    media: MediaAccess,
    stop: asyncio.Event,
    finder: PeopleFinder | None = None,
) -> AsyncIterator[VideoJob]:
    """Fetch the video and its tracks, and give the job; copies are removed on leaving.

    `tracks_ref` is what `tracks_ref_of` gave; where it is None, `finder` finds people. Raises
    VideoError, TracksError or EventError for what cannot be used, MachineError for what may work
    later, and MediaStoppedError if `stop` was set while a file was fetched.
    """
    event = request.event
    async with AsyncExitStack() as stack:
        tracks: TrackSource
        keep_tracks = None
        if tracks_ref is None:
            assert finder is not None
            found = await stack.enter_async_context(finder.finding(request))
            tracks, keep_tracks = found.tracks, found.keep
        else:
            tracks = await stack.enter_async_context(_tracks_of(tracks_ref, media, stop))
        fetching = _fetched(
            media,
            event.video_uri,
            kind="video",
            sha256=event.video_sha256,
            size_bytes=event.video_size_bytes,
            stop=stop,
        )
        video_path = await stack.enter_async_context(fetching)
        # One that is announced was checked while the file was fetched.
        sha256 = event.video_sha256 and event.video_sha256.lower()
        if sha256 is None:
            sha256 = await _in_thread(partial(_hash_of, video_path), stop)
        yield VideoJob(
            path=video_path,
            sha256=sha256,
            video_id=event.video_id,
            gallery_id=event.gallery_id,
            tracks=tracks,
            submitted_at=request.submitted_at,
            options=request.options,
            similarity_threshold=request.similarity_threshold,
            recorded_at=event.recorded_at,
            camera_id=event.camera_id,
            named_run_id=request.named_run_id,
            keep_tracks=keep_tracks,
        )


@asynccontextmanager
async def _tracks_of(
    tracks: TracksRef, media: MediaAccess, stop: asyncio.Event
) -> AsyncIterator[TracksFromFile]:
    """Fetch a track file, and give what reads it."""
    async with _fetched(
        media,
        tracks.uri,
        kind="tracks",
        sha256=tracks.sha256,
        size_bytes=tracks.size_bytes,
        stop=stop,
    ) as tracks_path:
        yield tracks_from_file(
            tracks_path,
            ReadOptions.named_by(tracks),
        )


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

    def enter(is_stopped: Callable[[], bool]) -> tuple[AbstractContextManager[Path], Path]:
        manager = media.open(uri, kind=kind, sha256=sha256, size_bytes=size_bytes, stop=is_stopped)
        return manager, manager.__enter__()

    def leave(entered: tuple[AbstractContextManager[Path], Path]) -> None:
        entered[0].__exit__(None, None, None)

    entered = await _in_thread(enter, stop, undo=leave)
    try:
        yield entered[1]
    finally:
        loop = asyncio.get_running_loop()
        await asyncio.shield(loop.run_in_executor(_FETCHING, leave, entered))


async def _in_thread(
    work: Callable[[Callable[[], bool]], T],
    stop: asyncio.Event,
    undo: Callable[[T], None] = lambda _: None,
) -> T:
    """Do what may wait for a server or a disk; it asks whether it is to stop.

    If this is cancelled, it ends soon; `undo` then takes back what it has done all the same.
    """
    cancelled = threading.Event()
    loop = asyncio.get_running_loop()
    working = loop.run_in_executor(_FETCHING, work, lambda: cancelled.is_set() or stop.is_set())
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        cancelled.set()
        (done,) = await asyncio.gather(working, return_exceptions=True)
        if not isinstance(done, BaseException):
            await loop.run_in_executor(_FETCHING, undo, done)
        raise


def _hash_of(path: Path, is_stopped: Callable[[], bool]) -> str | None:
    """Return the sha256 of a large file, None for one that is hashed while it is opened."""
    if path.stat().st_size < _LARGE_BYTES:
        return None
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            if is_stopped():
                raise MediaStoppedError
            digest.update(chunk)
    return digest.hexdigest()
