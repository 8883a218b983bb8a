"""Faust, and all that is known of it: the consumer group, the table's recovery, and where its parts must be held.

It and `faust_consumer` are the only modules that import Faust. Used by `matcher` alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import logging
import shutil
import time
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import faust
import rocksdict
from aiokafka.errors import KafkaError
from yarl import URL

from streamproc.errors import MachineError
from streamproc.kafka.connection import client_options, group_of, unreachable
from streamproc.kafka.records import Record
from streamproc.kafka.topics import TABLE, changelog_of
from streamproc.services.matcher.faust_consumer import EventConsumer, FlowControl
from streamproc.services.matcher.log_offsets import LogOffsets
from streamproc.services.matcher.offset_order import InOrder, Turn

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
    from pathlib import Path

    from streamproc.services.matcher.table import Entries
    from streamproc.settings import Settings

log = logging.getLogger(__name__)

_MIB = 1024 * 1024
_COMMIT_SECONDS = 1.0
_WATCH_SECONDS = 2.0
_SEEK_TIMES, _LAST_TIMES = 2, 10
_STALE_HOURS = 12
"""A local copy that was not written for longer is read anew from Kafka, which forgets removals after 24 hours."""
_STORE_OPTIONS = {
    "write_buffer_size": 16 * _MIB,
    "max_write_buffer_number": 2,
    "block_cache_size": 16 * _MIB,
}


Waiting: TypeAlias = "Callable[[int], list[Any]]"


class FaustEvent(Protocol):
    """What is used of Faust's events.

    `message` as consumed, and `ack`, after which its offset may be committed.
    """

    message: Any

    def ack(self) -> bool:
        """Mark it as done; only in the order of its partition."""


def record_of(message: Any) -> Record:
    """Faust's message, whose timestamp is in seconds and which may have no headers, as the others read it."""
    place = (message.topic, message.partition, message.offset)
    timestamp_ms = round((message.timestamp or 0) * 1000)
    return Record(*place, timestamp_ms, message.key, message.value, tuple(message.headers or ()))


@contextlib.contextmanager
def instance_folder(settings: Settings) -> Iterator[Path]:
    """A folder for this process's local copy of the table, its own while the context lasts.

    Matchers on one machine take numbered folders, the first that is free: one that restarts finds
    its copy again. Raises MachineError where the folder cannot be written.
    """
    parent = settings.matcher.state_folder.expanduser() / group_of(settings, "matcher")
    try:
        for number in itertools.count():
            folder = parent / str(number)
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "lock").open("w") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue  # another process's
                _remove_stale(folder)
                yield folder
                return
    except OSError as error:
        raise MachineError(
            f"{parent}: expected a folder to write to ({error}); see matcher.state_folder"
        ) from error


def _remove_stale(folder: Path) -> None:
    for store in folder.rglob("*.db"):
        newest = max((path.stat().st_mtime for path in store.iterdir()), default=0.0)
        if newest < time.time() - _STALE_HOURS * 3600:
            shutil.rmtree(store)


def credentials_of(settings: Settings) -> Any:
    """TLS and SASL as Faust takes them."""
    options = client_options(settings, "matcher")
    context = options.get("ssl_context")
    if options["security_protocol"].startswith("SASL"):
        return faust.SASLCredentials(
            username=options["sasl_plain_username"],
            password=options["sasl_plain_password"],
            mechanism=options["sasl_mechanism"],
            ssl_context=context,
        )
    return None if context is None else faust.SSLCredentials(context)


def make_app(settings: Settings, folder: Path, url: str) -> Any:
    """The Faust app: at least once, nothing declared, no web server of its own.

    `url` is told to the other members.
    """
    kafka = settings.kafka
    return faust.App(
        group_of(settings, "matcher"),
        broker=[URL(f"kafka://{address}") for address in settings.bootstrap],
        broker_client_id="streamproc-matcher",
        broker_credentials=credentials_of(settings),
        broker_session_timeout=kafka.session_timeout_seconds,
        broker_heartbeat_interval=min(3.0, kafka.session_timeout_seconds / 3),
        broker_request_timeout=max(90.0, kafka.session_timeout_seconds + 10),
        broker_max_poll_interval=kafka.max_poll_interval_seconds,
        broker_commit_interval=_COMMIT_SECONDS,
        processing_guarantee="at_least_once",
        store="memory://" if settings.matcher.store == "memory" else "rocksdb://",
        datadir=str(folder),
        canonical_url=url,
        web_enabled=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        topic_partitions=settings.topics.person_embeddings.partitions,
        table_standby_replicas=0,
    )


class FaustTable:
    """The consumer group and the table of entries.

    `start`, `stop` and all callbacks belong to one loop.

    Entries reach the changelog by the caller; `keep` writes them here afterwards. On recovery Faust
    reads from the changelog what is missing here.
    """

    def __init__(self, settings: Settings, folder: Path, url: str) -> None:
        logging.getLogger("faust.transport.drivers.aiokafka").setLevel(
            logging.ERROR
        )  # warns of what it may not declare
        logging.getLogger("streamproc.services.matcher.faust_consumer").setLevel(
            logging.WARNING
        )  # Faust's consumer, subclassed there, logs as one of ours
        self._settings = settings
        self._changelog = changelog_of(settings)
        self._app = make_app(settings, folder, url)
        self._app.flow_control = FlowControl()
        self._order = InOrder()
        self._events = settings.kafka.topic_prefix + "person-embeddings"
        self._offsets = LogOffsets(settings, self._events)
        self._empty_until: dict[int, int] = {}  # by partition
        self._app.transport.Consumer = type(
            "_Consumer", (EventConsumer,), {"on_committed": staticmethod(self._start_from)}
        )
        self._url = str(self._app.conf.canonical_url)
        options = {} if settings.matcher.store == "memory" else dict(_STORE_OPTIONS)
        self._table = self._app.Table(TABLE, key_type=bytes, value_type=bytes, options=options)

    def on_event(
        self, take: Callable[[AsyncIterator[FaustEvent], Waiting], Awaitable[None]]
    ) -> None:
        """Have all events, one after the other, taken by `take`, which acknowledges each itself.

        It also gets a function that shows the messages of up to so many events that come next,
        without taking them.
        """
        raw = {
            "key_type": bytes,
            "value_type": bytes,
            "key_serializer": "raw",
            "value_serializer": "raw",
        }
        topic = self._app.topic(self._events, **raw)

        async def agent(stream: Any) -> None:
            def waiting(count: int) -> list[Any]:
                queued = stream.channel.queue._queue  # noqa: SLF001 - Faust shows it in no other way
                return [event.message for event in itertools.islice(queued, count)]

            await take(self._in_order(stream.noack().events()), waiting)

        self._app.agent(topic, name="matcher", concurrency=1)(agent)

    def _start_from(self, tp: Any, offset: int) -> None:
        if tp == self._events_of(tp.partition):
            self._order.start(tp.partition, offset)

    async def _in_order(self, events: AsyncIterator[FaustEvent]) -> AsyncIterator[FaustEvent]:
        """The events of each partition in the order of their offsets, none twice and none left out."""
        order = self._order
        async for event in events:
            message, consumer = event.message, self._app.consumer
            turn = order.turn_of(message.partition, message.offset)
            if turn is Turn.PASSED_OVER:
                await self._skip_what_is_none(message.tp)
                turn = order.turn_of(message.partition, message.offset)
            if turn is Turn.NEXT:
                yield event
                continue
            consumer.leave(message)
            expected = order.next_offset(message.partition)
            if turn is Turn.PASSED_OVER and expected is not None:
                log.warning(
                    "partition %d: from offset %d again, not %d",
                    message.partition,
                    expected,
                    message.offset,
                )
                await consumer.go_back(message.tp, expected)

    async def _skip_what_is_none(self, tp: Any) -> None:
        """Pass the offsets that come next and are no messages, where Kafka says so."""
        expected = self._order.next_offset(tp.partition)
        assert expected is not None
        first = await self._offsets.first_from(tp.partition, expected)
        if first is not None and self._order.skip(tp.partition, expected, first):
            await self._app.consumer.mark_as_no_messages(tp, expected, first - 1)

    def on_moved(
        self,
        let_go: Callable[[], Awaitable[None]],
        load: Callable[[Collection[int]], Awaitable[bool]],
    ) -> None:
        """Call `let_go` when partitions are taken away, and `load` with all that are ours once they are recovered.

        `load` says whether it has read all of them. Between the two no event is taken; those taken
        before must be acknowledged before `let_go` is called.
        """

        async def revoked(*_: object, **__: object) -> None:
            self._order.close()
            await let_go()

        async def recovered() -> None:
            mine = {
                tp.partition
                for tp in self._app.assignor.assigned_actives()
                if tp.topic == self._changelog
            }
            self._remove_others(mine)
            if await load(mine):
                self._order.open()

        self._app.on_partitions_revoked.connect(revoked, weak=False)
        self._table.on_recover(recovered)

    def _remove_others(self, mine: Collection[int]) -> None:
        """Remove copies of partitions that others own: they would miss removals if those came back in some days."""
        if self._settings.matcher.store == "rocksdict":
            for partition in range(self._settings.topics.person_embeddings.partitions):
                if partition not in mine:
                    shutil.rmtree(self._table.data.partition_path(partition), ignore_errors=True)

    async def start(self) -> None:
        """Join the group. Raises MachineError where Kafka cannot be reached."""
        try:
            await self._app.start()
        except OSError as error:
            raise unreachable(self._settings, error) from error

    async def ended(self) -> None:
        """Return once Faust has stopped or crashed."""
        await self._app.wait_until_stopped()

    @property
    def crash_reason(self) -> object:
        """What Faust died of."""
        return self._app.crash_reason

    async def stop(self, *, unfinished: bool) -> None:
        """Leave the group.

        `unfinished`: some event will never be acknowledged, so do not wait for it.
        """
        if unfinished:
            self._app.conf.stream_wait_empty = False
        await self._app.stop()

    async def watch(self, is_idle: Callable[[], bool]) -> None:
        """Look after events that wait and that Faust does not hand over, though nothing is in work.

        Where going back to the first event that is not done does not help, a process that begins
        anew does: raises MachineError. Unless Faust has read to the end: then what is there are no
        messages, as the end of a transaction.
        """
        before: dict[int, tuple[int, int]] = {}
        seen: dict[int, int] = {}
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            waiting = await self._waiting() if is_idle() else {}
            seen = {
                p: seen.get(p, 0) + 1
                for p, where in waiting.items()
                if where[0] == before.get(p, where)[0]
            }
            before = waiting
            for partition, times in seen.items():
                if times > _LAST_TIMES:
                    if (
                        await self._app.consumer.position(self._events_of(partition)) or 0
                    ) < waiting[partition][1]:
                        raise MachineError(
                            f"partition {partition}: events wait, and Faust does not take them"
                        )
                    self._empty_until[partition] = waiting[partition][1]
                elif times % _SEEK_TIMES == 0:  # more than once: it may be forgotten again
                    log.warning(
                        "partition %d: fetching again from offset %d",
                        partition,
                        waiting[partition][0],
                    )
                    await self._app.consumer.go_back(
                        self._events_of(partition), waiting[partition][0]
                    )

    def _events_of(self, partition: int) -> Any:
        return faust.types.TP(self._events, partition)

    async def _waiting(self) -> dict[int, tuple[int, int]]:
        """The partitions with events that are not committed: from which offset, and the end."""
        consumer = self._app.consumer
        own = [tp for tp in consumer.assignment() if tp.topic == self._events]
        if not own:
            return {}
        try:
            ends, starts = await consumer.highwaters(*own), await consumer.earliest_offsets(*own)
        except (KafkaError, TimeoutError):
            return {}  # the broker is away
        committed = {tp: consumer._committed_offset.get(tp) or 0 for tp in own}  # noqa: SLF001 - else a request
        done = {
            tp: max(starts[tp], committed[tp], self._empty_until.get(tp.partition, 0)) for tp in own
        }
        return {tp.partition: (done[tp], ends[tp]) for tp in own if done[tp] < ends[tp]}

    def owner_of(self, partition: int) -> str | None:
        """The URL of another member that owns a partition, None where that is not known."""
        for url, topics in self._app.router.table_metadata(TABLE).items():
            if partition in topics.get(self._changelog, ()) and url != self._url:
                return str(url)
        return None

    def end_offset(self, partition: int) -> int | None:
        """The offset after the last event of a partition, as last heard."""
        end: int | None = self._app.consumer.highwater(self._events_of(partition))
        return end

    def entries(self, partition: int) -> Iterator[tuple[bytes, bytes]]:
        """All entries of one partition."""
        store = self._table.data
        if self._settings.matcher.store == "memory":
            own = [key for key, where in store._key_partition.items() if where == partition]  # noqa: SLF001 - see keep
            yield from ((key, store.data[key]) for key in own)
            return
        for key, value in store._db_for_partition(partition).items():  # noqa: SLF001 - see keep
            if key != store.offset_key:
                yield bytes(key), bytes(value)

    def keep(self, partition: int, entries: Entries, offset: int) -> None:
        """Write entries that the changelog has, the last of them at `offset`.

        Faust's stores write only what the event at hand writes, and before the changelog has it;
        hence the private names.
        """
        store = self._table.data
        if self._settings.matcher.store == "memory":
            for key, value in entries:
                store.data.pop(key, None)
                store._key_partition.pop(key, None)  # noqa: SLF001
                if value is not None:
                    store.data[key], store._key_partition[key] = value, partition  # noqa: SLF001
            return
        batch = rocksdict.WriteBatch(raw_mode=True)
        for key, value in entries:
            if value is None:
                batch.delete(key)
            else:
                batch.put(key, value)
        batch.put(store.offset_key, str(offset).encode())
        store._db_for_partition(partition).write(batch)  # noqa: SLF001
