"""The matcher: a Faust agent around the pure core of `gallery`; candidates out, rows in a table.

It loses nothing, and says nothing twice but the same, because of the order of its steps:

1. The core decides what follows from an event, from the rows alone.
2. The events that follow are published, and acknowledged by the brokers.
3. The rows are sent to the table's changelog and, once the brokers have acknowledged those too,
   written to the local copy.
4. The event is acknowledged, always in the order of its partition. Faust commits what is
   acknowledged.

After a crash in between, the event comes again, and the core decides the same for it. Faust's own
way of writing a table, `table[key] = value`, is not used: it writes the local copy first and the
changelog at some later time. After a crash between the two, the event that comes again would find
its row and write nothing, and whoever takes over the partition later would never get that row.

Decisions come in by `review-decisions`, and `inbox` puts each among the events of its gallery, so
that all this holds for them as well.

A bad event becomes a dead letter. Anything else that fails ends the process. Faust would
acknowledge the event of an agent that raised, so the agent does not return after such a failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ipaddress
import logging
import socket
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from aiokafka.errors import KafkaError

from streamproc.errors import EventError, MachineError
from streamproc.events import (
    DuplicateCandidate,
    DuplicateGroup,
    Forgotten,
    GalleryExpired,
    PersonEmbedding,
    PersonIdentity,
    VideoClosed,
    now,
    timestamp_of,
)
from streamproc.gallery import MatchResult
from streamproc.kafka.connection import retry_until_stopped
from streamproc.kafka.publisher import Publisher
from streamproc.kafka.records import trace_of
from streamproc.kafka.topics import changelog_of, ensure_topics
from streamproc.pipeline.resources import calibration_of
from streamproc.services.logs import log_about
from streamproc.services.matcher.clock import (
    SteadyClock,
    are_decisions_over,
    is_expired,
    to_expire,
)
from streamproc.services.matcher.faust_table import FaustTable, instance_folder, record_of
from streamproc.services.matcher.http import GalleryApi
from streamproc.services.matcher.inbox import DecisionInbox
from streamproc.services.matcher.metrics import MatcherMetrics
from streamproc.services.matcher.prefetch import Prefetch
from streamproc.services.matcher.table import (
    Galleries,
    decide,
    entries_of,
    partition_of,
)
from streamproc.services.service import Service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Collection, Coroutine, Iterator

    from streamproc.gallery import Writes
    from streamproc.services.matcher.faust_table import FaustEvent, Waiting
    from streamproc.services.matcher.prefetch import Parsed
    from streamproc.services.matcher.table import Entries, OwnedGallery
    from streamproc.settings import Settings

log = logging.getLogger(__name__)

_MAX_UNACKNOWLEDGED = 1000
_CHANGELOG_LINGER_MS = 10
_ENTRIES_A_STEP = 200
"""So many entries are read, sent or written before the event loop runs other tasks, such as health
checks."""
_MAX_REASON = 500
_GC_THRESHOLDS = (2_000, 1, 1_000_000)
"""How often the garbage collector runs: over young objects often, over all of them hardly ever.

It holds up every thread while it runs, for a microsecond or two an object. What it looks through is
mostly rows, which stay: to go through all of them takes seconds in a large gallery.
"""
_TERMINATE_SECONDS = 10.0
"""How long Faust may take to leave the group after a fault."""
_MAX_EXPIRY_CHECK_SECONDS = 600.0


async def run_matcher(settings: Settings) -> None:
    """Run until a signal comes; raises UsageError for wrong topics, MachineError for a fault."""
    service = Service("matcher", settings)
    matcher = Matcher(service)
    service.routes += GalleryApi(matcher).routes()
    await service.run(matcher.run)


@dataclass(frozen=True, slots=True, eq=False)
class _Handled:
    """An event that is decided, and whose entries are on their way to the changelog."""

    event: FaustEvent
    entries: Entries
    acknowledgements: list[asyncio.Future[Any]]
    dead_letter: asyncio.Task[None] | None = None
    """On its way, if the event is a bad one: it is not waited for, so that many go together."""


async def _first_of(*works: Coroutine[Any, Any, Any]) -> None:
    """Return when one of them has returned, or raise what it raised; the others are cancelled."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()


class Matcher:
    """The work of one matcher process.

    Its parts run as tasks of one event loop; the agent handles one event at a time.
    """

    def __init__(self, service: Service) -> None:
        settings = service.settings
        self._service = service
        self._settings = settings
        self._partitions = settings.topics.person_embeddings.partitions
        self._changelog = changelog_of(settings)
        self._publisher = Publisher(settings, "matcher")
        # An entry is an event and what the core adds: the changelog takes twice an event, see
        # `wanted_topics`. Nobody waits for single entries, so several may be sent together.
        self._changes = Publisher(
            settings,
            "matcher",
            max_record_bytes=2 * settings.kafka.max_event_bytes,
            linger_ms=_CHANGELOG_LINGER_MS,
        )
        self._handled: asyncio.Queue[_Handled] = asyncio.Queue(_MAX_UNACKNOWLEDGED)
        self._table: FaustTable | None = None
        self._loaded: frozenset[int] = frozenset()
        self._loads = 0  # how often partitions moved: tells a load that it is out of date
        self._busy = False
        self._fault: BaseException | None = None
        self._faulted = asyncio.Event()
        self.galleries = self._no_galleries()
        self._next_offsets: dict[int, int] = {}  # by partition: all before it is acknowledged
        self._metrics = MatcherMetrics(service.registry, self._gauges)
        self._clock = SteadyClock()
        self._expiry_seconds = settings.matcher.gallery_expiry_hours * 3600
        self._calibration = calibration_of(settings.clustering)

    def _no_galleries(self) -> Galleries:
        return Galleries(max_persons=self._settings.limits.max_persons_per_gallery)

    @property
    def similarity_threshold(self) -> float:
        """That of persons whose event names none."""
        return self._settings.clustering.similarity_threshold

    def others(self) -> list[str]:
        """Return the URLs of the other matchers, as far as they are known."""
        return [] if self._table is None else self._table.others()

    @property
    def loaded(self) -> Collection[int]:
        """The partitions that this process owns and has read; none while it recovers."""
        return self._loaded

    def partition_of(self, gallery_id: str) -> int:
        """Return the partition of a gallery."""
        return partition_of(gallery_id, self._partitions)

    def owner_of(self, partition: int) -> str | None:
        """Return the URL of the other matcher that owns a partition, None if it is not known."""
        return None if self._table is None else self._table.owner_of(partition)

    def _is_idle(self) -> bool:
        return self._service.ready.is_set() and not self._busy and self._handled.empty()

    def _gauges(self) -> dict[str, int]:
        return {
            "decisions": self.galleries.decisions,
            "lag": self._lag(),
            "galleries": len(self.galleries),
            "rows": self.galleries.rows,
            "partitions": len(self._loaded),
        }

    def _lag(self) -> int:
        if self._table is None:
            return 0
        lag = 0
        for partition, next_offset in self._next_offsets.items():
            end = self._table.end_offset(partition)
            if end is not None:
                lag += max(0, end - next_offset)
        return lag

    async def run(self) -> None:
        """Work until the service is stopped, then finish what has begun. Raises what failed."""
        stop, ready = self._service.stop, self._service.ready
        await retry_until_stopped(stop, "topics", partial(ensure_topics, self._settings), ready)
        async with contextlib.AsyncExitStack() as stack:
            folder = stack.enter_context(instance_folder(self._settings))
            for publisher in (self._publisher, self._changes):
                connect = partial(stack.enter_async_context, publisher)
                await retry_until_stopped(stop, "Kafka", connect, ready)
            if stop.is_set():
                return
            self._table = table = FaustTable(self._settings, folder, await self._own_url())
            table.on_event(self._take)
            table.on_rebalance(self._unload, self._load)
            works = (
                self._acknowledge(),
                self._expire(),
                DecisionInbox(self._settings, self._publisher, self._count_dead_letter).run(),
                table.watch(self._is_idle),
                table.forget(),
            )
            async with self._tasks(*works):
                await self._run_table(table)

    async def _own_url(self) -> str:
        await self._service.listening.wait()  # the HTTP server starts beside this, in a moment
        options = self._settings
        if options.matcher.advertised_url:
            return options.matcher.advertised_url
        host = options.service.http_host
        if _is_any_address(host):
            # No address to connect to. In a container, its name leads here.
            host = socket.gethostname()
        return f"http://{host}:{self._service.port}"

    async def _run_table(self, table: FaustTable) -> None:
        stop = self._service.stop
        with self._failing():
            await table.start()
            await _first_of(stop.wait(), self._faulted.wait(), table.join())
            self._service.ready.clear("stopping")
            if self._fault is None and not stop.is_set():
                self._fail(MachineError(f"Faust stopped by itself: {table.crash_reason!r}"))
            elif self._fault is None:
                await _first_of(table.close(), self._faulted.wait())
        if self._fault is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(table.terminate(), _TERMINATE_SECONDS)
            raise self._fault

    @contextlib.asynccontextmanager
    async def _tasks(self, *works: Awaitable[None]) -> AsyncIterator[None]:
        tasks = [asyncio.ensure_future(self._guarded(work)) for work in works]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _guarded(self, work: Awaitable[None]) -> None:
        with self._failing():
            await work

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """End this process if anything fails inside; Faust or asyncio would only swallow it."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - see above
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if self._fault is None:
            log.error(
                "ending without acknowledging: %s",
                error,
                exc_info=None if isinstance(error, MachineError) else error,
            )
            self._fault = error
            self._faulted.set()

    async def _unload(self) -> None:
        self._service.ready.clear("its partitions move, or are being read")
        self._loads += 1
        self._loaded = frozenset()
        left = list(self.galleries)
        self.galleries = self._no_galleries()
        self._next_offsets.clear()
        await _let_go(*left)

    async def _load(self, partitions: Collection[int]) -> bool:
        """Read the galleries of all own partitions; no event is taken before this is done.

        Returns False if partitions moved again meanwhile, or if they cannot be read.
        """
        start = time.perf_counter()
        galleries = None
        with self._failing():
            galleries = await self._read_galleries(partitions)
        if galleries is None:
            return False
        seconds = time.perf_counter() - start
        # Rows are many objects that stay: to search all of them for garbage again and again would
        # take seconds.
        gc.freeze()
        gc.set_threshold(*_GC_THRESHOLDS)
        self.galleries = galleries
        self._loaded = frozenset(partitions)
        self._service.ready.set()
        log.info(
            "partitions %s: read %d rows in %.1f s", sorted(partitions), galleries.rows, seconds
        )
        return True

    async def _read_galleries(self, partitions: Collection[int]) -> Galleries | None:
        """Read the table's entries; None if partitions moved meanwhile."""
        self._loads += 1
        this_load = self._loads
        assert self._table is not None
        galleries = self._no_galleries()
        for partition in partitions:
            with self._table.removed_if_damaged(partition):
                for index, (key, value) in enumerate(self._table.entries(partition)):
                    galleries.load(partition, key, value)
                    if index % _ENTRIES_A_STEP == 0:
                        await asyncio.sleep(0)
                        if this_load != self._loads:
                            return None
        return galleries

    async def _take(self, events: AsyncIterator[FaustEvent], waiting: Waiting) -> None:
        prefetch = Prefetch(self._settings.kafka.max_event_bytes, waiting, self._metrics)
        with self._failing():
            async for event in events:
                self._busy = True
                parsed = await prefetch.event_of(event.message, self.galleries)
                await self._handle(event, parsed)
                self._busy = False
            return
        # It has failed. If this returned, Faust would go on with the next event.
        await asyncio.Event().wait()

    async def _handle(self, event: FaustEvent, parsed: Parsed | EventError) -> None:
        message = event.message
        entries: Entries = []
        acknowledgements: list[asyncio.Future[Any]] = []
        dead_letter = None
        try:
            if isinstance(parsed, EventError):
                raise parsed
            self._metrics.events[parsed.kind] += 1
            with log_about(gallery_id=parsed.gallery_id):
                if self.partition_of(parsed.gallery_id) == message.partition:
                    applied = await self._apply(message, parsed)
                    if applied is None:
                        assert self._table is not None
                        self._table.leave(message)  # whoever has the partition now gets it again
                        return
                    entries, acknowledgements = applied
                else:
                    await self._send_on(message, parsed)
        except EventError as error:
            dead_letter = asyncio.create_task(self._publish_dead_letter(message, error))
        await self._handled.put(_Handled(event, entries, acknowledgements, dead_letter))

    async def _apply(
        self, message: Any, event: Parsed
    ) -> tuple[Entries, list[asyncio.Future[Any]]] | None:
        """Do what follows from an event; return its entries, and their acknowledgements.

        None if partitions moved meanwhile: nothing of the event was said or written then.
        """
        start = time.perf_counter()
        at_ms = self._clock.time_ms_of(message)
        galleries = self.galleries
        owned = galleries.open(event.gallery_id, message.partition)
        work = partial(self._decide, owned, event, at_ms, message.value)
        try:
            if isinstance(event, PersonEmbedding):
                result, entries = work()
            else:  # takes seconds in a large gallery: health checks are answered beside it
                result, entries = await asyncio.to_thread(work)
        except EventError:
            if galleries is not self.galleries:
                return None
            galleries.drop_if_empty(owned)
            raise
        if galleries is not self.galleries:
            return None
        decided = time.perf_counter()
        if result.events:
            await self._publisher.publish_all(result.events, trace=trace_of(record_of(message)))
        published = time.perf_counter()
        acknowledgements = await self._send_entries(message.partition, entries)
        if isinstance(event, GalleryExpired):
            await self._expired(galleries, owned, result.writes)
        else:
            owned.gallery.write(result.writes)
            owned.last_event_ms = max(owned.last_event_ms, at_ms)
            if not isinstance(event, PersonEmbedding | VideoClosed | Forgotten):
                owned.last_decision_ms = max(owned.last_decision_ms, at_ms)
        seconds = self._metrics.seconds
        seconds["apply"] += decided - start
        seconds["publish"] += published - decided
        seconds["write"] += time.perf_counter() - published
        self._count(result)
        return entries, acknowledgements

    def _is_over(self, owned: OwnedGallery, event: GalleryExpired, now_ms: int) -> bool:
        """Whether the time of a gallery, or of its decisions, is over by this process's clock."""
        if event.decisions:
            return are_decisions_over(owned, now_ms, self._settings.review.keep_days)
        return is_expired(owned, now_ms, self._expiry_seconds)

    async def _expired(self, galleries: Galleries, owned: OwnedGallery, writes: Writes) -> None:
        """Forget what has expired of a gallery; its decisions may stay, or go alone."""
        if owned.gallery.decisions or not writes.rows:
            owned.gallery.write(writes)
            galleries.drop_if_empty(owned)
        else:
            galleries.drop(owned)
            await _let_go(owned)

    async def _send_entries(self, partition: int, entries: Entries) -> list[asyncio.Future[Any]]:
        """Begin to send entries to the changelog; return their acknowledgements."""
        begun = []
        for number, (key, value) in enumerate(entries, start=1):
            begun.append(
                await self._changes.begin(self._changelog, key, value, (), partition=partition)
            )
            if number % _ENTRIES_A_STEP == 0:
                await asyncio.sleep(0)
        return begun

    def _decide(
        self, owned: OwnedGallery, event: Parsed, at_ms: int, raw: bytes
    ) -> tuple[MatchResult, Entries]:
        """Return what an event does, and its entries; any thread may, while nobody writes."""
        if isinstance(event, GalleryExpired) and not self._is_over(owned, event, at_ms):
            return MatchResult(), []  # whoever announced it has a clock that is wrong
        try:
            result = decide(
                owned,
                event,
                similarity_threshold=self.similarity_threshold,
                occurred_at=now(),
                calibration=self._calibration,
                at_ms=at_ms,
            )
        except (EventError, MachineError):
            raise
        except Exception as error:
            # Whatever one event makes the matcher do, the others of its partition must go on.
            log.exception("an event could not be decided")
            raise EventError(
                f"the event could not be decided ({type(error).__name__}: "
                f"{' '.join(str(error).split())[:_MAX_REASON]})"
            ) from error
        person = event if isinstance(event, PersonEmbedding) else None
        entries = entries_of(event.gallery_id, result.writes, at_ms=at_ms, event=person, raw=raw)
        return result, entries

    def _count(self, result: MatchResult) -> None:
        self._metrics.rows_not_compared += result.not_compared
        self._metrics.pairs_not_kept += result.not_kept
        for event in result.events:
            if isinstance(event, DuplicateCandidate):
                self._metrics.candidates[event.state] += 1
            elif isinstance(event, DuplicateGroup):
                self._metrics.groups[event.state] += 1
            elif isinstance(event, PersonIdentity):
                self._metrics.identities += 1

    async def _send_on(self, message: Any, event: Parsed) -> None:
        """Send an event to its gallery's partition: its producer hashes keys in another way."""
        record = record_of(message)
        await self._publisher.send(
            event.topic,
            event.gallery_id.encode(),
            record.value,
            tuple(record.headers),
            partition=self.partition_of(event.gallery_id),
        )
        self._metrics.strays += 1

    async def _publish_dead_letter(self, message: Any, error: EventError) -> None:
        await self._publisher.dead_letter(
            record_of(message), code=error.code, text=str(error), attempts=1
        )
        self._count_dead_letter(error.code)

    def _count_dead_letter(self, code: str) -> None:
        self._service.dead_letters.labels(code).inc()

    async def _acknowledge(self) -> None:
        """Write entries to the local copy once the brokers have them, and acknowledge the event.

        Does so for ever, in the order in which the events were handled.
        """
        assert self._table is not None
        while True:
            handled = await self._handled.get()
            try:
                sent = [await acknowledgement for acknowledgement in handled.acknowledgements]
            except KafkaError as error:
                raise MachineError(f"{self._changelog}: Kafka took no row ({error!r})") from error
            if handled.dead_letter is not None:
                await handled.dead_letter
            message = handled.event.message
            for start in range(0, len(sent), _ENTRIES_A_STEP):
                part = slice(start, start + _ENTRIES_A_STEP)
                if start:
                    await asyncio.sleep(0)
                last = sent[part][-1].offset  # the changelog up to there is in the local copy
                self._table.write(message.partition, handled.entries[part], last)
            handled.event.ack()
            self._next_offsets[message.partition] = message.offset + 1

    async def _expire(self) -> None:
        """Announce for ever which galleries have had no event for too long."""
        while True:
            await asyncio.sleep(min(_MAX_EXPIRY_CHECK_SECONDS, self._expiry_seconds / 4))
            now_ms = self._clock.now_ms()
            full = [one for one in self.galleries if not one.is_empty or one.gallery.forgotten]
            due, left = to_expire(full, now_ms, self._expiry_seconds)
            if left:
                log.warning("%d galleries are due, %d expire now", len(due) + left, len(due))
            for owned in due:
                await self._announce_expiry(owned)
            for owned in self.galleries:
                if are_decisions_over(owned, now_ms, self._settings.review.keep_days):
                    await self._announce_end_of_decisions(owned)

    async def _announce_expiry(self, owned: OwnedGallery) -> None:
        gallery = owned.gallery
        log.info("gallery %s expires: %d persons", gallery.gallery_id, len(gallery.rows))
        event = GalleryExpired.make(
            gallery_id=gallery.gallery_id, last_event_at=timestamp_of(owned.last_event_ms)
        )
        await self._publisher.publish(event)

    async def _announce_end_of_decisions(self, owned: OwnedGallery) -> None:
        gallery = owned.gallery
        log.info("gallery %s: %d decisions expire", gallery.gallery_id, len(gallery.decisions))
        event = GalleryExpired.make(
            gallery_id=gallery.gallery_id,
            last_event_at=timestamp_of(owned.last_decision_ms),
            decisions=True,
        )
        await self._publisher.publish(event)


async def _let_go(*galleries: OwnedGallery) -> None:
    """Free the rows of galleries that nobody uses any more.

    To free a large one at once would hold the event loop.
    """
    for owned in galleries:
        rows = owned.gallery.rows
        while rows:
            for _ in range(min(_ENTRIES_A_STEP, len(rows))):
                rows.popitem()
            await asyncio.sleep(0)


def _is_any_address(host: str) -> bool:
    """Whether a host stands for all addresses of this machine, as 0.0.0.0 and :: do."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:  # a name
        return False
