"""The worker: videos in, one event a person out.

It processes several videos at once; their crops are embedded in common batches.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING

from streamproc.errors import MachineError, TimeLimitError, UsageError
from streamproc.events import Fault, VideoProgress, Warned, now
from streamproc.kafka.records import trace_of
from streamproc.pipeline.job import Stop
from streamproc.pipeline.pipeline import Pipeline, VideoSummary
from streamproc.pipeline.resources import (
    VideoStats,
    load_network,
    track_judge_of,
    video_limits,
)
from streamproc.services.intake import VideoIntake
from streamproc.services.logs import log_about
from streamproc.services.people import PeopleFinder
from streamproc.services.retention import remove_old_files
from streamproc.services.service import Service
from streamproc.services.videos import event_of, open_job, read_request, tracks_ref_of
from streamproc.shown import shown
from streamproc.storage.media import MediaStoppedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from streamproc.events import Event
    from streamproc.kafka.long_jobs import Turn
    from streamproc.kafka.records import Record
    from streamproc.pipeline.job import VideoJob
    from streamproc.services.videos import Request
    from streamproc.settings import Settings

log = logging.getLogger(__name__)

PROGRESS_SECONDS = 1.0
FORECAST_SECONDS = 60.0
"""After so long it can be told whether a video will end within its time limit."""
WEDGED_SECONDS = 60.0
"""How long a video may take to end after its time limit.

If it takes longer, a decoder hangs, and only the end of the process helps.
"""
EXIT_WEDGED = 70

_trace: ContextVar[bytes | None] = ContextVar("trace", default=None)


async def run_worker(settings: Settings) -> None:
    """Run until a signal comes; raises UsageError or WeightsError at the start."""
    if not settings.clustering.enabled:
        raise UsageError(
            "a worker embeds: expected clustering.enabled to be true; "
            "`streamproc animator` needs no network"
        )
    service = Service("worker", settings)
    await service.run(lambda: _Worker(service).run())


class _Worker:
    """The work of the service, and the handler of its jobs."""

    def __init__(self, service: Service) -> None:
        settings = service.settings
        self._service = service
        self._finder = PeopleFinder(settings, self._publish)
        self._intake = VideoIntake(service, self, forget=self._finder.forget)
        self._pipeline = Pipeline(
            load_network=lambda: load_network(settings),
            publish=self._publish,
            write_animation=None,
            crop_memory_bytes=settings.crop_memory_mib * 1024 * 1024,
            limits=video_limits(settings),
            decode_threads=settings.threads,
            embed_ahead=True,
            revises=True,
            load_judge=lambda weights_sha256: track_judge_of(settings.clustering, weights_sha256),
        )

    async def run(self) -> None:
        await asyncio.to_thread(self._finder.check)
        removing = asyncio.create_task(
            remove_old_files(
                self._finder.store,
                "files of tracks",
                hours=self._service.settings.detector.retention_hours,
            )
        )
        try:
            await self._intake.run(self._pipeline)
        finally:
            removing.cancel()

    async def _publish(self, event: Event) -> None:
        await self._intake.publisher.publish(event, trace=_trace.get())

    def check(self, record: Record) -> None:
        """Raise EventError if a record announces no video."""
        read_request(record, self._service.settings)

    async def handle(self, record: Record, attempt: int, turn: Turn) -> None:
        """Process one video; return when all its events are acknowledged."""
        _trace.set(trace_of(record))
        request = read_request(record, self._service.settings)
        work = _Work(request, attempt)
        if self._intake.is_cancelled(request):
            await self._end_cancelled(work)
            return
        with self._intake.processing(request, work.stats, work.stop):
            await self._publish(work.progress("accepted"))
            summary = await self._process(work, turn)
            if summary is None:
                await self._end_cancelled(work)
            else:
                self._end(work, summary)

    async def _process(self, work: _Work, turn: Turn) -> VideoSummary | None:
        """Take the video through the pipeline; None if it was cancelled before it was fetched."""
        reporting = asyncio.create_task(self._report(work))

        async def before_closing(summary: VideoSummary) -> None:
            await _end_task(reporting)
            if summary.outcome == "done":
                # The worker's last word on it, said before the matcher can hear of the closing.
                # The matcher says `done` (or `cancelled`) once it has published the last candidate.
                await self._publish(work.progress("embedded", summary=summary))

        try:
            async with contextlib.AsyncExitStack() as stack:
                with _time_limit(work):
                    job = await stack.enter_async_context(self._opened(work))
                async with turn:  # waiting for it does not count
                    with _time_limit(work):
                        job = replace(job, before_closing=before_closing)
                        work.decoding_since = time.monotonic()
                        summary = await self._pipeline.process(job, work.stats, work.stop)
        except MediaStoppedError:
            if work.too_slow:
                raise TimeLimitError(work.limit_text) from None
            return None
        finally:
            await _end_task(reporting)
        if summary.outcome == "failed":
            raise TimeLimitError(work.limit_text)
        return summary

    @contextlib.asynccontextmanager
    async def _opened(self, work: _Work) -> AsyncIterator[VideoJob]:
        """Fetch what a video needs; see `open_job` for what this raises."""
        media = self._intake.media
        tracks_ref = await tracks_ref_of(work.request, media, work.stop)
        async with open_job(work.request, tracks_ref, media, work.stop, self._finder) as job:
            yield replace(job, started_at=work.started_at)

    def _end(self, work: _Work, summary: VideoSummary) -> None:
        self._intake.metrics.count_video(summary.outcome)
        with log_about(run_id=summary.run_id):
            log.info(
                "%s: %d persons, %d crops, %.1f s",
                summary.outcome,
                work.stats.persons_embedded,
                work.stats.crops_embedded,
                work.elapsed_seconds,
            )

    async def _end_cancelled(self, work: _Work) -> None:
        await self._publish(work.progress("cancelled"))
        self._intake.metrics.count_video("cancelled")

    async def _report(self, work: _Work) -> None:
        """Publish once a second how far a video is, if that has changed."""
        last = None
        while True:
            await asyncio.sleep(PROGRESS_SECONDS)
            reached = (work.stats.frames_done, work.stats.persons_embedded)
            warning = work.warn_if_too_slow(time.monotonic())
            if reached != last or warning is not None:
                last = reached
                # The same fault is raised where the video's own events are published.
                with contextlib.suppress(MachineError):
                    await self._publish(work.progress("running", warning=warning))

    async def refuse(self, record: Record, *, code: str, text: str, attempts: int) -> None:
        """Publish the dead letter, and `failed` if it is known of which video."""
        await self._intake.publisher.dead_letter(record, code=code, text=text, attempts=attempts)
        self._service.dead_letters.labels(code).inc()
        self._intake.metrics.count_video("failed")
        await self._publish_fault(record, "failed", attempts, Fault(code=code, text=text))

    async def retrying(self, record: Record, attempt: int, error: Exception) -> None:
        """Publish that a video will be tried again."""
        fault = Fault(code="machine", text=str(error))
        await self._publish_fault(record, "retrying", attempt, fault)

    async def _publish_fault(self, record: Record, state: str, attempt: int, fault: Fault) -> None:
        event = event_of(record)
        if event is not None:
            progress = VideoProgress.make(
                gallery_id=event.gallery_id,
                video_id=event.video_id,
                attempt=attempt,
                state=state,
                error=fault,
            )
            await self._intake.publisher.publish(progress, trace=trace_of(record))


class _Work:
    """One video in work: what was asked for, how far it is, and what ends it early."""

    def __init__(self, request: Request, attempt: int) -> None:
        self.request = request
        self.attempt = attempt
        self.stop = Stop()
        self.stats = VideoStats()
        self.started_at = now()
        self.too_slow = False
        self.seconds_left = request.time_limit_seconds
        self.decoding_since: float | None = None
        self._has_warned = False
        self._start_seconds = time.monotonic()

    @property
    def elapsed_seconds(self) -> float:
        return time.monotonic() - self._start_seconds

    @property
    def limit_text(self) -> str:
        return (
            f"{shown(self.request.event.video_uri)}: "
            f"took longer than {self.request.time_limit_seconds:g} s; "
            "raise jobs.time_limit_seconds, or options.time_limit_seconds if that is set, "
            "and replay the dead letter"
        )

    def end_too_slow(self) -> None:
        """End the video early, as it has reached its time limit."""
        self.too_slow = True
        self.stop.outcome = "failed"
        self.stop.set()

    def warn_if_too_slow(self, now_seconds: float) -> Warned | None:
        """Return, once, that the video cannot end in time if it goes on as it did so far."""
        since = self.decoding_since
        if self._has_warned or since is None or now_seconds < since + FORECAST_SECONDS:
            return None
        spent_seconds = now_seconds - since
        expected_seconds = forecast_seconds(self.stats, spent_seconds)
        if expected_seconds is None or expected_seconds <= self.seconds_left:
            return None
        self._has_warned = True
        text = (
            f"{self.stats.frames_done} of {self.stats.frames_planned} frames in "
            f"{spent_seconds:.0f} s: all would take about {expected_seconds:.0f} s, more than the "
            f"{self.seconds_left:.0f} s that are left of its time limit; raise "
            "jobs.time_limit_seconds"
        )
        log.warning("%s: %s", shown(self.request.event.video_uri), text)
        return Warned(code="time-limit", text=text)

    def progress(
        self, state: str, *, summary: VideoSummary | None = None, warning: Warned | None = None
    ) -> VideoProgress:
        """Return the event that says where this video stands."""
        stats = self.stats
        fraction = None
        if stats.frames_planned:
            fraction = min(1.0, stats.frames_done / stats.frames_planned)
        return VideoProgress.make(
            gallery_id=self.request.event.gallery_id,
            video_id=self.request.event.video_id,
            run_id=None if summary is None else summary.run_id,
            attempt=self.attempt,
            state=state,
            fraction=fraction,
            frames_decoded=stats.frames_done,
            frames_planned=stats.frames_planned,
            persons_total=stats.persons_total,
            persons_embedded=stats.persons_embedded,
            crops_embedded=stats.crops_embedded,
            elapsed_seconds=round(self.elapsed_seconds, 3),
            warnings=[warning] if warning is not None else _warnings(summary),
        )


async def _end_task(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait for its end; it may have ended before."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def forecast_seconds(stats: VideoStats, spent_seconds: float) -> float | None:
    """Return how long all frames take if the others take as long as these; None: nobody knows."""
    if not stats.frames_done:
        return None
    return spent_seconds * stats.frames_planned / stats.frames_done


def _warnings(summary: VideoSummary | None) -> list[Warned]:
    """Return what was left out or repaired."""
    if summary is None:
        return []
    warnings = [
        Warned(code=f"tracks:{code}", text="boxes left out or repaired", count=count)
        for code, count in summary.problems.items()
    ]
    warnings += [Warned(code="tracks", text=hint) for hint in summary.hints]
    warnings += [Warned(code="video", text=hint) for hint in summary.video_hints]
    counted = (
        ("cut-off", "frames missing at the end of the file", summary.missing_frames),
        ("damaged", "planned frames could not be decoded", summary.undecodable_frames),
        ("skipped", "persons without an embedding", len(summary.skipped)),
    )
    for code, text, count in counted:
        if count:
            warnings.append(Warned(code=code, text=text, count=count))
    return warnings


@contextlib.contextmanager
def _time_limit(work: _Work) -> Iterator[None]:
    """End the video in order once it has used up its time; only what is done inside counts.

    If a decoder hangs then, end the process; `LongJobs` counts that as an attempt.
    """
    loop = asyncio.get_running_loop()
    start_seconds = loop.time()
    ending = loop.call_later(work.seconds_left, work.end_too_slow)
    wedged = loop.call_later(work.seconds_left + WEDGED_SECONDS, _end_process, work)
    try:
        yield
    finally:
        work.seconds_left -= loop.time() - start_seconds
        ending.cancel()
        wedged.cancel()


def _end_process(work: _Work) -> None:
    log.critical(
        "%s: does not end after its time limit: ending this process",
        shown(work.request.event.video_uri),
    )
    os._exit(EXIT_WEDGED)
