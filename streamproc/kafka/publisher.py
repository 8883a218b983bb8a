"""Publishing: events, records as they are, and dead letters, each acknowledged by the brokers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any, Self

from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    UnknownTopicOrPartitionError,
)

from streamproc.errors import BrokerError, EventError, MachineError
from streamproc.kafka.connection import client_options, unreachable
from streamproc.kafka.records import (
    MAX_DEAD_VALUE_BYTES,
    Headers,
    Record,
    cloud_event,
    dead_letter_headers,
    partition_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType

    from streamproc.events import Event
    from streamproc.settings import Settings

log = logging.getLogger(__name__)

_EVENTS_A_STEP = 100
"""So many events are begun to be sent before other tasks have their turn."""
_HEADER_ROOM_BYTES = 64 * 1024
_SHORT_VALUE_BYTES = 1024
# aiokafka's 16 KiB hold only four persons, and further ones would wait for the next batch.
_BATCH_BYTES = 256 * 1024
# How long a batch waits for a broker that is away before that is an error.
_SEND_TIMEOUT_MS = 120_000


class Publisher:
    """Publishes events and waits until the brokers have them.

    Use as an async context manager; any task of its loop may publish. All methods raise
    MachineError if Kafka is away for longer than two minutes, or refuses.
    """

    def __init__(
        self, settings: Settings, service: str, *, max_record_bytes: int = 0, linger_ms: int = 0
    ) -> None:
        """Make a publisher that is not connected yet.

        `max_record_bytes`: if above `kafka.max_event_bytes`, the limit instead of that.
        `linger_ms`: how long a record may wait so that others are sent with it, which saves much
        work for many small ones.
        """
        self._settings = settings
        self._service = service
        self._prefix = settings.kafka.topic_prefix
        self._linger_ms = linger_ms
        self._max_record_bytes = max(max_record_bytes, settings.kafka.max_event_bytes)
        self._producer: AIOKafkaProducer | None = None

    async def __aenter__(self) -> Self:
        self._producer = AIOKafkaProducer(
            **client_options(self._settings, self._service),
            acks="all",
            enable_idempotence=True,
            compression_type=None,
            linger_ms=self._linger_ms,
            max_batch_size=_BATCH_BYTES,
            max_request_size=self._max_record_bytes + _HEADER_ROOM_BYTES,
            request_timeout_ms=_SEND_TIMEOUT_MS,
        )
        try:
            await self._producer.start()
        except KafkaConnectionError as error:
            await self._close()
            raise unreachable(self._settings, error) from error
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        await self._close()

    async def _close(self) -> None:
        if self._producer is not None:
            with contextlib.suppress(KafkaError):
                await self._producer.stop()

    async def publish(self, event: Event, *, trace: bytes | None = None) -> None:
        """Send one event to its topic under its key, and wait for the acknowledgement."""
        headers = cloud_event(event, self._service, trace)
        partition = await self._partition_of(event, self._prefix + event.topic)
        await self.send(event.topic, event.key.encode(), event.value, headers, partition=partition)

    async def publish_all(self, events: Iterable[Event], *, trace: bytes | None = None) -> None:
        """Send several events together, and wait for all acknowledgements.

        Within a topic and key they keep their order.
        """
        pending = []
        for number, event in enumerate(events, start=1):
            if number % _EVENTS_A_STEP == 0:
                await asyncio.sleep(0)  # to write thousands as JSON takes long
            topic = self._prefix + event.topic
            headers = cloud_event(event, self._service, trace)
            acknowledged = await self.begin(
                topic,
                event.key.encode(),
                event.value,
                headers,
                partition=await self._partition_of(event, topic),
            )
            pending.append((topic, acknowledged))
        for topic, acknowledged in pending:
            with _faults(topic):
                await acknowledged

    async def _partition_of(self, event: Event, topic: str) -> int | None:
        """Return where an event goes whose key does not say it, else None."""
        if event.partition_key == event.key:
            return None
        assert self._producer is not None
        with _faults(topic):
            partitions = await self._producer.partitions_for(topic)
        return partition_of(event.partition_key, len(partitions))

    async def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Headers,
        *,
        partition: int | None = None,
    ) -> None:
        """Send one record as it is, and wait for the acknowledgement; `topic` has no prefix."""
        acknowledged = await self.begin(
            self._prefix + topic, key, value, headers, partition=partition
        )
        with _faults(self._prefix + topic, len(value or b"")):
            await acknowledged

    async def begin(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Headers,
        *,
        partition: int | None = None,
    ) -> asyncio.Future[Any]:
        """Submit a record for sending, and return the acknowledgement as a future.

        `topic` is the full name. Records of one partition are sent in the order in which they were
        submitted. The future gives aiokafka's RecordMetadata, or raises KafkaError.
        """
        assert self._producer is not None
        with _faults(topic, len(value or b"")):
            future: asyncio.Future[Any] = await self._producer.send(
                topic, value=value, key=key, headers=list(headers), partition=partition
            )
        return future

    async def dead_letter(self, record: Record, *, code: str, text: str, attempts: int) -> None:
        """Publish a record that cannot be processed to `dead-letters`, with the reason."""
        # A record needs a key or a value. This one may have neither, hence b"".
        kept = (record.value or b"")[:MAX_DEAD_VALUE_BYTES]
        reasons = dead_letter_headers(record, self._service, code, text, attempts)
        log.warning(
            "dead letter: %s %s[%d]@%d: %s",
            code,
            record.topic,
            record.partition,
            record.offset,
            text,
        )
        try:
            await self.send("dead-letters", record.key, kept, (*record.headers, *reasons))
        except EventError:
            # The record's own headers may be as large as the limit. Without them and its key, and
            # with the beginning of its value, it always fits.
            reasons = dead_letter_headers(
                record, self._service, code, text, attempts, kept_bytes=_SHORT_VALUE_BYTES
            )
            await self.send("dead-letters", None, kept[:_SHORT_VALUE_BYTES], reasons)


@contextlib.contextmanager
def _faults(topic: str, size_bytes: int | None = None) -> Iterator[None]:
    """Turn an error of Kafka into one that says what to do.

    An event that is too large is an EventError: it is the fault of the record that it follows from,
    and sending it again cannot help. All else is a MachineError, a BrokerError if Kafka is away.
    """
    try:
        yield
    except MessageSizeTooLargeError as error:
        size = "an event" if size_bytes is None else f"an event of {size_bytes} bytes"
        raise EventError(
            f"{topic}: {size} was refused: "
            "raise kafka.max_event_bytes and the topic's max.message.bytes"
        ) from error
    except UnknownTopicOrPartitionError as error:
        raise BrokerError(f"{topic}: no such topic: `streamproc topics create` makes it") from error
    except KafkaError as error:
        # What is not worth another try blames this one event, or who sends it.
        is_away = error.retriable or isinstance(error, KafkaTimeoutError)
        fault = BrokerError if is_away else MachineError
        raise fault(f"{topic}: Kafka took no event ({error!r})") from error
