"""Which offsets of a partition are messages, asked of Kafka itself. Used by `faust_table` alone."""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_left
from typing import TYPE_CHECKING

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from streamproc.kafka.connection import COMMITTED_ONLY, client_options

if TYPE_CHECKING:
    from streamproc.settings import Settings

log = logging.getLogger(__name__)

_WAIT_SECONDS = 10.0


class LogOffsets:
    """Reads a topic beside its consumer, outside any group, connected only while it answers.

    A consumer that has passed over offsets cannot tell whether it lost messages or there are none
    (the end of a transaction, what was compacted or has expired). What was read is remembered, so a
    log with many such offsets costs one reading for each batch that the broker returns.
    """

    def __init__(self, settings: Settings, topic: str) -> None:
        """`topic` is the full name."""
        self._settings = settings
        self._topic = topic
        # By partition: the offset from which it was read, then those of the messages read.
        self._known: dict[int, list[int]] = {}

    async def first_from(self, partition: int, offset: int) -> int | None:
        """Return the offset of the first message from `offset` on, None if that is not known."""
        known = self._known.get(partition, [])
        if not known or not known[0] <= offset <= known[-1]:
            known = [offset, *await self._read(partition, offset)]
            self._known[partition] = known
        index = bisect_left(known, offset, lo=1)
        first = known[index] if index < len(known) else None
        if first == offset:
            # There is a message: it was lost on the way, or is about to expire. If it is missed
            # again, ask Kafka again.
            del self._known[partition]
        return first

    async def _read(self, partition: int, offset: int) -> list[int]:
        place = TopicPartition(self._topic, partition)
        consumer = AIOKafkaConsumer(
            **client_options(self._settings, "matcher"),
            group_id=None,
            isolation_level=COMMITTED_ONLY,
            auto_offset_reset="earliest",
        )
        try:
            async with asyncio.timeout(_WAIT_SECONDS):
                await consumer.start()
                consumer.assign([place])
                consumer.seek(place, offset)
                records = await consumer.getmany(place, timeout_ms=round(_WAIT_SECONDS * 1000))
                return [record.offset for record in records.get(place, ())]
        except (KafkaError, TimeoutError) as error:
            log.warning(
                "%s[%d]: cannot read which messages follow offset %d (%r)",
                self._topic,
                partition,
                offset,
                error,
            )
            return []
        finally:
            await consumer.stop()
