"""Who is forgotten, for the services that keep files: each event is taken once in a group.

The offset is committed once the event was obeyed, so after a crash it comes again. The other events
of `person-embeddings` are passed over.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaConnectionError, KafkaError

from streamproc.errors import EventError, MachineError
from streamproc.events import Forgotten
from streamproc.kafka.connection import COMMITTED_ONLY, client_options, group_of, unreachable
from streamproc.kafka.records import time_ms_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from streamproc.kafka.publisher import Publisher
    from streamproc.kafka.records import Record
    from streamproc.settings import Settings

log = logging.getLogger(__name__)

_POLL_MS = 500
_FIRST_WAIT_SECONDS = 1.0
_KIND = b'"forgotten"'


def forgotten_in(value: bytes | None) -> Forgotten | None:
    """Return the event in a value of `person-embeddings`, None where it is another one."""
    if value is None or _KIND not in value:  # parsing all of them would cost as the matcher does
        return None
    try:
        return Forgotten.from_json(value)
    except EventError:
        return None


class ForgottenPeople:
    """Reads for a service who is forgotten. Made by worker and animator.

    `obey(event, at_ms)` takes each event and when it came, and raises MachineError where it cannot
    be done now; after as many attempts as a video has, the record is a dead letter.
    """

    def __init__(
        self,
        settings: Settings,
        service: str,
        publisher: Publisher,
        obey: Callable[[Forgotten, int], Awaitable[None]],
    ) -> None:
        self._settings = settings
        self._service = service
        self._publisher = publisher
        self._obey = obey

    async def run(self) -> None:
        """Run until cancelled; raises MachineError if Kafka fails."""
        kafka = self._settings.kafka
        consumer = AIOKafkaConsumer(
            kafka.topic_prefix + Forgotten.topic,
            **client_options(self._settings, self._service),
            group_id=group_of(self._settings, f"{self._service}-forgotten"),
            isolation_level=COMMITTED_ONLY,
            auto_offset_reset="latest",  # before there was anybody here, there were no files
            enable_auto_commit=False,
            session_timeout_ms=int(kafka.session_timeout_seconds * 1000),
            heartbeat_interval_ms=int(kafka.session_timeout_seconds * 1000 / 3),
            max_poll_interval_ms=int(kafka.max_poll_interval_seconds * 1000),
        )
        begun: set[Any] = set()
        try:
            await consumer.start()
            while True:
                found = await consumer.getmany(timeout_ms=_POLL_MS)
                for batch in found.values():
                    for record in batch:
                        await self._take(record)
                new = consumer.assignment() - begun
                offsets = {place: batch[-1].offset + 1 for place, batch in found.items()}
                # Also where nothing has come yet: "latest" would be later after the next start.
                for place in new - offsets.keys():
                    offsets[place] = await consumer.position(place)
                begun |= new
                if offsets:
                    await _commit(consumer, offsets)
        except KafkaConnectionError as error:
            raise unreachable(self._settings, error) from error
        except KafkaError as error:
            raise MachineError(f"{Forgotten.topic}: {error!r}") from error
        finally:
            await consumer.stop()

    async def _take(self, record: Record) -> None:
        event = forgotten_in(record.value)
        if event is None:
            return
        attempts = self._settings.jobs.fault_attempts
        for attempt in range(1, attempts + 1):
            try:
                await self._obey(event, time_ms_of(record))
            except MachineError as error:
                log.warning("not forgotten, attempt %d: %s", attempt, error)
                if attempt == attempts:
                    text = str(error)
                    await self._publisher.dead_letter(
                        record, code="machine", text=text, attempts=attempts
                    )
                else:
                    await asyncio.sleep(_FIRST_WAIT_SECONDS * 2 ** (attempt - 1))
            else:
                return


async def _commit(consumer: AIOKafkaConsumer, offsets: dict[Any, int]) -> None:
    try:
        await consumer.commit(offsets)
    except (CommitFailedError, IllegalStateError) as error:
        # Partitions have moved: whoever has them now obeys once more.
        log.warning("%s: not committed (%r): it comes again", Forgotten.topic, error)
