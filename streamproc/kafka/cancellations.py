"""Which videos were cancelled: every worker and animator reads the whole topic `video-cancel`.

It does so outside any consumer group, as each of them needs all cancellations.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaConnectionError, KafkaError

from streamproc.errors import EventError, MachineError
from streamproc.events import VideoCancel
from streamproc.kafka.connection import COMMITTED_ONLY, client_options, reached, unreachable
from streamproc.kafka.records import time_ms_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streamproc.kafka.records import Record
    from streamproc.settings import Settings

log = logging.getLogger(__name__)

_POLL_MS = 500
_MOST_KNOWN = 100_000


class Cancellations:
    """Which videos were cancelled, and when. Made by worker and animator; used by one event loop.

    `run` keeps it up to date; `caught_up` is set once it has read all that the topic held at the
    start. A cancellation applies to videos submitted before it, begun or not. A video that is
    submitted again afterwards is processed.
    """

    def __init__(self, settings: Settings, service: str) -> None:
        self._settings = settings
        self._service = service
        self._topic = settings.kafka.topic_prefix + VideoCancel.topic
        self._at_ms: dict[str, int] = {}
        self._running: dict[str, set[asyncio.Event]] = {}
        self.caught_up = asyncio.Event()

    def holds(self, video_id: str, submitted_at_ms: int) -> bool:
        """Whether a video that was submitted then has been cancelled since."""
        return self._at_ms.get(video_id, -1) >= submitted_at_ms

    @contextmanager
    def watching(self, video_id: str, stop: asyncio.Event) -> Iterator[None]:
        """While inside, set `stop` as soon as the video is cancelled."""
        stops = self._running.setdefault(video_id, set())
        stops.add(stop)
        try:
            yield
        finally:
            stops.discard(stop)
            if not stops:
                self._running.pop(video_id, None)

    def _take(self, record: Record) -> None:
        """Note one cancellation; ignore a record that is none."""
        try:
            event = VideoCancel.from_json(record.value or b"")
        except EventError as error:
            log.warning("ignored a record of %s that is no cancellation: %s", self._topic, error)
            return
        latest_ms = max(self._at_ms.pop(event.video_id, -1), time_ms_of(record))
        self._at_ms[event.video_id] = latest_ms
        while len(self._at_ms) > _MOST_KNOWN:  # the oldest one: they come in order
            del self._at_ms[next(iter(self._at_ms))]
        for stop in self._running.get(event.video_id, ()):
            log.info("cancelled: %s (%s)", event.video_id, event.reason or "no reason given")
            stop.set()

    async def run(self) -> None:
        """Read for ever, from the oldest record on; raises MachineError if Kafka fails."""
        consumer = AIOKafkaConsumer(
            **client_options(self._settings, self._service),
            group_id=None,
            isolation_level=COMMITTED_ONLY,
            auto_offset_reset="earliest",
        )
        try:
            await consumer.start()
            count = self._settings.topics.video_cancel.partitions
            partitions = [TopicPartition(self._topic, number) for number in range(count)]
            consumer.assign(partitions)
            await consumer.seek_to_beginning(*partitions)
            ends = await consumer.end_offsets(partitions)
            while True:
                for records in (await consumer.getmany(timeout_ms=_POLL_MS)).values():
                    for record in records:
                        self._take(record)
                if not self.caught_up.is_set() and await reached(consumer, ends):
                    self.caught_up.set()
        except KafkaConnectionError as error:
            raise unreachable(self._settings, error) from error
        except KafkaError as error:
            raise MachineError(f"{self._topic}: Kafka gave no records ({error!r})") from error
        finally:
            await consumer.stop()
