"""How this product speaks to Kafka: one way to connect, one way to publish an event, one way to give a record up."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any, Self, TypeVar

from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    KafkaConnectionError,
    KafkaError,
    MessageSizeTooLargeError,
    UnknownTopicOrPartitionError,
)

from streamproc.errors import MachineError
from streamproc.kafka.connection import client_options, unreachable
from streamproc.kafka.records import (
    MAX_DEAD_VALUE_BYTES,
    Headers,
    Record,
    cloud_event,
    dead_letter_headers,
)

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable, Iterator
    from types import TracebackType

    from streamproc.events import Event
    from streamproc.settings import Settings

T = TypeVar("T")
log = logging.getLogger(__name__)

_HEADER_ROOM_BYTES = 64 * 1024
_BATCH_BYTES = 256 * 1024  # aiokafka's 16 KiB are four persons, behind which the next one waits
_SEND_PATIENCE_MS = 120_000  # how long a batch waits for a broker that is away before it is a fault


class Publisher:
    """Publishes events and waits until the brokers have them.

    Use as an async context manager; any task may publish.

    Raises MachineError where Kafka is away for longer than two minutes, or refuses.
    """

    def __init__(
        self, settings: Settings, service: str, *, max_record_bytes: int = 0, linger_ms: int = 0
    ) -> None:
        """`max_record_bytes`: more than `kafka.max_event_bytes`, where a topic of this service takes that.

        `linger_ms`: how long a record may wait for others to be sent with it; this saves much work
        for many small ones.
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
            request_timeout_ms=_SEND_PATIENCE_MS,
        )
        try:
            await self._producer.start()
        except KafkaConnectionError as error:
            await self._close()
            raise unreachable(self._settings, error) from error
        return self

    async def __aexit__(
        self, _k: type[BaseException] | None, _e: BaseException | None, _t: TracebackType | None
    ) -> None:
        await self._close()

    async def _close(self) -> None:
        if self._producer is not None:
            with contextlib.suppress(KafkaError):
                await self._producer.stop()

    async def publish(self, event: Event, *, trace: bytes | None = None) -> None:
        """Send one event to its topic under its key, with CloudEvents headers, and wait for the acknowledgement."""
        await self.send(
            event.topic,
            event.key.encode(),
            event.to_json(),
            cloud_event(event, self._service, trace),
        )

    async def publish_all(self, events: Iterable[Event], *, trace: bytes | None = None) -> None:
        """Send several events at once, in their order within each topic and key, and wait for all acknowledgements."""
        begun = [
            (
                event.topic,
                await self.begin(
                    self._prefix + event.topic,
                    event.key.encode(),
                    event.to_json(),
                    cloud_event(event, self._service, trace),
                ),
            )
            for event in events
        ]
        for topic, acknowledged in begun:
            with _faults(self._prefix + topic):
                await acknowledged

    async def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Headers,
        *,
        partition: int | None = None,
    ) -> None:
        """Send one record as it is, and wait for the acknowledgement.

        `topic` without the prefix.
        """
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
        """Hand a record over for sending; the future, of its partition and offset, is the acknowledgement.

        `topic` is the full name. Records of one partition are sent in the order in which they were
        handed over. The future raises KafkaError.
        """
        assert self._producer is not None
        with _faults(topic, len(value or b"")):
            future: asyncio.Future[Any] = await self._producer.send(
                topic, value=value, key=key, headers=list(headers), partition=partition
            )
        return future

    async def dead_letter(self, record: Record, *, code: str, text: str, attempts: int) -> None:
        """Give a record up: publish it to `dead-letters` with the reason, and wait until the brokers have it."""
        value = record.value
        kept = (value or b"")[
            :MAX_DEAD_VALUE_BYTES
        ]  # a record needs a key or a value, and a dead one may have neither
        headers = (
            *record.headers,
            *dead_letter_headers(record, self._service, code, text, attempts),
        )
        log.warning(
            "dead letter: %s %s[%d]@%d: %s",
            code,
            record.topic,
            record.partition,
            record.offset,
            text,
        )
        try:
            await self.send("dead-letters", record.key, kept, headers)
        except MachineError as error:
            if not isinstance(error.__cause__, MessageSizeTooLargeError):
                raise
            # Headers may be as large as the record: without them, and with less of the value, it
            # always fits.
            own = dead_letter_headers(record, self._service, code, text, attempts, kept_bytes=1024)
            await self.send("dead-letters", None, kept[:1024], own)


@contextlib.contextmanager
def _faults(topic: str, size_bytes: int | None = None) -> Iterator[None]:
    """Turn what Kafka refuses into a MachineError that says what to do."""
    try:
        yield
    except MessageSizeTooLargeError as error:
        size = "an event" if size_bytes is None else f"an event of {size_bytes} bytes"
        raise MachineError(
            f"{topic}: {size} was refused: raise kafka.max_event_bytes and the topic's max.message.bytes"
        ) from error
    except UnknownTopicOrPartitionError as error:
        raise MachineError(
            f"{topic}: no such topic: `streamproc topics create` makes it"
        ) from error
    except KafkaError as error:
        raise MachineError(f"{topic}: Kafka took no event ({error!r})") from error
