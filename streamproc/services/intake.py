"""What worker and animator have in common: each takes videos, and has a job done for each one.

Both read `video-ready` in a group of their own, the animator `tracks-ready` as well, and know what
was cancelled before they begin the first video.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from streamproc.events import VideoReady
from streamproc.kafka.cancellations import Cancellations
from streamproc.kafka.connection import retry_until_stopped
from streamproc.kafka.forgotten import ForgottenPeople
from streamproc.kafka.long_jobs import LongJobs
from streamproc.kafka.publisher import Publisher
from streamproc.kafka.topics import ensure_topics
from streamproc.services.logs import log_about
from streamproc.services.metrics import VideoMetrics
from streamproc.storage.media import media_access

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from streamproc.events import Forgotten
    from streamproc.kafka.long_jobs import JobHandler
    from streamproc.kafka.readiness import Readiness
    from streamproc.pipeline.pipeline import Pipeline
    from streamproc.pipeline.resources import VideoStats
    from streamproc.services.service import Service
    from streamproc.services.videos import Request


class VideoIntake:
    """Takes the videos of one service for its handler. Used by one event loop.

    The handler uses its `publisher`, `media` and `metrics`; the metrics exist once `run` is called.
    """

    metrics: VideoMetrics

    def __init__(
        self,
        service: Service,
        handler: JobHandler,
        *,
        forget: Callable[[Forgotten, int], Awaitable[None]],
        topics: Sequence[str] = (VideoReady.topic,),
    ) -> None:
        """Make an intake; `forget` takes who is forgotten, see `ForgottenPeople`."""
        settings = service.settings
        self._service = service
        self.publisher = Publisher(settings, service.name)
        self._forgotten = ForgottenPeople(settings, service.name, self.publisher, forget)
        self.media = media_access(settings)
        self._cancellations = Cancellations(settings, service.name)
        self._jobs = LongJobs(
            settings,
            name=service.name,
            topics=topics,
            handler=handler,
            stop=service.stop,
            ready=service.ready,
        )

    async def run(self, pipeline: Pipeline) -> None:
        """Take videos until the service is stopped, while the pipeline and the publisher are open.

        Waits while Kafka is away. Raises what loading the pipeline's network raised.
        """
        stop, ready = self._service.stop, self._service.ready
        self.metrics = VideoMetrics(self._service.registry, self._jobs, pipeline)
        await retry_until_stopped(
            stop, "topics", partial(ensure_topics, self._service.settings), ready
        )
        async with pipeline, self.publisher:
            await pipeline.ready()
            await self._take_videos(stop, ready)

    async def _take_videos(self, stop: asyncio.Event, ready: Readiness) -> None:
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(
                retry_until_stopped(stop, "video-cancel", self._cancellations.run)
            )
            forgetting = group.create_task(
                retry_until_stopped(stop, "who is forgotten", self._forgotten.run)
            )
            caught_up = group.create_task(self._cancellations.caught_up.wait())
            stopped = group.create_task(stop.wait())
            await asyncio.wait([caught_up, stopped], return_when=asyncio.FIRST_COMPLETED)
            await retry_until_stopped(stop, "videos", self._jobs.run, ready)
            for task in (reading, forgetting, caught_up, stopped):
                task.cancel()

    def is_cancelled(self, request: Request) -> bool:
        """Whether the video was cancelled after it was submitted."""
        return self._cancellations.holds(request.event.video_id, request.submitted_at_ms)

    @contextmanager
    def processing(
        self, request: Request, stats: VideoStats, stop: asyncio.Event
    ) -> Iterator[None]:
        """While inside, set `stop` when the video is cancelled, count `stats`, and name it in logs.

        Enter it right after `is_cancelled`, or a cancellation in between is missed.
        """
        event = request.event
        with (
            log_about(video_id=event.video_id, gallery_id=event.gallery_id),
            self._cancellations.watching(event.video_id, stop),
            self.metrics.counting(stats),
        ):
            yield
