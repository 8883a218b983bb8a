"""The animator: the same videos in as the worker's, one WebP animation a person out.

With it comes a strip of the person's best crops, in one still picture.

It is a side consumer: its death or slowness stops nothing else. It reads `video-ready` in a group
of its own and decodes for itself. Crops are never sent over Kafka, so the alternative would be a
store of crops between worker and animator, written for every person and read once.

It looks for nobody: a video without tracks is passed over, and taken up when the worker, which
finds its people, announces their tracks in `tracks-ready`.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from streamproc.animation import encode_strip, encode_webp, strip_size
from streamproc.errors import MachineError
from streamproc.events import AnimationReady, CropStrip, Fault, TracksReady, VideoReady
from streamproc.ids import person_key_of
from streamproc.kafka.records import trace_of
from streamproc.pipeline.animate import RunIds
from streamproc.pipeline.job import Stop
from streamproc.pipeline.pipeline import Pipeline
from streamproc.pipeline.resources import VideoStats, find_weights_sha256, video_limits
from streamproc.services.forgotten_files import RecentRuns, persons_by_video, written_until
from streamproc.services.intake import VideoIntake
from streamproc.services.logs import log_about
from streamproc.services.retention import remove_old_files
from streamproc.services.service import Service
from streamproc.services.videos import (
    is_of_tracks_ready,
    open_job,
    read_request,
    tracks_ref_of,
)
from streamproc.storage.animations import AnimationStore
from streamproc.storage.media import MediaStoppedError

if TYPE_CHECKING:
    from streamproc.events import Event, Forgotten, TracksRef
    from streamproc.kafka.long_jobs import Turn
    from streamproc.kafka.records import Record
    from streamproc.pipeline.animate import AnimateStage
    from streamproc.pipeline.pipeline import VideoSummary
    from streamproc.services.videos import Request
    from streamproc.settings import Settings
    from streamproc.types import Bucket

log = logging.getLogger(__name__)

SIZE_PX = 256
FRAMES_PER_SECOND = 10


async def run_animator(settings: Settings) -> None:
    """Run until a signal comes; raises UsageError if `animator.output_uri` cannot be written to."""
    service = Service("animator", settings)
    await service.run(lambda: _Animator(service).run())


class _Animator:
    """The work of the service, and the handler of its jobs."""

    _pipeline: Pipeline
    _animate: AnimateStage

    def __init__(self, service: Service) -> None:
        settings = service.settings
        self._service = service
        self._settings = settings
        self._intake = VideoIntake(
            service, self, forget=self._obey, topics=(VideoReady.topic, TracksReady.topic)
        )
        self._recent = RecentRuns()
        self._store = AnimationStore(
            settings.animator.output_uri or str(settings.media_root / "animations"),
            media_root=settings.media_root,
            s3_endpoint_url=settings.remote.s3_endpoint_url,
        )
        self._loop = asyncio.get_running_loop()
        self._traces: dict[str, bytes | None] = {}  # by video_id, of the records in work
        # By run_id: what kept an animation from being stored.
        self._faults: dict[str, MachineError] = {}

    async def run(self) -> None:
        await asyncio.to_thread(self._store.check)
        # A run's id names the weights, and must be the same as the worker's.
        weights_sha256 = await asyncio.to_thread(find_weights_sha256, self._settings)
        self._pipeline = Pipeline(
            load_network=lambda: None,
            publish=self._drop,
            write_animation=self._write,
            crop_memory_bytes=self._settings.crop_memory_mib * 1024 * 1024,
            limits=video_limits(self._settings),
            decode_threads=self._settings.threads,
            weights_sha256=weights_sha256,
        )
        assert self._pipeline.animate is not None  # as `write_animation` is given
        self._animate = self._pipeline.animate
        hours = self._settings.animator.retention_hours
        removing = asyncio.create_task(remove_old_files(self._store, "animations", hours=hours))
        try:
            await self._intake.run(self._pipeline)
        finally:
            removing.cancel()

    async def _drop(self, event: Event) -> None:
        """Publish no person and no closing: the worker does that."""

    def check(self, record: Record) -> None:
        """Raise EventError if a record announces no video."""
        read_request(record, self._settings)

    async def handle(self, record: Record, attempt: int, turn: Turn) -> None:
        """Animate one video's persons; return when all animations are stored and announced."""
        request = read_request(record, self._settings)
        if not request.animate or self._intake.is_cancelled(request):
            return
        stats = VideoStats()
        stop = Stop()
        with self._intake.processing(request, stats, stop):
            self._traces[request.event.video_id] = trace_of(record)
            self._forget(request.event.video_id)  # what an earlier attempt left
            try:
                tracks_ref = await tracks_ref_of(request, self._intake.media, stop)
                if tracks_ref is None:
                    return  # `tracks-ready` comes when the worker has found its people
                summary = await self._process(request, tracks_ref, stats, stop, turn)
            except MediaStoppedError:
                return  # cancelled while it was fetched
            except BaseException:
                self._forget(request.event.video_id)
                raise
            finally:
                self._traces.pop(request.event.video_id, None)
            run = RunIds(request.event.gallery_id, request.event.video_id, summary.run_id)
            await self._leave_out(run, request.submitted_at_ms)
            await self._announce_missing(run, summary)
            self._intake.metrics.count_video(summary.outcome)
            with log_about(run_id=summary.run_id):
                log.info(
                    "%s: %d animations, attempt %d", summary.outcome, stats.animations_done, attempt
                )

    async def _obey(self, event: Forgotten, at_ms: int) -> None:
        """Remove the animations of who is forgotten; raises MachineError if the store fails."""
        until = written_until(at_ms)
        count = 0
        for video_id, persons in persons_by_video(event).items():
            count += await asyncio.to_thread(
                self._store.forget, video_id, persons, at_ms=at_ms, written_until=until
            )
            for run_id, submitted_at_ms in self._recent.of(video_id):
                count += await asyncio.to_thread(
                    self._store.leave_out, video_id, run_id, submitted_at_ms
                )
        log.info("%d animations of who is forgotten are removed", count)

    async def _leave_out(self, run: RunIds, submitted_at_ms: int) -> None:
        """Remove what this run has made of those who were forgotten while it was under way."""
        self._recent.add(run.video_id, run.run_id, submitted_at_ms)
        await asyncio.to_thread(self._store.leave_out, run.video_id, run.run_id, submitted_at_ms)

    def _forget(self, video_id: str) -> None:
        errors = self._animate.errors
        for key in [key for key in errors if key[0] == video_id]:
            del errors[key]

    async def _process(
        self,
        request: Request,
        tracks_ref: TracksRef,
        stats: VideoStats,
        stop: Stop,
        turn: Turn,
    ) -> VideoSummary:
        async with open_job(request, tracks_ref, self._intake.media, stop) as job, turn:
            summary = await self._pipeline.process(job, stats, stop)
            await self._animate.join(request.event.video_id)
        return summary

    async def _announce_missing(self, run: RunIds, summary: VideoSummary) -> None:
        """Announce which animations will not come.

        Raises the MachineError that kept one from being stored: then the video is tried again.
        """
        errors = self._animate.errors
        own = [(video_id, person_id) for video_id, person_id in errors if video_id == run.video_id]
        texts = {person_id: errors.pop((video_id, person_id)) for video_id, person_id in own}
        fault = self._faults.pop(run.run_id, None)
        if fault is not None:
            raise fault
        for person_id, text in texts.items():
            error = Fault(code="not-made", text=text)
            await self._publish(_announcement(run, person_id, "failed", error=error))
        for skipped in summary.skipped:
            error = Fault(code="skipped", text=skipped.reason)
            await self._publish(_announcement(run, skipped.person_id, "skipped", error=error))

    async def _publish(self, event: AnimationReady) -> None:
        await self._intake.publisher.publish(event, trace=self._traces.get(event.video_id))

    def _write(self, run: RunIds, bucket: Bucket) -> None:
        """Encode, store and announce one animation and its strip, in an animation thread.

        The animate stage notes what this raises.
        """
        content = encode_webp(bucket.crops, size_px=SIZE_PX, frames_per_second=FRAMES_PER_SECOND)
        strip = encode_strip(bucket.best_crops)
        try:
            stored = self._store.write(run.video_id, run.run_id, bucket.person_id, content)
            announcement = _announcement(
                run,
                bucket.person_id,
                "ready",
                uri=stored.uri,
                sha256=stored.sha256,
                size_bytes=stored.size_bytes,
                width_px=SIZE_PX,
                height_px=SIZE_PX,
                frame_count=len(bucket.crops),
                frames_per_second=float(FRAMES_PER_SECOND),
                frame_indices=[crop.frame_index for crop in bucket.crops],
                crops=self._stored_strip(run, bucket, strip),
            )
            # The thread waits for the acknowledgement, so that it does not run ahead of Kafka.
            publishing = self._publish(announcement)
            asyncio.run_coroutine_threadsafe(publishing, self._loop).result()
        except MachineError as error:
            self._faults[run.run_id] = error
            raise

    def _stored_strip(self, run: RunIds, bucket: Bucket, content: bytes) -> CropStrip:
        stored = self._store.write_strip(run.video_id, run.run_id, bucket.person_id, content)
        width, height = strip_size(len(bucket.best_crops))
        return CropStrip(
            uri=stored.uri,
            sha256=stored.sha256,
            size_bytes=stored.size_bytes,
            width_px=width,
            height_px=height,
            frame_indices=[crop.frame_index for crop in bucket.best_crops],
        )

    async def refuse(self, record: Record, *, code: str, text: str, attempts: int) -> None:
        """Publish the dead letter of a record that nobody else reads; only log the others.

        The worker reads the records of `video-ready` as well, and says what is wrong with them.
        """
        if not is_of_tracks_ready(record, self._settings):
            log.warning("not animated: %s@%d: %s: %s", record.topic, record.offset, code, text)
        else:
            await self._intake.publisher.dead_letter(
                record, code=code, text=text, attempts=attempts
            )
            self._service.dead_letters.labels(code).inc()
        self._intake.metrics.count_video("failed")

    async def retrying(self, record: Record, attempt: int, error: Exception) -> None:
        """Do nothing: `LongJobs` has logged it."""


def _announcement(run: RunIds, person_id: int, state: str, **fields: object) -> AnimationReady:
    return AnimationReady.make(
        gallery_id=run.gallery_id,
        video_id=run.video_id,
        run_id=run.run_id,
        person_id=person_id,
        person_key=person_key_of(run.video_id, person_id),
        state=state,
        **fields,
    )
