"""Finds people in videos that have no tracks, for the worker, and keeps the tracks for others."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from streamproc.errors import TracksError
from streamproc.events import TracksReady, TracksRef, now
from streamproc.kafka.client import found_tracks_of
from streamproc.pipeline.resources import (
    check_detector_device,
    finding_options,
    load_detector,
    settings_as_asked,
)
from streamproc.services.forgotten_files import RecentRuns, persons_by_video, written_until
from streamproc.shown import shown
from streamproc.storage.found_tracks import TrackStore
from streamproc.storage.outputs import StoredFile
from streamproc.tracks import TRACK_FILE_PATTERNS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from streamproc.events import Forgotten
    from streamproc.services.videos import Request
    from streamproc.settings import Settings
    from streamproc.tracks import TracksFound
    from streamproc.tracks.detection.detector import Detector
    from streamproc.tracks.detection.record import TrackRecord

Publish: TypeAlias = "Callable[[TracksReady], Awaitable[None]]"


@dataclass(frozen=True, slots=True, eq=False)
class Finding:
    """The tracks of one video as they are found; `keep` takes the run's id when all are there."""

    tracks: TracksFound
    keep: Callable[[str], Awaitable[None]]


class PeopleFinder:
    """Finds the tracks of videos that have none. Used by one event loop.

    A detector is loaded for the first video that needs it, as most streams have none. What was
    found is written to `detector.output_uri` and announced by `publish`. Raises UsageError if that
    place is invalid or needs a package that is not installed.
    """

    def __init__(self, settings: Settings, publish: Publish) -> None:
        self._settings = settings
        self._publish = publish
        self._detectors: dict[str | None, Detector] = {}  # by the name or file of the settings
        self._loading = asyncio.Lock()
        self._recent = RecentRuns()
        self.store = TrackStore(
            settings.detector.output_uri or str(settings.media_root / "tracks"),
            media_root=settings.media_root,
            s3_endpoint_url=settings.remote.s3_endpoint_url,
        )

    def check(self) -> None:
        """Raise UsageError if tracks are to be found, and cannot be or cannot be written."""
        if self._settings.detector.enabled:
            check_detector_device(self._settings)
            self.store.check()

    @asynccontextmanager
    async def finding(self, request: Request) -> AsyncIterator[Finding]:
        """Give the tracks of a video as they are found while it is decoded.

        Raises TracksError where nobody may look for people, WeightsError for a bad detector,
        EventError for one that is no known name.
        """
        from streamproc.tracks.detection.found import tracks_found
        from streamproc.tracks.detection.record import TrackRecord

        self._check_enabled(request)
        settings = settings_as_asked(self._settings, request.event.options)
        detector = await self._detector_of(settings)
        record = TrackRecord()

        async def keep(run_id: str) -> None:
            await self._keep(request, record, run_id)

        try:
            yield Finding(tracks_found(detector, finding_options(settings), record), keep)
        finally:
            record.close()

    def _check_enabled(self, request: Request) -> None:
        name = shown(request.event.video_uri)
        if request.detect and not self._settings.detector.enabled:
            raise TracksError(
                f"{name}: its people are to be found in its frames, but detector.enabled is false "
                "here: name its tracks in the event"
            )
        if request.detect is False or not self._settings.detector.enabled:
            names = ", ".join(pattern.format(stem="NAME") for pattern in TRACK_FILE_PATTERNS)
            raise TracksError(
                f"{name}: no tracks found beside it: expected one of {names} there, or `tracks` "
                "in the event"
            )

    async def _detector_of(self, settings: Settings) -> Detector:
        wanted = settings.detector
        async with self._loading:
            if wanted.model not in self._detectors:
                loaded = await asyncio.to_thread(load_detector, settings)
                self._detectors[wanted.model] = loaded
        return self._detectors[wanted.model].adjusted(
            min_confidence=wanted.min_confidence, longest_px=wanted.input_size
        )

    async def _keep(self, request: Request, record: TrackRecord, run_id: str) -> None:
        """Write the tracks, then announce them: whoever hears of them finds them."""
        event = request.event
        stored = await asyncio.to_thread(self.store.write, event.video_id, run_id, record.write_npz)
        self._recent.add(event.video_id, run_id, request.submitted_at_ms)
        left = await asyncio.to_thread(
            self.store.leave_out, event.video_id, run_id, request.submitted_at_ms
        )
        if isinstance(left, StoredFile):
            stored = left
        elif left.everybody:
            return  # nobody is left whose tracks could be announced
        tracks = TracksRef(
            uri=stored.uri,
            format="streamproc",
            sha256=stored.sha256,
            size_bytes=stored.size_bytes,
        )
        said = {name: value for name, value in dict(event).items() if name not in _OF_EVERY_EVENT}
        given = {"run_id": run_id, "tracks": tracks, "submitted_at": request.submitted_at}
        await self._publish(TracksReady.make(**said | given))

    async def forget(self, event: Forgotten, at_ms: int) -> None:
        """Take who is forgotten out of the tracks that were found, and announce the others anew.

        Raises MachineError if the disk, the store or Kafka fails.
        """
        until = written_until(at_ms)
        for video_id, persons in persons_by_video(event).items():
            written = await asyncio.to_thread(
                self.store.forget,
                video_id,
                persons,
                at_ms=at_ms,
                written_until=until,
                runs_come=self._settings.detector.enabled,
            )
            for run_id, submitted_at_ms in self._recent.of(video_id):
                left = await asyncio.to_thread(
                    self.store.leave_out, video_id, run_id, submitted_at_ms
                )
                written += [left] if isinstance(left, StoredFile) else []
            if written:
                await self._announce_anew(video_id, {stored.uri: stored for stored in written})

    async def _announce_anew(self, video_id: str, written: Mapping[str, StoredFile]) -> None:
        """Say the hash and size of files that were written anew; nobody need animate them again."""
        for event in await found_tracks_of(self._settings, video_id):
            stored = written.get(event.tracks.uri)
            if stored is not None:
                said = {"sha256": stored.sha256, "size_bytes": stored.size_bytes}
                await self._publish(
                    event.saying(
                        tracks=event.tracks.model_copy(update=said),
                        options=event.options.model_copy(update={"animate": False}),
                        occurred_at=now(),
                    )
                )


_OF_EVERY_EVENT = {"schema_version", "event_id", "occurred_at", "producer"}
