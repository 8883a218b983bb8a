"""Which offsets of a partition are messages, asked of Kafka itself. Used by `faust_app` alone."""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_left
from typing import TYPE_CHECKING

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from streamproc.kafka.connection import client_options

if TYPE_CHECKING:
    from streamproc.settings import Settings

log = logging.getLogger(__name__)

_WAIT_SECONDS = 10.0


class LogOffsets:
    """Reads a topic beside its consumer, with no group and for as long as a question takes.

    A consumer that passed offsets over cannot tell whether it lost messages or there are none (a
    transaction's end, what was compacted or has expired). What was read is kept, so that a log with
    many such offsets costs one reading for each piece that the broker hands over at once.
    """

    def __init__(self, settings: Settings, topic: str) -> None:
        """`topic` is the full name."""
        self._settings, self._topic = settings, topic
        self._known: dict[
            int, list[int]
        ] = {}  # by partition: where the reading began, then the messages' offsets

    async def first_from(self, partition: int, offset: int) -> int | None:
        """The offset of the first message at or after `offset`, None where that cannot be said now."""
        known = self._known.get(partition, [])
        if not known or not known[0] <= offset <= known[-1]:
            known = self._known[partition] = [offset, *await self._read(partition, offset)]
        at = bisect_left(known, offset, lo=1)
        first = known[at] if at < len(known) else None
        if first == offset:
            del self._known[
                partition
            ]  # it was lost on the way, or expires just now: ask anew if it is missed again
        return first

    async def _read(self, partition: int, offset: int) -> list[int]:
        place = TopicPartition(self._topic, partition)
        consumer = AIOKafkaConsumer(
            **client_options(self._settings, "matcher"), group_id=None, auto_offset_reset="earliest"
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
                "%s[%d]: cannot say what is there from offset %d (%r)",
                self._topic,
                partition,
                offset,
                error,
            )
            return []
        finally:
            await consumer.stop()
