"""The inbox for decisions: each goes from `review-decisions` among the events of its gallery.

There it has its place in the order of the gallery's events, and is as safe as they are. The offset
is committed once the brokers have it there. After a crash in between it comes again, with the same
id, and does nothing.
"""

from __future__ import annotations

import logging
from datetime import datetime
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaConnectionError, KafkaError

from streamproc.decisions import Decision, parse_decision
from streamproc.errors import EventError, MachineError
from streamproc.events import PersonEmbedding, timestamp_of
from streamproc.kafka.connection import COMMITTED_ONLY, client_options, group_of, unreachable
from streamproc.kafka.records import cloud_event, partition_of, time_ms_of, trace_of

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from streamproc.decisions import AnyDecision
    from streamproc.kafka.publisher import Publisher
    from streamproc.kafka.records import Record
    from streamproc.settings import Settings

log = logging.getLogger(__name__)

GROUP = "decisions"
_MAX_AHEAD_MS = 60_000
_MAX_AT_ONCE = 500
_POLL_MS = 1000
_SERVICE = "matcher"


class DecisionInbox:
    """Takes decisions in a group of its own; every matcher runs one beside its events.

    `count_dead_letter` is called with the code of each.
    """

    def __init__(
        self, settings: Settings, publisher: Publisher, count_dead_letter: Callable[[str], None]
    ) -> None:
        self._settings = settings
        self._publisher = publisher
        self._count_dead_letter = count_dead_letter
        self._events = settings.kafka.topic_prefix + PersonEmbedding.topic

    async def run(self) -> None:
        """Run until cancelled; raises MachineError where Kafka takes nothing."""
        kafka = self._settings.kafka
        consumer = AIOKafkaConsumer(
            kafka.topic_prefix + Decision.topic,
            **client_options(self._settings, _SERVICE),
            group_id=group_of(self._settings, GROUP),
            isolation_level=COMMITTED_ONLY,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            session_timeout_ms=int(kafka.session_timeout_seconds * 1000),
            heartbeat_interval_ms=int(kafka.session_timeout_seconds * 1000 / 3),
            max_poll_interval_ms=int(kafka.max_poll_interval_seconds * 1000),
        )
        try:
            await consumer.start()
            while True:
                found = await consumer.getmany(timeout_ms=_POLL_MS, max_records=_MAX_AT_ONCE)
                if found:
                    await self._forward([one for batch in found.values() for one in batch])
                    await _commit(consumer, found)
        except KafkaConnectionError as error:
            raise unreachable(self._settings, error) from error
        except KafkaError as error:
            raise MachineError(f"{Decision.topic}: {error!r}") from error
        finally:
            await consumer.stop()

    async def _forward(self, records: list[Record]) -> None:
        """Send decisions on, in their order, and wait until the brokers have them."""
        sent: list[asyncio.Future[Any]] = []
        for record in records:
            try:
                sent.append(await self._begin(record, decision_of(record, self._settings)))
            except EventError as error:
                await self._publisher.dead_letter(
                    record, code=error.code, text=str(error), attempts=1
                )
                self._count_dead_letter(error.code)
        for acknowledged in sent:
            await acknowledged

    async def _begin(self, record: Record, decision: AnyDecision) -> asyncio.Future[Any]:
        partitions = self._settings.topics.person_embeddings.partitions
        return await self._publisher.begin(
            self._events,
            decision.gallery_id.encode(),
            decision.to_json(),
            cloud_event(decision, _SERVICE, trace_of(record)),
            partition=partition_of(decision.gallery_id, partitions),
        )


async def _commit(consumer: AIOKafkaConsumer, found: dict[Any, list[Any]]) -> None:
    try:
        await consumer.commit({place: batch[-1].offset + 1 for place, batch in found.items()})
    except (CommitFailedError, IllegalStateError) as error:
        # Partitions have moved: whoever has them now sends these on once more.
        log.warning("%s: not committed (%r): they come again", Decision.topic, error)


def decision_of(record: Record, settings: Settings) -> AnyDecision:
    """Return the decision in a record, as it counts: at most a minute after the record's own time.

    One that claims to be of the far future would hold for ever. Raises EventError.
    """
    value = record.value or b""
    limit = settings.kafka.max_event_bytes
    if len(value) > limit:
        raise EventError(f"{Decision.topic}: expected at most {limit} bytes, got {len(value)}")
    decision = parse_decision(value)
    latest_ms = time_ms_of(record) + _MAX_AHEAD_MS
    changes: dict[str, Any] = {}
    try:
        is_late = datetime.fromisoformat(decision.decided_at).timestamp() * 1000 > latest_ms
    except (OverflowError, ValueError) as error:
        raise EventError(
            f"{Decision.topic}: decided_at: expected a time, got {decision.decided_at}"
        ) from error
    if is_late:
        changes["decided_at"] = timestamp_of(latest_ms)
    return decision.saying(**changes) if changes or not decision.event_id else decision
