"""Following topics outside any group: what a service needs that keeps nothing of its own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaConnectionError, KafkaError

from streamproc.errors import MachineError
from streamproc.kafka.connection import COMMITTED_ONLY, client_options, reached, unreachable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from streamproc.kafka.records import Record
    from streamproc.settings import Settings

_POLL_MS = 1000


async def follow(
    settings: Settings,
    service: str,
    take: Mapping[str, Callable[[Record], None]],
    *,
    from_beginning: frozenset[str],
    caught_up: Callable[[], None],
) -> None:
    """Give each record of some topics, by their names without prefix, to its `take`, for ever.

    Those of `from_beginning` are read whole, of the others what comes from now on. `caught_up` is
    called once all that was there has been taken. Raises MachineError if Kafka fails.
    """
    consumer = AIOKafkaConsumer(
        **client_options(settings, service),
        group_id=None,
        isolation_level=COMMITTED_ONLY,
        auto_offset_reset="earliest",
    )
    prefix = settings.kafka.topic_prefix
    try:
        await consumer.start()
        old: list[TopicPartition] = []
        new: list[TopicPartition] = []
        for topic in take:
            count = getattr(settings.topics, topic.replace("-", "_")).partitions
            places = [TopicPartition(prefix + topic, number) for number in range(count)]
            (old if topic in from_beginning else new).extend(places)
        consumer.assign(old + new)
        ends = await consumer.end_offsets(old + new)
        # aiokafka begins by itself, at the earliest: what is sought meanwhile would be lost.
        await asyncio.gather(*(consumer.position(place) for place in old + new))
        for place in new:
            consumer.seek(place, ends[place])
        is_behind = True
        while True:
            if is_behind and await reached(consumer, ends):
                is_behind = False
                caught_up()
            for place, records in (await consumer.getmany(timeout_ms=_POLL_MS)).items():
                for record in records:
                    take[place.topic.removeprefix(prefix)](record)
    except KafkaConnectionError as error:
        raise unreachable(settings, error) from error
    except KafkaError as error:
        raise MachineError(f"Kafka gave no records ({error!r})") from error
    finally:
        await consumer.stop()
