"""The worker: videos in, one event a person out; several videos at once, their crops embedded in common batches."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING

from streamproc.errors import MachineError, TimeLimitError, UsageError
from streamproc.events import Fault, VideoProgress, Warned
from streamproc.kafka.cancellations import Cancellations
from streamproc.kafka.connection import patiently
from streamproc.kafka.long_jobs import LongJobs
from streamproc.kafka.publisher import Publisher
from streamproc.kafka.records import trace_of
from streamproc.kafka.topics import ensure_topics
from streamproc.pipeline.pipeline import Pipeline, Stop, VideoSummary
from streamproc.pipeline.resources import VideoStats, load_network, video_limits
from streamproc.services.logs import log_about
from streamproc.services.metrics import VideoMetrics
from streamproc.services.service import Service
from streamproc.services.videos import announced_by, open_job, read_request, take_videos
from streamproc.storage.media import MediaStopped, media_access

if TYPE_CHECKING:
    from streamproc.events import Event
    from streamproc.kafka.records import Record
    from streamproc.services.videos import Request
    from streamproc.settings import Settings

log = logging.getLogger(__name__)

PROGRESS_SECONDS = 1.0
WEDGED_SECONDS = 60.0
"""After its time limit a video may take this long to end; then a decoder hangs, and only the process's end helps."""
EXIT_WEDGED = 70

_trace: ContextVar[bytes | None] = ContextVar("trace", default=None)


async def run_worker(settings: Settings) -> None:
    """Run until a signal comes.

    Raises UsageError or WeightsError at the start; a fault of Kafka is waited out.
    """
    if not settings.clustering.enabled:
        raise UsageError(
            "a worker embeds: expected clustering.enabled to be true; `streamproc animator` needs no network"
        )
    service = Service("worker", settings)
    await service.run(lambda: _Worker(settings, service).run())


class _Worker:
    """The work of the service, and the handler of its jobs."""

    def __init__(self, settings: Settings, service: Service) -> None:
        self._settings, self._service = settings, service
        self._publisher = Publisher(settings, "worker")
        self._cancellations = Cancellations(settings, "worker")
        self._media = media_access(settings)
        self._jobs = LongJobs(
            settings,
            name=service.name,
            topic="video-ready",
            handler=self,
            stop=service.stop,
            on_ready=service.set_ready,
        )
        self._pipeline = Pipeline(
            load_network=lambda: load_network(settings),
            publish=self._publish,
            write_animation=None,
            crop_memory_bytes=settings.crop_memory_mib * 1024 * 1024,
            limits=video_limits(settings),
            decode_threads=settings.threads,
            embed_ahead=True,
        )
        self._metrics = VideoMetrics(service.registry, self._jobs, self._pipeline)

    async def run(self) -> None:
        await patiently(self._service.stop, "topics", lambda: ensure_topics(self._settings))
        async with self._pipeline, self._publisher:
            await self._pipeline.ready()
            await take_videos(self._service.stop, self._cancellations, self._jobs)

    async def _publish(self, event: Event) -> None:
        await self._publisher.publish(event, trace=_trace.get())

    async def handle(self, record: Record, attempt: int) -> None:
        """Process one video; returns when all that it gave is acknowledged."""
        _trace.set(trace_of(record))
        request = read_request(record, self._settings)
        ids = {"video_id": request.event.video_id, "gallery_id": request.event.gallery_id}
        with log_about(**ids):
            work = _Work(request, attempt)
            if self._cancellations.holds(request.event.video_id, request.submitted_at_ms):
                await self._publish(work.progress("cancelled"))
                self._metrics.ended("cancelled")
                return
            with self._cancellations.watching(request.event.video_id, work.stop):
                await self._process(work)

    async def _process(self, work: _Work) -> None:
        await self._publish(work.progress("accepted"))
        self._metrics.watch(work.stats)
        reporting = asyncio.create_task(self._report(work))
        try:
            async with _time_limit(work), open_job(work.request, self._media, work.stop) as job:
                summary = await self._pipeline.process(job, work.stats, work.stop)
            if summary.outcome == "failed":
                raise TimeLimitError(work.limit_text)
        except MediaStopped:
            if work.too_slow:
                raise TimeLimitError(work.limit_text) from None
            await self._publish(work.progress("cancelled"))
            self._metrics.ended("cancelled")
            return
        finally:
            reporting.cancel()
            await asyncio.gather(reporting, return_exceptions=True)
            self._metrics.unwatch(work.stats)
        # The matcher says `done` (or `cancelled`), when the last candidate is out; this is the
        # worker's last word.
        if summary.outcome == "done":
            await self._publish(work.progress("embedded", summary=summary))
        self._metrics.ended(summary.outcome)
        with log_about(run_id=summary.run_id):
            persons, crops = work.stats.persons_embedded, work.stats.crops_embedded
            log.info(
                "%s: %d persons, %d crops, %.1f s",
                summary.outcome,
                persons,
                crops,
                work.elapsed_seconds,
            )

    async def _report(self, work: _Work) -> None:
        """Say once a second how far a video is, where that has changed."""
        said = None
        while True:
            await asyncio.sleep(PROGRESS_SECONDS)
            now = (work.stats.frames_done, work.stats.persons_embedded)
            if now != said:
                said = now
                with contextlib.suppress(
                    MachineError
                ):  # whoever waits for the events themselves hears of it
                    await self._publish(work.progress("running"))

    async def refuse(self, record: Record, *, code: str, text: str, attempts: int) -> None:
        """Dead-letter the record, and say `failed` where it is known of which video."""
        await self._publisher.dead_letter(record, code=code, text=text, attempts=attempts)
        self._service.dead_letters.labels(code).inc()
        self._metrics.ended("failed")
        await self._say(record, "failed", attempts, Fault(code=code, text=text))

    async def retrying(self, record: Record, attempt: int, error: Exception) -> None:
        """Say that a video is tried again."""
        await self._say(record, "retrying", attempt, Fault(code="machine", text=str(error)))

    async def _say(self, record: Record, state: str, attempt: int, fault: Fault) -> None:
        event = announced_by(record)
        if event is not None:
            progress = VideoProgress.make(
                gallery_id=event.gallery_id,
                video_id=event.video_id,
                attempt=attempt,
                state=state,
                error=fault,
            )
            await self._publisher.publish(progress, trace=trace_of(record))


class _Work:
    """One video that is being worked on."""

    def __init__(self, request: Request, attempt: int) -> None:
        self.request, self.attempt = request, attempt
        self.stop = Stop()
        self.stats = VideoStats()
        self.too_slow = False
        self._began = time.monotonic()

    @property
    def elapsed_seconds(self) -> float:
        return time.monotonic() - self._began

    @property
    def limit_text(self) -> str:
        return (
            f"{self.request.event.video_uri}: took longer than {self.request.time_limit_seconds:g} s; raise "
            "jobs.time_limit_seconds, or options.time_limit_seconds if that is set, and replay the dead letter"
        )

    def progress(self, state: str, *, summary: VideoSummary | None = None) -> VideoProgress:
        """The event that says where this video stands."""
        stats = self.stats
        share = stats.frames_done / stats.frames_planned if stats.frames_planned else None
        return VideoProgress.make(
            gallery_id=self.request.event.gallery_id,
            video_id=self.request.event.video_id,
            run_id=None if summary is None else summary.run_id,
            attempt=self.attempt,
            state=state,
            fraction=None if share is None else min(1.0, share),
            frames_decoded=stats.frames_done,
            frames_planned=stats.frames_planned,
            persons_total=stats.persons_total,
            persons_embedded=stats.persons_embedded,
            crops_embedded=stats.crops_embedded,
            elapsed_seconds=round(self.elapsed_seconds, 3),
            warnings=[] if summary is None else _warnings(summary),
        )


def _warnings(summary: VideoSummary) -> list[Warned]:
    """What was mended or left out."""
    found = [
        Warned(code=f"tracks:{code}", text="boxes left out or mended", count=n)
        for code, n in summary.problems.items()
    ]
    found += [Warned(code="tracks", text=hint) for hint in summary.hints]
    if summary.missing_frames:
        found.append(
            Warned(
                code="cut-off",
                text="frames missing at the end of the file",
                count=summary.missing_frames,
            )
        )
    if summary.undecodable_frames:
        found.append(
            Warned(
                code="damaged",
                text="planned frames could not be decoded",
                count=summary.undecodable_frames,
            )
        )
    if summary.skipped:
        found.append(
            Warned(code="skipped", text="persons without an embedding", count=len(summary.skipped))
        )
    return found


@contextlib.asynccontextmanager
async def _time_limit(work: _Work):  # type: ignore[no-untyped-def] # noqa: ANN202 - a generator of nothing
    """End the video in order at its limit; a decoder that hangs then ends the process, which counts as an attempt."""

    def too_slow() -> None:
        work.too_slow, work.stop.outcome = True, "failed"
        work.stop.set()

    loop = asyncio.get_running_loop()
    limit = loop.call_later(work.request.time_limit_seconds, too_slow)
    wedged = loop.call_later(work.request.time_limit_seconds + WEDGED_SECONDS, _end_process, work)
    try:
        yield
    finally:
        limit.cancel()
        wedged.cancel()


def _end_process(work: _Work) -> None:
    log.critical(
        "%s: does not end after its time limit: ending this process", work.request.event.video_uri
    )
    os._exit(EXIT_WEDGED)
