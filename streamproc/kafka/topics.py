"""The topics: what they are called, how they are made, and whether those that are there will do."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaConnectionError, KafkaError, for_code

from streamproc.errors import MachineError, UsageError
from streamproc.kafka.connection import client_options, group_of, unreachable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from streamproc.settings import Settings

TABLE = "rows"
_OK, _ALREADY_EXISTS, _UNKNOWN_TOPIC = 0, 36, 3
_REQUEST_MS = 20_000


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """One topic as this installation wants it."""

    name: str
    partitions: int
    config: dict[str, str]


def changelog_of(settings: Settings) -> str:
    """The topic in which Faust keeps the matcher's table."""
    return f"{group_of(settings, 'matcher')}-{TABLE}-changelog"


def wanted_topics(settings: Settings) -> list[TopicSpec]:
    """All topics, with the prefix; the matcher's changelog has as many partitions as its input."""
    kafka, topics = settings.kafka, settings.topics
    shared = {
        "min.insync.replicas": str(kafka.min_insync_replicas),
        "max.message.bytes": str(kafka.max_event_bytes),
    }
    specs = []
    for field in type(topics).model_fields:
        topic = getattr(topics, field)
        config = {
            "cleanup.policy": "delete",
            "retention.ms": str(int(topic.retention_hours * 3_600_000)),
        }
        specs.append(
            TopicSpec(
                f"{kafka.topic_prefix}{field.replace('_', '-')}", topic.partitions, config | shared
            )
        )
    # A row is an event and up to 20 neighbours: twice the event's limit is always enough.
    compacted = {"cleanup.policy": "compact", "max.message.bytes": str(2 * kafka.max_event_bytes)}
    specs.append(
        TopicSpec(changelog_of(settings), topics.person_embeddings.partitions, shared | compacted)
    )
    return specs


async def create_topics(settings: Settings) -> list[str]:
    """Make the topics that are missing, and say which; those that are there are left as they are.

    Raises MachineError where Kafka is away or refuses.
    """
    specs = wanted_topics(settings)
    async with _admin(settings) as admin:
        present = await _partition_counts(admin, [spec.name for spec in specs])
        missing = [spec for spec in specs if spec.name not in present]
        if missing:
            replicas = settings.kafka.replication_factor
            response = await admin.create_topics(
                [
                    NewTopic(spec.name, spec.partitions, replicas, topic_configs=spec.config)
                    for spec in missing
                ]
            )
            for name, code, *text in response.topic_errors:
                if code not in (_OK, _ALREADY_EXISTS):  # another service may have been quicker
                    reason = text[0] if text and text[0] else for_code(code).__name__
                    raise MachineError(f"{name}: Kafka did not create it ({reason})")
    return [spec.name for spec in missing]


async def check_topics(settings: Settings) -> list[TopicSpec]:
    """Compare what is there with what is wanted; returns the topics where all is well.

    Raises UsageError with the remedy for a missing topic or a wrong partition count, MachineError
    where Kafka is away.
    """
    specs = wanted_topics(settings)
    async with _admin(settings) as admin:
        present = await _partition_counts(admin, [spec.name for spec in specs])
    faults = [
        fault for spec in specs if (fault := _fault_of(spec, present.get(spec.name), settings))
    ]
    if faults:
        raise UsageError("; ".join(faults))
    return specs


async def ensure_topics(settings: Settings) -> None:
    """What a service does first: make what is missing (unless `kafka.declare` is false), then check."""
    if settings.kafka.declare:
        await create_topics(settings)
    await check_topics(settings)


def _fault_of(spec: TopicSpec, partitions: int | None, settings: Settings) -> str:
    if partitions is None:
        return f"topic {spec.name}: missing; `streamproc topics create` makes it with {spec.partitions} partitions"
    if partitions == spec.partitions:
        return ""
    key = spec.name.removeprefix(settings.kafka.topic_prefix).replace("-", "_")
    if spec.name == changelog_of(settings):
        return (
            f"topic {spec.name}: expected {spec.partitions} partitions as person-embeddings has, found {partitions}; "
            "stop the matchers, delete this topic and their state folders, and submit the videos again"
        )
    return (
        f"topic {spec.name}: expected {spec.partitions} partitions, found {partitions}; set topics.{key}.partitions to "
        f"{partitions}, or make the topic anew"
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
