"""From a `video-ready` record to a video and its tracks on this machine's disk: what worker and animator both need."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Literal

from streamproc.crops import CropOptions
from streamproc.errors import EventError, TracksError
from streamproc.events import TracksRef, VideoReady
from streamproc.kafka.connection import patiently
from streamproc.pipeline.job import VideoJob
from streamproc.tracks import load_tracks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from streamproc.kafka.cancellations import Cancellations
    from streamproc.kafka.long_jobs import LongJobs
    from streamproc.kafka.records import Record
    from streamproc.settings import Settings
    from streamproc.storage.media import MediaAccess


@dataclass(frozen=True, slots=True)
class Request:
    """What a `video-ready` record asks for, with this service's settings where it leaves something open."""

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
    if event.submitted_at is None:
        submitted_ms = record.timestamp
        submitted_at = datetime.fromtimestamp(submitted_ms / 1000, UTC).isoformat(
            timespec="milliseconds"
        )
        submitted_at = submitted_at.replace("+00:00", "Z")
    else:
        submitted_at = event.submitted_at
        submitted_ms = int(datetime.fromisoformat(submitted_at).timestamp() * 1000)
    options = CropOptions(
        crops_per_person=_either(asked.crops_per_person, settings.crops_per_person),
        crops_embedded=_either(asked.crops_embedded, settings.clustering.num_best_crops),
        min_track_frames=_either(asked.min_track_frames, settings.min_track_frames),
        top_persons=_either(asked.top_persons, settings.top_persons),
    )
    threshold = asked.similarity_threshold
    return Request(
        event=event,
        submitted_at=submitted_at,
        submitted_at_ms=submitted_ms,
        options=options,
        similarity_threshold=settings.clustering.similarity_threshold
        if threshold is None
        else threshold,
        time_limit_seconds=min(
            asked.time_limit_seconds or float("inf"), settings.jobs.time_limit_seconds
        ),
        animate=settings.animate and asked.animate is not False,
    )


def _either(asked: int | None, default: int) -> int:
    return default if asked is None else asked


@asynccontextmanager
async def open_job(
    request: Request, media: MediaAccess, stop: asyncio.Event
) -> AsyncIterator[VideoJob]:
    """Fetch the video and its tracks and make the job; remote files are deleted at the end.

    Raises VideoError, TracksError or EventError for what cannot be used, MachineError for what may
    come later, and MediaStopped where `stop` was set while something was fetched.
    """
    event = request.event
    tracks = event.tracks
    if tracks is None:
        beside = await asyncio.to_thread(media.find_tracks, event.video_uri)
        if beside is None:
            raise TracksError(
                f"{event.video_uri}: no tracks found beside it: expected NAME.persons.npz, NAME.mot.txt or "
                "canonical_persons.npz there, or `tracks` in the event"
            )
        tracks = TracksRef(uri=beside)
    async with (
        _fetched(
            media, tracks.uri, "tracks", tracks.sha256, tracks.size_bytes, stop
        ) as tracks_path,
        _fetched(
            media, event.video_uri, "video", event.video_sha256, event.video_size_bytes, stop
        ) as video_path,
    ):
        yield VideoJob(
            path=video_path,
            video_id=event.video_id,
            gallery_id=event.gallery_id,
            load_tracks=partial(
                load_tracks,
                tracks_path,
                first_frame_number=tracks.first_frame_number,
                frame_stride=tracks.frame_stride,
                is_npz=None if tracks.format is None else tracks.format != "mot",
            ),
            submitted_at=request.submitted_at,
            options=request.options,
            similarity_threshold=request.similarity_threshold,
            recorded_at=event.recorded_at,
            camera_id=event.camera_id,
        )


@asynccontextmanager
async def _fetched(
    media: MediaAccess,
    uri: str,
    kind: Literal["video", "tracks"],
    sha256: str | None,
    size_bytes: int | None,
    stop: asyncio.Event,
) -> AsyncIterator[Path]:
    """`MediaAccess.open` in a thread; a cancelled wait ends the download as well, and leaves no file."""
    given_up = threading.Event()
    manager = media.open(
        uri,
        kind=kind,
        sha256=sha256,
        size_bytes=size_bytes,
        stop=lambda: given_up.is_set() or stop.is_set(),
    )
    entering = asyncio.ensure_future(asyncio.to_thread(manager.__enter__))
    try:
        path = await asyncio.shield(entering)
    except asyncio.CancelledError:
        given_up.set()
        if not isinstance(
            (await asyncio.gather(entering, return_exceptions=True))[0], BaseException
        ):
            await asyncio.to_thread(manager.__exit__, None, None, None)
        raise
    try:
        yield path
    finally:
        await asyncio.shield(asyncio.to_thread(manager.__exit__, None, None, None))


async def take_videos(stop: asyncio.Event, cancellations: Cancellations, jobs: LongJobs) -> None:
    """Work through `video-ready` until `stop`, knowing what was cancelled before the first video is begun.

    A fault of Kafka is waited out; anything else that ends one of the two ends both.
    """
    async with asyncio.TaskGroup() as group:
        beside = [
            group.create_task(patiently(stop, "video-cancel", cancellations.run)),
            group.create_task(cancellations.caught_up.wait()),
            group.create_task(stop.wait()),
        ]
        await asyncio.wait(beside[1:], return_when=asyncio.FIRST_COMPLETED)
        await patiently(stop, "video-ready", jobs.run)
        for task in beside:
            task.cancel()


def announced_by(record: Record) -> VideoReady | None:
    """The event of a record, None where it cannot be read."""
    try:
        return VideoReady.from_json(record.value or b"")
    except EventError:
        return None
