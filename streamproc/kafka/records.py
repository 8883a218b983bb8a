"""Kafka records: what is read of one, and the headers of those that are sent."""

from __future__ import annotations

import hashlib
import re
import time
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from aiokafka.partitioner import murmur2

from streamproc.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamproc.events import Event

_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
Headers = tuple[tuple[str, bytes], ...]

MAX_DEAD_VALUE_BYTES = 512 * 1024
"""Of a dead letter's value; the rest is cut off."""
_MAX_TEXT_CHARS = 2000
_DAY_MS = 24 * 3600 * 1000
_FIRST_TIME_MS = 100_000_000_000  # 1973; earlier times are of another unit
_UNITS = (1, 1000, Fraction(1, 1000), Fraction(1, 1_000_000))  # ms, s, µs, ns to milliseconds


@dataclass(slots=True, eq=False)
class Record:
    """What is read of a consumed record.

    aiokafka's own records have these fields; `faust_table` makes one of Faust's messages.
    """

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


def partition_of(key: str, partitions: int) -> int:
    """Return the partition of a key, such as a gallery: Kafka's default for it."""
    return int((murmur2(key.encode()) & 0x7FFFFFFF) % partitions)


def cloud_event(event: Event, service: str, trace: bytes | None) -> Headers:
    """Return the headers of CloudEvents 1.0 in Kafka's binary mode, with a `traceparent` if any."""
    headers = {
        "ce_specversion": "1.0",
        "ce_id": event.event_id,
        "ce_source": f"/streamproc/{service}",
        "ce_type": f"streamproc.{event.topic}.v{event.schema_version}",
        "ce_time": event.occurred_at,
        "ce_subject": event.key,
        "ce_dataschema": f"{event.topic}.v{event.schema_version}.json",
        "content-type": "application/json",
    }
    encoded = tuple((name, value.encode()) for name, value in headers.items())
    return encoded if trace is None else (*encoded, ("traceparent", trace))


def trace_of(record: Record) -> bytes | None:
    """Return the `traceparent` of a record; all events that follow from the record carry it on.

    Only the form of W3C's Trace Context, 55 bytes, goes on: a header of a megabyte would make each
    of these events too large for Kafka.
    """
    for name, value in record.headers or ():
        if name == "traceparent" and _TRACEPARENT.fullmatch(value or b""):
            return value
    return None


def time_ms_of(record: Record) -> int:
    """Return the time of a record in milliseconds since 1970, whatever unit its producer used.

    The time stamp is the producer's, and producers send seconds, micro- and nanoseconds too. A time
    that is missing, or later than tomorrow in every unit, is taken as now.
    """
    now_ms = time.time_ns() // 1_000_000
    for unit in _UNITS:
        time_ms = int(record.timestamp * unit)
        if _FIRST_TIME_MS <= time_ms <= now_ms + _DAY_MS:
            return time_ms
    return now_ms


def dead_letter_headers(
    record: Record,
    service: str,
    code: str,
    text: str,
    attempts: int,
    kept_bytes: int = MAX_DEAD_VALUE_BYTES,
) -> Headers:
    """Return the `dlq_…` headers of a dead letter: where its record was, and why it failed."""
    value = record.value or b""
    reasons = {
        "dlq_topic": record.topic,
        "dlq_partition": record.partition,
        "dlq_offset": record.offset,
        "dlq_timestamp_ms": record.timestamp,
        "dlq_error_code": code,
        "dlq_error_text": text[:_MAX_TEXT_CHARS],
        "dlq_attempts": attempts,
        "dlq_service": service,
        "dlq_version": __version__,
        "dlq_value_size_bytes": len(value),
        "dlq_value_sha256": hashlib.sha256(value).hexdigest(),
        "dlq_value_truncated": str(len(value) > kept_bytes).lower(),
    }
    return tuple((name, str(value).encode()) for name, value in reasons.items())
