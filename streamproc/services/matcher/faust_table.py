"""Everything that depends on Faust: the consumer group, and the table that is its state.

This module and `faust_consumer` are the only ones that import Faust. Used by `matcher` alone.
"""

# ruff: noqa: SLF001 - Faust offers no public way to what is read and written here
from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import logging
import shutil
import time
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import faust
import rocksdict
from aiokafka.errors import KafkaError
from yarl import URL

from streamproc.errors import MachineError
from streamproc.kafka.connection import METADATA_AGE_MS, client_options, group_of, unreachable
from streamproc.kafka.records import Record
from streamproc.kafka.topics import TABLE, changelog_of
from streamproc.services.matcher.faust_consumer import EventConsumer, FlowControl
from streamproc.services.matcher.log_offsets import LogOffsets
from streamproc.services.matcher.offset_order import OffsetOrder, Verdict

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
    from pathlib import Path

    from streamproc.services.matcher.table import Entries
    from streamproc.settings import Settings

log = logging.getLogger(__name__)

_MIB = 1024 * 1024
_MAX_REASON = 300  # characters
_COMMIT_SECONDS = 1.0
_WATCH_SECONDS = 2.0
_SEEK_EVERY_CHECKS = 2
_MAX_STALLED_CHECKS = 10
_FORGET_SECONDS = 3600.0
_STALE_HOURS = 12
"""A local copy that was not written for so long is read anew from Kafka.

It would miss removals, as Kafka forgets those after 24 hours.
"""
_STORE_OPTIONS = {
    "write_buffer_size": 16 * _MIB,
    "max_write_buffer_number": 2,
    "block_cache_size": 16 * _MIB,
}

Waiting: TypeAlias = "Callable[[int], list[Any]]"
"""Returns the messages behind the current one, so many at most, without taking them."""


class FaustEvent(Protocol):
    """What is used of Faust's events: the `message` as consumed, and `ack`."""

    message: Any

    def ack(self) -> bool:
        """Let the offset be committed; only in the order of the partition."""


class _Backlog(NamedTuple):
    """Events of a partition that are not committed, from offset `start` to before `end`."""

    start: int
    end: int


def record_of(message: Any) -> Record:
    """Return a message of Faust's as a record: its time is in seconds, its headers may be None."""
    return Record(
        topic=message.topic,
        partition=message.partition,
        offset=message.offset,
        timestamp=round((message.timestamp or 0) * 1000),
        key=message.key,
        value=message.value,
        headers=tuple(message.headers or ()),
    )


@contextlib.contextmanager
def instance_folder(settings: Settings) -> Iterator[Path]:
    """Give a folder for the local copy of the table, which no other process uses meanwhile.

    Matchers on one machine take numbered folders, each the first that is free, so one that starts
    again finds its copy. Raises MachineError if the folder cannot be written.
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
                    continue  # in use by another process
                _remove_stale(folder)
                _remove_damaged(folder)
                yield folder
                return
    except OSError as error:
        raise MachineError(
            f"{parent}: expected a folder that can be written ({error}); see matcher.state_folder"
        ) from error


def _remove_stale(folder: Path) -> None:
    for store in folder.rglob("*.db"):
        newest = max((path.stat().st_mtime for path in store.iterdir()), default=0.0)
        if newest < time.time() - _STALE_HOURS * 3600:
            shutil.rmtree(store)


def _remove_damaged(folder: Path) -> None:
    """Remove local copies that cannot be opened: Kafka has everything that is in them."""
    for store in folder.rglob("*.db"):
        try:
            rocksdict.Rdict(str(store), rocksdict.Options(raw_mode=True)).close()
        except Exception as error:  # noqa: BLE001 - RocksDB's errors have no type of their own
            reason = " ".join(str(error).split())[:_MAX_REASON]
            log.warning("%s: damaged (%s): removed, and read anew from Kafka", store, reason)
            shutil.rmtree(store)


def credentials_of(settings: Settings) -> Any:
    """Return TLS and SASL as Faust takes them, None for neither."""
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
    """Return the Faust app: at least once, no topics declared, no web server of its own.

    The other members of the group are told `url`.
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
        consumer_metadata_max_age_ms=METADATA_AGE_MS,
        producer_metadata_max_age_ms=METADATA_AGE_MS,
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
    """The consumer group, and the table of entries, of which each member has its partitions.

    Made by the matcher; all methods and callbacks belong to one event loop. The caller publishes
    entries to the changelog and then calls `write` for the local copy. When a member gets a
    partition, Faust reads from the changelog what its copy lacks.
    """

    def __init__(self, settings: Settings, folder: Path, url: str) -> None:
        _quiet_logs()
        self._settings = settings
        self._changelog = changelog_of(settings)
        self._app = make_app(settings, folder, url)
        self._app.flow_control = FlowControl()
        self._order = OffsetOrder()
        self._events = settings.kafka.topic_prefix + "person-embeddings"
        self._offsets = LogOffsets(settings, self._events)
        # By partition: before this offset there is no further message.
        self._empty_until: dict[int, int] = {}
        # Faust makes its consumer itself, so it gets a class that knows this object.
        self._app.transport.Consumer = type(
            "_Consumer", (EventConsumer,), {"on_committed": staticmethod(self._start_from)}
        )
        # Partitions whose files still hold what was removed.
        self._removed_from: set[int] = set()
        self._url = str(self._app.conf.canonical_url)
        options = {} if settings.matcher.store == "memory" else dict(_STORE_OPTIONS)
        self._table = self._app.Table(TABLE, key_type=bytes, value_type=bytes, options=options)

    def on_event(
        self, take: Callable[[AsyncIterator[FaustEvent], Waiting], Awaitable[None]]
    ) -> None:
        """Have `take` take all events, one after the other; it acknowledges each of them itself."""
        raw = {
            "key_type": bytes,
            "value_type": bytes,
            "key_serializer": "raw",
            "value_serializer": "raw",
        }
        topic = self._app.topic(self._events, **raw)

        async def agent(stream: Any) -> None:
            def waiting(count: int) -> list[Any]:
                queued = stream.channel.queue._queue
                return [event.message for event in itertools.islice(queued, count)]

            await take(self._ordered(stream.noack().events()), waiting)

        self._app.agent(topic, name="matcher", concurrency=1)(agent)

    def _start_from(self, tp: Any, offset: int) -> None:
        if tp == self._events_of(tp.partition):
            self._order.start(tp.partition, offset)

    async def _ordered(self, events: AsyncIterator[FaustEvent]) -> AsyncIterator[FaustEvent]:
        """Yield the events of each partition by rising offset, none twice and none left out."""
        order = self._order
        async for event in events:
            message = event.message
            verdict = order.judge(message.partition, message.offset)
            if verdict is Verdict.GAP:
                await self._skip_empty_offsets(message.tp)
                verdict = order.judge(message.partition, message.offset)
            if verdict is Verdict.TAKE:
                yield event
                continue
            self._app.consumer.leave(message)
            expected = order.next_offset(message.partition)
            if verdict is Verdict.GAP and expected is not None:
                log.warning(
                    "partition %d: expected offset %d, got %d; fetching again",
                    message.partition,
                    expected,
                    message.offset,
                )
                await self._app.consumer.go_back(message.tp, expected)

    async def _skip_empty_offsets(self, tp: Any) -> None:
        """Skip the next offsets if Kafka says that they are no messages."""
        expected = self._order.next_offset(tp.partition)
        assert expected is not None
        first = await self._offsets.first_from(tp.partition, expected)
        if first is not None and self._order.skip(tp.partition, expected, first):
            await self._app.consumer.mark_as_no_messages(tp, expected, first - 1)

    def leave(self, message: Any) -> None:
        """Do not wait for the acknowledgement of a message that somebody else will take."""
        self._app.consumer.leave(message)

    def on_rebalance(
        self,
        unload: Callable[[], Awaitable[None]],
        load: Callable[[Collection[int]], Awaitable[bool]],
    ) -> None:
        """Call `unload` when partitions are revoked, `load` once the assigned ones are recovered.

        `load` returns whether it has read all of them. Between the two no event is taken. Faust
        calls `unload` only when all events that were taken are acknowledged.
        """

        async def revoked(*_: object, **__: object) -> None:
            self._order.close()
            await unload()

        async def recovered() -> None:
            assigned = self._app.assignor.assigned_actives()
            own = {tp.partition for tp in assigned if tp.topic == self._changelog}
            self._remove_others(own)
            if await load(own):
                self._order.open()

        self._app.on_partitions_revoked.connect(revoked, weak=False)
        self._table.on_recover(recovered)

    def _remove_others(self, own: Collection[int]) -> None:
        """Delete the local copies of partitions of other members.

        If a partition came back after days, its copy would miss removals; see `_STALE_HOURS`.
        """
        if self._settings.matcher.store == "rocksdict":
            for partition in range(self._settings.topics.person_embeddings.partitions):
                if partition not in own:
                    shutil.rmtree(self._table.data.partition_path(partition), ignore_errors=True)

    async def start(self) -> None:
        """Join the group; raises MachineError if Kafka cannot be reached."""
        try:
            await self._app.start()
        except OSError as error:
            raise unreachable(self._settings, error) from error

    async def join(self) -> None:
        """Return once Faust has stopped or crashed."""
        await self._app.wait_until_stopped()

    @property
    def crash_reason(self) -> object:
        """What Faust crashed with, None if it did not."""
        return self._app.crash_reason

    async def close(self) -> None:
        """Leave the group once all events that were taken are acknowledged."""
        await self._app.stop()

    async def terminate(self) -> None:
        """Leave the group at once: some event will never be acknowledged."""
        self._app.conf.stream_wait_empty = False
        await self._app.stop()

    async def watch(self, is_idle: Callable[[], bool]) -> None:
        """Look for ever for events that Faust does not hand over though nothing is in work.

        `is_idle` says that nothing is. Faust then reads again from the first event that is not
        done. If that does not help, a new process will: raises MachineError.
        """
        before: dict[int, _Backlog] = {}
        stalled_checks: dict[int, int] = {}
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            backlogs = await self._backlogs() if is_idle() else {}
            stalled_checks = {
                partition: stalled_checks.get(partition, 0) + 1
                for partition, backlog in backlogs.items()
                if backlog.start == before.get(partition, backlog).start
            }
            before = backlogs
            for partition, checks in stalled_checks.items():
                await self._resume(partition, backlogs[partition], checks)

    async def _resume(self, partition: int, backlog: _Backlog, stalled_checks: int) -> None:
        tp = self._events_of(partition)
        if stalled_checks > _MAX_STALLED_CHECKS:
            position = await self._app.consumer.position(tp) or 0
            if position < backlog.end:
                raise MachineError(
                    f"partition {partition}: events wait, and Faust does not take them"
                )
            # Faust has read to the end: what is there are no messages, as the end of a transaction.
            self._empty_until[partition] = backlog.end
        elif stalled_checks % _SEEK_EVERY_CHECKS == 0:  # again and again: Faust may drop it again
            log.warning("partition %d: fetching again from offset %d", partition, backlog.start)
            await self._app.consumer.go_back(tp, backlog.start)

    async def forget(self) -> None:
        """Once an hour, for ever, have what was removed leave the files of the local copy, too."""
        while True:
            await asyncio.sleep(_FORGET_SECONDS)
            store = self._table.data
            for partition in self._removed_from & set(store._dbs):
                # It may be closed meanwhile, as its partition moves: then its files go.
                with contextlib.suppress(Exception):
                    await asyncio.to_thread(forget_removed, store._dbs[partition])
            self._removed_from.clear()

    def _events_of(self, partition: int) -> Any:
        return faust.types.TP(self._events, partition)

    async def _backlogs(self) -> dict[int, _Backlog]:
        """Return the own partitions with events that are not committed; none if Kafka is away."""
        consumer = self._app.consumer
        own = [tp for tp in consumer.assignment() if tp.topic == self._events]
        if not own:
            return {}
        try:
            ends = await consumer.highwaters(*own)
            earliest = await consumer.earliest_offsets(*own)
        except (KafkaError, TimeoutError):
            return {}
        backlogs = {}
        for tp in own:
            committed = consumer._committed_offset.get(tp) or 0  # asking Kafka takes a request
            start = max(earliest[tp], committed, self._empty_until.get(tp.partition, 0))
            if start < ends[tp]:
                backlogs[tp.partition] = _Backlog(start, ends[tp])
        return backlogs

    def owner_of(self, partition: int) -> str | None:
        """Return the URL of the other member that owns a partition, None if it is not known."""
        for url, topics in self._app.router.table_metadata(TABLE).items():
            if partition in topics.get(self._changelog, ()) and url != self._url:
                return str(url)
        return None

    def others(self) -> list[str]:
        """Return the URLs of the other members that own partitions."""
        known = self._app.router.table_metadata(TABLE)
        return sorted(str(url) for url, topics in known.items() if topics and url != self._url)

    def end_offset(self, partition: int) -> int | None:
        """Return the offset after the last event of a partition, as the broker last said."""
        end: int | None = self._app.consumer.highwater(self._events_of(partition))
        return end

    @contextlib.contextmanager
    def removed_if_damaged(self, partition: int) -> Iterator[None]:
        """If a local copy cannot be read, remove it and raise MachineError.

        Kafka has everything that is in it: the process that starts next reads it from there.
        """
        try:
            yield
        except Exception as error:
            if self._settings.matcher.store == "rocksdict":
                shutil.rmtree(self._table.data.partition_path(partition), ignore_errors=True)
            reason = " ".join(str(error).split())[:_MAX_REASON]
            raise MachineError(
                f"partition {partition}: the local copy cannot be read ({reason}); it was removed, "
                "and is read anew from Kafka at the next start"
            ) from error

    def entries(self, partition: int) -> Iterator[tuple[bytes, bytes]]:
        """Yield all entries of one partition in the local copy."""
        store = self._table.data
        if self._settings.matcher.store == "memory":
            own = [key for key, owner in store._key_partition.items() if owner == partition]
            yield from ((key, store.data[key]) for key in own)
            return
        for key, value in store._db_for_partition(partition).items():
            if key != store.offset_key:
                yield bytes(key), bytes(value)

    def write(self, partition: int, entries: Entries, offset: int) -> None:
        """Write entries to the local copy; the changelog has them, the last one at `offset`.

        This uses the private parts of Faust's stores. Their public methods write only what belongs
        to the current event, and before the changelog has it.
        """
        store = self._table.data
        if self._settings.matcher.store == "memory":
            for key, value in entries:
                store.data.pop(key, None)
                store._key_partition.pop(key, None)
                if value is not None:
                    store.data[key] = value
                    store._key_partition[key] = partition
            return
        batch = rocksdict.WriteBatch(raw_mode=True)
        for key, value in entries:
            if value is None:
                batch.delete(key)
                self._removed_from.add(partition)
            else:
                batch.put(key, value)
        batch.put(store.offset_key, str(offset).encode())
        store._db_for_partition(partition).write(batch)


def forget_removed(store: rocksdict.Rdict) -> None:
    """Write RocksDB's files anew, without what was removed: it only marks that at first."""
    options = rocksdict.CompactOptions()
    options.set_bottommost_level_compaction(rocksdict.BottommostLevelCompaction.force())
    store.flush()
    store.compact_range(None, None, options)


def _quiet_logs() -> None:
    # Faust warns of each topic that it may not declare.
    logging.getLogger("faust.transport.drivers.aiokafka").setLevel(logging.ERROR)
    # Faust's consumer logs under the name of the module of its subclass, which is one of ours.
    logging.getLogger("streamproc.services.matcher.faust_consumer").setLevel(logging.WARNING)
