"""The topics: their names and sizes, how they are created, and how existing ones are checked."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaConnectionError, KafkaError, for_code

from streamproc.errors import MachineError, UsageError
from streamproc.kafka.connection import client_options, group_of, unreachable
from streamproc.settings import CompactedTopicSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from streamproc.settings import Settings

TABLE = "rows"
"""The name of the matcher's table; it is part of the changelog's name."""
# Kafka's error codes.
_OK = 0
_UNKNOWN_TOPIC = 3
_ALREADY_EXISTS = 36
_REQUEST_MS = 20_000
_MS_AN_HOUR = 3_600_000
_SEGMENT_SHARE = 1 / 12
"""Of the time that events are kept: so much of it a segment of the log covers."""


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """One topic as the settings want it; `name` has the prefix."""

    name: str
    partitions: int
    config: dict[str, str]


def changelog_of(settings: Settings) -> str:
    """Return the topic in which Faust keeps the matcher's table."""
    return f"{group_of(settings, 'matcher')}-{TABLE}-changelog"


def wanted_topics(settings: Settings) -> list[TopicSpec]:
    """Return all topics that the settings want.

    The matcher's changelog has as many partitions as its input, `person-embeddings`.
    """
    kafka = settings.kafka
    topics = settings.topics
    shared = {
        "min.insync.replicas": str(kafka.min_insync_replicas),
        "max.message.bytes": str(kafka.max_event_bytes),
    }
    specs = []
    for field in type(topics).model_fields:
        topic = getattr(topics, field)
        name = f"{kafka.topic_prefix}{field.replace('_', '-')}"
        kept = (
            {"cleanup.policy": "compact"}
            if isinstance(topic, CompactedTopicSettings)
            else {"cleanup.policy": "delete", **_retention(topic.retention_hours)}
        )
        config = {
            **kept,
            # The broker's clock, as a producer's may be wrong: galleries expire by it, and Kafka
            # never deletes what claims to be of the future.
            "message.timestamp.type": "LogAppendTime",
        }
        specs.append(TopicSpec(name, topic.partitions, config | shared))
    # A table entry is an event and up to 20 neighbours: twice the event's limit is always enough.
    compacted = {
        "cleanup.policy": "compact",
        "max.message.bytes": str(2 * kafka.max_event_bytes),
        # What was removed is gone from the log so long after it: the topic's vectors are biometric.
        "max.compaction.lag.ms": str(
            max(1, int(topics.person_embeddings.retention_hours * _MS_AN_HOUR))
        ),
    }
    specs.append(
        TopicSpec(changelog_of(settings), topics.person_embeddings.partitions, shared | compacted)
    )
    return specs


def _retention(hours: float) -> dict[str, str]:
    """Return the settings by which Kafka keeps an event for at most so many hours.

    Kafka deletes whole segments, once the newest event of one is older than `retention.ms`. So the
    oldest one lives longer by the time that a segment covers, which is a week if nobody says.
    """
    kept_ms = max(2, int(hours * _MS_AN_HOUR))
    segment_ms = max(1, int(kept_ms * _SEGMENT_SHARE))
    return {"retention.ms": str(kept_ms - segment_ms), "segment.ms": str(segment_ms)}


async def create_topics(settings: Settings) -> list[str]:
    """Create the topics that are missing, and return their names; existing ones are not changed.

    Raises MachineError if Kafka is away or refuses.
    """
    specs = wanted_topics(settings)
    async with _admin(settings) as admin:
        present = await _partition_counts(admin, [spec.name for spec in specs])
        missing = [spec for spec in specs if spec.name not in present]
        if missing:
            replicas = settings.kafka.replication_factor
            new = [
                NewTopic(spec.name, spec.partitions, replicas, topic_configs=spec.config)
                for spec in missing
            ]
            response = await admin.create_topics(new)
            for name, code, *text in response.topic_errors:
                # Another service may have created it meanwhile.
                if code not in (_OK, _ALREADY_EXISTS):
                    reason = text[0] if text and text[0] else for_code(code).__name__
                    raise MachineError(f"{name}: Kafka did not create it ({reason})")
    return [spec.name for spec in missing]


async def check_topics(settings: Settings) -> list[TopicSpec]:
    """Check that all topics exist with the right number of partitions, and return them.

    Raises UsageError with the remedy for a missing topic or a wrong number of partitions,
    MachineError if Kafka is away.
    """
    specs = wanted_topics(settings)
    async with _admin(settings) as admin:
        present = await _partition_counts(admin, [spec.name for spec in specs])
    faults = [_fault_of(spec, present.get(spec.name), settings) for spec in specs]
    if any(faults):
        raise UsageError("; ".join(filter(None, faults)))
    return specs


async def ensure_topics(settings: Settings) -> None:
    """Create what is missing, unless `kafka.declare` is false, then check; services begin so."""
    if settings.kafka.declare:
        await create_topics(settings)
    await check_topics(settings)


def _fault_of(spec: TopicSpec, partitions: int | None, settings: Settings) -> str:
    """Say what is wrong with a topic and what to do, "" if nothing is; None: it is missing."""
    if partitions is None:
        return (
            f"topic {spec.name}: missing; `streamproc topics create` makes it "
            f"with {spec.partitions} partitions"
        )
    if partitions == spec.partitions:
        return ""
    if spec.name == changelog_of(settings):
        return (
            f"topic {spec.name}: expected {spec.partitions} partitions as person-embeddings has, "
            f"found {partitions}; stop the matchers, delete this topic and their state folders, "
            "and submit the videos again"
        )
    key = spec.name.removeprefix(settings.kafka.topic_prefix).replace("-", "_")
    return (
        f"topic {spec.name}: expected {spec.partitions} partitions, found {partitions}; "
        f"set topics.{key}.partitions to {partitions}, or make the topic anew"
    )


async def _partition_counts(admin: AIOKafkaAdminClient, names: list[str]) -> dict[str, int]:
    described = await admin.describe_topics(names)
    return {
        topic["topic"]: len(topic["partitions"])
        for topic in described
        if topic["error_code"] != _UNKNOWN_TOPIC
    }


@asynccontextmanager
async def _admin(settings: Settings) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(**client_options(settings, "admin"), request_timeout_ms=_REQUEST_MS)
    try:
        await admin.start()
        yield admin
    except KafkaConnectionError as error:
        raise unreachable(settings, error) from error
    except KafkaError as error:
        raise MachineError(f"Kafka at {','.join(settings.bootstrap)}: {error!r}") from error
    finally:
        await admin.close()
