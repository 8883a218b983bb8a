"""How all clients connect to Kafka, and how a service waits until that works."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any, TypeVar

from aiokafka.helpers import create_ssl_context

from streamproc.errors import BrokerError, MachineError, UsageError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiokafka import AIOKafkaConsumer, TopicPartition

    from streamproc.kafka.readiness import Readiness
    from streamproc.settings import Settings

T = TypeVar("T")
log = logging.getLogger(__name__)

METADATA_AGE_MS = 5_000
"""How old a client's knowledge of the topics may be.

In aiokafka's five minutes nobody would notice that a topic was deleted and made again.
"""
COMMITTED_ONLY = "read_committed"
"""Every consumer's `isolation_level`: a record of an aborted transaction was never sent."""
_FIRST_WAIT_SECONDS = 1.0
_MAX_WAIT_SECONDS = 30.0


def client_options(settings: Settings, service: str) -> dict[str, Any]:
    """Return what every aiokafka client takes: addresses, name, TLS and SASL.

    Raises UsageError for certificates that cannot be loaded.
    """
    kafka = settings.kafka
    options: dict[str, Any] = {
        "bootstrap_servers": list(settings.bootstrap),
        "client_id": f"streamproc-{service}",
        "security_protocol": kafka.security_protocol,
        "metadata_max_age_ms": METADATA_AGE_MS,
    }
    if kafka.security_protocol.endswith("SSL"):
        try:
            options["ssl_context"] = create_ssl_context(
                cafile=None if kafka.ssl_cafile is None else str(kafka.ssl_cafile),
                certfile=None if kafka.ssl_certfile is None else str(kafka.ssl_certfile),
                keyfile=None if kafka.ssl_keyfile is None else str(kafka.ssl_keyfile),
            )
        except OSError as error:  # ssl's own errors derive from it
            raise UsageError(
                "kafka.ssl_cafile, .ssl_certfile, .ssl_keyfile: "
                f"expected PEM files that fit each other ({error})"
            ) from error
    if kafka.security_protocol.startswith("SASL"):
        password = kafka.sasl_password
        options |= {
            "sasl_mechanism": kafka.sasl_mechanism,
            "sasl_plain_username": kafka.sasl_username,
            "sasl_plain_password": None if password is None else password.get_secret_value(),
        }
    return options


def group_of(settings: Settings, service: str) -> str:
    """Return the consumer group of a service, with the prefix of this installation."""
    return f"{settings.kafka.topic_prefix}streamproc-{service}"


def unreachable(settings: Settings, error: Exception) -> BrokerError:
    """Return the error to raise if no broker answers."""
    return BrokerError(
        f"Kafka at {','.join(settings.bootstrap)}: expected a broker, none answered "
        f"({type(error).__name__}); start it, or name another with --bootstrap HOST:PORT"
    )


async def retry_until_stopped(
    stop: asyncio.Event,
    what: str,
    attempt: Callable[[], Awaitable[T]],
    ready: Readiness | None = None,
) -> T | None:
    """Await `attempt()` again after each MachineError, waiting 1 to 30 s; None once `stop` is set.

    `what` names the attempt in the log, and in `ready`, which says why no records are taken.
    """
    wait_seconds = _FIRST_WAIT_SECONDS
    while not stop.is_set():
        try:
            return await attempt()
        except MachineError as error:
            log.warning("%s: %s; trying again in %.0f s", what, error, wait_seconds)
            if ready is not None:
                ready.clear(f"{what}: {error}")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), wait_seconds)
        wait_seconds = min(_MAX_WAIT_SECONDS, wait_seconds * 2)
    return None


async def reached(consumer: AIOKafkaConsumer, ends: dict[TopicPartition, int]) -> bool:
    """Whether a consumer has read all these partitions up to these offsets."""
    positions = await asyncio.gather(*(consumer.position(partition) for partition in ends))
    return all(position >= end for position, end in zip(positions, ends.values(), strict=True))
