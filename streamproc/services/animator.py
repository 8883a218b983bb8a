"""The animator, the side consumer: the same videos in, one WebP a person out; its death or slowness stops nothing.

It reads `video-ready` in a group of its own and decodes for itself. Crops are never sent over
Kafka, so the alternative would be a store of crops between worker and animator, written for every
person and read once.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from streamproc.animation import encode_webp
from streamproc.errors import MachineError
from streamproc.events import AnimationReady, Fault
from streamproc.ids import person_key_of
from streamproc.kafka.cancellations import Cancellations
from streamproc.kafka.connection import patiently
from streamproc.kafka.long_jobs import LongJobs
from streamproc.kafka.publisher import Publisher
from streamproc.kafka.records import trace_of
from streamproc.kafka.topics import ensure_topics
from streamproc.pipeline.animate import RunIds
from streamproc.pipeline.pipeline import Pipeline, Stop
from streamproc.pipeline.resources import VideoStats, load_network, video_limits
from streamproc.services.logs import log_about
from streamproc.services.metrics import VideoMetrics
from streamproc.services.service import Service
from streamproc.services.videos import open_job, read_request, take_videos
from streamproc.storage.animations import AnimationStore
from streamproc.storage.media import MediaStopped, media_access

if TYPE_CHECKING:
    from streamproc.events import Event
    from streamproc.kafka.records import Record
    from streamproc.pipeline.pipeline import VideoSummary
    from streamproc.settings import Settings
    from streamproc.types import Bucket

log = logging.getLogger(__name__)

SIZE_PX, FRAMES_PER_SECOND = 256, 10


async def run_animator(settings: Settings) -> None:
    """Run until a signal comes.

    Raises UsageError where nothing can be written to `animator.output_uri`.
    """
    service = Service("animator", settings)
    await service.run(lambda: _Animator(settings, service).run())


class _Animator:
    """The work of the service, and the handler of its jobs."""

    def __init__(self, settings: Settings, service: Service) -> None:
        self._settings, self._service = settings, service
        self._publisher = Publisher(settings, "animator")
        self._cancellations = Cancellations(settings, "animator")
        self._media = media_access(settings)
        self._store = AnimationStore(
            settings.animator.output_uri or str(settings.media_root / "animations"),
            media_root=settings.media_root,
            s3_endpoint_url=settings.remote.s3_endpoint_url,
        )
        self._jobs = LongJobs(
            settings,
            name=service.name,
            topic="video-ready",
            handler=self,
            stop=service.stop,
            on_ready=service.set_ready,
        )
        self._loop = asyncio.get_running_loop()
        self._traces: dict[str, bytes | None] = {}
        self._faults: dict[str, MachineError] = {}

    async def run(self) -> None:
        await asyncio.to_thread(self._store.check)
        # Only to know its sha256: a run's id names the weights, and must be the worker's.
        network = await asyncio.to_thread(load_network, self._settings, "cpu")
        self._pipeline = Pipeline(
            load_network=lambda: None,
            publish=self._ignore,
            write_animation=self._write,
            crop_memory_bytes=self._settings.crop_memory_mib * 1024 * 1024,
            limits=video_limits(self._settings),
            decode_threads=self._settings.threads,
            weights_sha256=network.weights_sha256,
        )
        del network
        self._metrics = VideoMetrics(self._service.registry, self._jobs, self._pipeline)
        await patiently(self._service.stop, "topics", lambda: ensure_topics(self._settings))
        async with self._pipeline, self._publisher:
            await take_videos(self._service.stop, self._cancellations, self._jobs)

    async def _ignore(self, event: Event) -> None:
        """Persons and closings are the worker's to publish."""

    async def handle(self, record: Record, attempt: int) -> None:
        """Animate one video's persons; returns when all animations are stored and announced."""
        request = read_request(record, self._settings)
        event, stop, stats = request.event, Stop(), VideoStats()
        if not request.animate or self._cancellations.holds(
            event.video_id, request.submitted_at_ms
        ):
            return
        with (
            log_about(video_id=event.video_id, gallery_id=event.gallery_id),
            self._cancellations.watching(event.video_id, stop),
        ):
            self._traces[event.video_id] = trace_of(record)
            self._metrics.watch(stats)
            try:
                async with open_job(request, self._media, stop) as job:
                    summary = await self._pipeline.process(job, stats, stop)
                    assert self._pipeline.animate is not None
                    await self._pipeline.animate.finish(event.video_id)
            except MediaStopped:
                return
            finally:
                self._metrics.unwatch(stats)
                self._traces.pop(event.video_id, None)
            await self._say_what_is_missing(
                RunIds(event.gallery_id, event.video_id, summary.run_id), summary
            )
            self._metrics.ended(summary.outcome)
            with log_about(run_id=summary.run_id):
                log.info(
                    "%s: %d animations, attempt %d", summary.outcome, stats.animations_done, attempt
                )

    async def _say_what_is_missing(self, run: RunIds, summary: VideoSummary) -> None:
        """Raise the fault of the machine that kept animations from being stored; announce those that will not come."""
        assert self._pipeline.animate is not None
        errors = self._pipeline.animate.errors
        missing = {
            person: errors.pop((video, person))
            for video, person in list(errors)
            if video == run.video_id
        }
        if (fault := self._faults.pop(run.run_id, None)) is not None:
            raise fault
        for person_id, text in missing.items():
            error = Fault(code="not-made", text=text)
            await self._publisher.publish(_announcement(run, person_id, "failed", error=error))
        for skipped in summary.skipped:
            error = Fault(code="skipped", text=skipped.reason)
            await self._publisher.publish(
                _announcement(run, skipped.person_id, "skipped", error=error)
            )

    def _write(self, run: RunIds, bucket: Bucket) -> None:
        """Encode, store and announce one animation, in an animation thread; what it raises is noted by the stage."""
        content = encode_webp(bucket.crops, size_px=SIZE_PX, frames_per_second=FRAMES_PER_SECOND)
        try:
            stored = self._store.write(run.video_id, run.run_id, bucket.person_id, content)
            self._announce(
                _announcement(
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
                )
            )
        except MachineError as error:
            self._faults[run.run_id] = error
            raise

    def _announce(self, event: AnimationReady) -> None:
        """Publish from an animation thread, and wait: it is the thread's back-pressure."""
        sending = self._publisher.publish(event, trace=self._traces.get(event.video_id))
        asyncio.run_coroutine_threadsafe(sending, self._loop).result()

    async def refuse(self, record: Record, *, code: str, text: str, attempts: int) -> None:
        """Leave the record: the worker, which reads the same, dead-letters it."""
        del attempts
        log.warning("not animated: %s@%d: %s: %s", record.topic, record.offset, code, text)
        self._metrics.ended("failed")

    async def retrying(self, record: Record, attempt: int, error: Exception) -> None:
        """Nothing to say beyond the log."""


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
