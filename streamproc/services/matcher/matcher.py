"""The matcher: a Faust agent around the pure core of `gallery`; candidates out, rows in a table.

The order of things is what makes it lose nothing and say nothing twice but the same:

1. What an event says is decided by the core, from the rows alone. 2. The events that follow from it
are published, and the brokers have them. 3. The rows are sent to the table's changelog and, once
the brokers have those too, written to the local store. 4. The event is acknowledged, always in the
order of its partition; Faust commits what is acknowledged.

A crash in between makes the event come again, and the core gives the same for it. Faust's own way
of writing a table, `table[key] = value`, is not used: it writes the local store first and the
changelog at some later time. After a crash between the two, the event that comes again finds its
row and writes nothing, and whoever takes over the partition later never gets that row.

A bad event is given up inside the loop. Anything else that fails ends the process: Faust would
acknowledge the event of an agent that raised, so the agent does not return from one it could not
handle.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import socket
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from streamproc.errors import EventError, MachineError
from streamproc.events import DuplicateCandidate, GalleryExpired, PersonEmbedding, now
from streamproc.kafka.connection import patiently
from streamproc.kafka.publisher import Publisher
from streamproc.kafka.records import trace_of
from streamproc.kafka.topics import changelog_of, ensure_topics
from streamproc.pipeline.resources import calibration_of
from streamproc.services.logs import log_about
from streamproc.services.matcher.faust_table import FaustTable, instance_folder, record_of
from streamproc.services.matcher.http import GalleryApi
from streamproc.services.matcher.metrics import MatcherMetrics
from streamproc.services.matcher.prefetch import LookAhead
from streamproc.services.matcher.table import (
    Galleries,
    decide,
    entries_of,
    now_ms,
    partition_of,
    time_of,
)
from streamproc.services.service import Service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Collection, Coroutine

    from streamproc.gallery import Outcome
    from streamproc.services.matcher.faust_table import FaustEvent, Waiting
    from streamproc.services.matcher.prefetch import Parsed
    from streamproc.services.matcher.table import Entries, Held
    from streamproc.settings import Settings

log = logging.getLogger(__name__)

_UNSETTLED_EVENTS = 1000
_LINGER_MS = 10
_ROWS_A_TURN = 200
_GC_THRESHOLDS = (50_000, 10, 10)
"""How often the collector looks for cycles:

Python's 700 allocations come with every few events, and cost a fifth.
"""
_STOP_SECONDS = 10.0
"""After a fault: how long Faust may take to leave the group."""


async def run_matcher(settings: Settings) -> None:
    """Be a matcher until a signal ends it.

    Raises UsageError for wrong topics, MachineError for a fault.
    """
    service = Service("matcher", settings)
    matcher = Matcher(service)
    service.routes += GalleryApi(matcher).routes()
    await service.run(matcher.run)


@dataclass(frozen=True, slots=True, eq=False)
class _Handled:
    """An event whose entries are on their way to the changelog."""

    event: FaustEvent
    entries: Entries
    acknowledgements: list[asyncio.Future[Any]]


async def _first_of(*works: Coroutine[Any, Any, Any]) -> None:
    """Return when one of them has, or raise what it raised; the others are cancelled."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()


class Matcher:
    """One matcher process's work.

    Its parts run as tasks of one loop; the agent handles one event at a time.
    """

    def __init__(self, service: Service) -> None:
        settings = service.settings
        self._service, self._settings = service, settings
        self._partitions = settings.topics.person_embeddings.partitions
        self._changelog = changelog_of(settings)
        self._publisher = Publisher(settings, "matcher")
        # An entry is an event and what the core adds; the changelog takes twice an event, see
        # `topics`. Nobody waits for entries, so they may wait for each other.
        self._changes = Publisher(
            settings,
            "matcher",
            max_record_bytes=2 * settings.kafka.max_event_bytes,
            linger_ms=_LINGER_MS,
        )
        self._handled: asyncio.Queue[_Handled] = asyncio.Queue(_UNSETTLED_EVENTS)
        self._table: FaustTable | None = None
        self._loaded: frozenset[int] = frozenset()
        self._loads = 0
        self._busy = False
        self._fault: BaseException | None = None
        self._faulted = asyncio.Event()
        self.galleries = self._no_galleries()
        self._next_offsets: dict[int, int] = {}  # by partition: everything before is done
        self._metrics = MatcherMetrics(service.registry, self._gauges)
        self._calibration = calibration_of(settings.clustering)

    def _no_galleries(self) -> Galleries:
        return Galleries(max_persons=self._settings.limits.max_persons_per_gallery)

    @property
    def loaded(self) -> Collection[int]:
        """The partitions that this process owns and has read; none while it recovers."""
        return self._loaded

    def partition_of(self, gallery_id: str) -> int:
        """Where a gallery lives."""
        return partition_of(gallery_id, self._partitions)

    def owner_of(self, partition: int) -> str | None:
        """The URL of another matcher that owns a partition, None where that is not known."""
        return None if self._table is None else self._table.owner_of(partition)

    def _is_idle(self) -> bool:
        return self._service.ready and not self._busy and self._handled.empty()

    def _gauges(self) -> dict[str, int]:
        ends = {
            p: None if self._table is None else self._table.end_offset(p)
            for p in self._next_offsets
        }
        lag = sum(max(0, end - self._next_offsets[p]) for p, end in ends.items() if end is not None)
        sizes = {
            "galleries": len(self.galleries),
            "rows": self.galleries.rows,
            "partitions": len(self._loaded),
        }
        return {"lag": lag, **sizes}

    async def run(self) -> None:
        """Work until `stop`, then finish what is begun. Raises what went wrong."""
        stop = self._service.stop
        await patiently(stop, "topics", partial(ensure_topics, self._settings))
        async with contextlib.AsyncExitStack() as stack:
            folder = stack.enter_context(instance_folder(self._settings))
            for publisher in (self._publisher, self._changes):
                await patiently(stop, "Kafka", partial(stack.enter_async_context, publisher))
            if stop.is_set():
                return
            self._table = table = FaustTable(self._settings, folder, await self._own_url())
            table.on_event(self._take)
            table.on_moved(self._let_go, self._load)
            async with self._tasks(self._settle(), self._expire(), table.watch(self._is_idle)):
                await self._live(table)

    async def _own_url(self) -> str:
        while not self._service.port:  # noqa: ASYNC110 - HTTP starts beside the work, in a moment
            await asyncio.sleep(0.01)
        host = self._settings.service.http_host
        if host in {"0.0.0.0", "::"}:  # noqa: S104 - compared with, not bound to: in a container the name is what leads here
            host = socket.gethostname()
        return self._settings.matcher.advertised_url or f"http://{host}:{self._service.port}"

    async def _live(self, table: FaustTable) -> None:
        stop = self._service.stop
        try:
            await table.start()
            await _first_of(stop.wait(), self._faulted.wait(), table.ended())
            self._service.ready = False
            if self._fault is None and not stop.is_set():
                self._fail(MachineError(f"Faust stopped by itself: {table.crash_reason!r}"))
            elif self._fault is None:
                await _first_of(table.stop(unfinished=False), self._faulted.wait())
        except Exception as error:  # noqa: BLE001 - whatever it was, it ends this process
            self._fail(error)
        if self._fault is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(table.stop(unfinished=True), _STOP_SECONDS)
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
        try:
            await work
        except Exception as error:  # noqa: BLE001 - whatever it was, it ends this process
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

    # Partitions come and go.

    async def _let_go(self) -> None:
        self._service.ready = False
        self._loads += 1
        self._loaded, self.galleries = frozenset(), self._no_galleries()
        self._next_offsets.clear()

    async def _load(self, partitions: Collection[int]) -> bool:
        """Read the galleries of the partitions that are ours now; nothing is consumed until this is done.

        Returns False where they moved again meanwhile, or cannot be read.
        """
        self._loads += 1
        mine, started = self._loads, time.perf_counter()
        assert self._table is not None
        galleries = self._no_galleries()
        try:
            for partition in partitions:
                for i, (key, value) in enumerate(self._table.entries(partition)):
                    galleries.load(partition, key, value)
                    if i % _ROWS_A_TURN == 0:
                        await asyncio.sleep(0)  # health checks go on
                        if mine != self._loads:
                            return False
        except Exception as error:  # noqa: BLE001 - Faust would swallow it
            self._fail(error)
            return False
        seconds = time.perf_counter() - started
        gc.freeze()  # rows are many objects that stay: going through them all again and again would cost seconds
        gc.set_threshold(*_GC_THRESHOLDS)
        self.galleries, self._loaded, self._service.ready = galleries, frozenset(partitions), True
        log.info(
            "partitions %s: read %d rows in %.1f s", sorted(partitions), galleries.rows, seconds
        )
        return True

    # One event.

    async def _take(self, events: AsyncIterator[FaustEvent], waiting: Waiting) -> None:
        ahead = LookAhead(self._settings.kafka.max_event_bytes, waiting, self._metrics)
        try:
            async for event in events:
                self._busy = True
                await self._handle(event, await ahead.parsed(event.message, self.galleries))
                self._busy = False
        except Exception as error:  # noqa: BLE001 - whatever it was, it ends this process
            self._fail(error)
            await (
                asyncio.Event().wait()
            )  # for ever: if this returned, Faust would go on behind the event

    async def _handle(self, event: FaustEvent, parsed: Parsed | EventError) -> None:
        message = event.message
        entries: Entries = []
        begun: list[asyncio.Future[Any]] = []
        try:
            if isinstance(parsed, EventError):
                raise parsed
            self._metrics.events[parsed.kind] += 1
            with log_about(gallery_id=parsed.gallery_id):
                if self.partition_of(parsed.gallery_id) == message.partition:
                    entries, begun = await self._apply(message, parsed)
                else:
                    await self._send_on(message, parsed)
        except EventError as error:
            await self._give_up(message, error.code, str(error))
        await self._handled.put(_Handled(event, entries, begun))

    async def _apply(
        self,
        message: Any,
        event: Parsed,
    ) -> tuple[Entries, list[asyncio.Future[Any]]]:
        start = time.perf_counter()
        at_ms = now_ms()
        held = self.galleries.open(event.gallery_id, message.partition)
        outcome = self._decide(held, event)
        person = event if isinstance(event, PersonEmbedding) else None
        entries = entries_of(
            event.gallery_id, outcome.writes, at_ms=at_ms, event=person, raw=message.value
        )
        decided = time.perf_counter()
        if outcome.events:
            await self._publisher.publish_all(outcome.events, trace=trace_of(record_of(message)))
        published = time.perf_counter()
        begun = [
            await self._changes.begin(self._changelog, key, value, (), partition=message.partition)
            for key, value in entries
        ]
        held.gallery.write(outcome.writes)
        if isinstance(event, GalleryExpired):
            self.galleries.drop_if_empty(held)
        else:
            held.heard_ms = max(held.heard_ms, at_ms)
        seconds = self._metrics.seconds
        seconds["apply"] += decided - start
        seconds["publish"] += published - decided
        seconds["write"] += time.perf_counter() - published
        self._count(outcome)
        return entries, begun

    def _decide(self, held: Held, event: Parsed) -> Outcome:
        threshold = self._settings.clustering.similarity_threshold
        try:
            return decide(
                held,
                event,
                similarity_threshold=threshold,
                occurred_at=now(),
                calibration=self._calibration,
            )
        except EventError:
            self.galleries.drop_if_empty(held)
            raise

    def _count(self, outcome: Outcome) -> None:
        self._metrics.rows_not_compared += outcome.not_compared
        for event in outcome.events:
            if isinstance(event, DuplicateCandidate):
                self._metrics.candidates[event.state] += 1

    async def _send_on(self, message: Any, event: Parsed) -> None:
        """Send a stray, whose producer hashes keys in another way, to its gallery's partition."""
        record = record_of(message)
        key, partition = event.gallery_id.encode(), self.partition_of(event.gallery_id)
        await self._publisher.send(
            event.topic, key, record.value, tuple(record.headers), partition=partition
        )
        self._metrics.strays += 1

    async def _give_up(self, message: Any, code: str, text: str) -> None:
        await self._publisher.dead_letter(record_of(message), code=code, text=text, attempts=1)
        self._service.dead_letters.labels(code).inc()

    async def _settle(self) -> None:
        """Write entries to the local store once the brokers have them, and acknowledge their event; in order."""
        assert self._table is not None
        while True:
            handled = await self._handled.get()
            sent = [await acknowledgement for acknowledgement in handled.acknowledgements]
            message = handled.event.message
            if sent:
                self._table.keep(message.partition, handled.entries, sent[-1].offset)
            handled.event.ack()
            self._next_offsets[message.partition] = message.offset + 1

    async def _expire(self) -> None:
        """Announce the end of galleries that were not heard of for their time."""
        expiry_seconds = self._settings.matcher.gallery_expiry_hours * 3600
        while True:
            await asyncio.sleep(min(600.0, expiry_seconds / 4))
            for held in self.galleries:
                if held.heard_ms + expiry_seconds * 1000 < now_ms():
                    gallery_id = held.gallery.gallery_id
                    log.info("gallery %s expires: %d persons", gallery_id, len(held.gallery.rows))
                    await self._publisher.publish(
                        GalleryExpired.make(
                            gallery_id=gallery_id, last_event_at=time_of(held.heard_ms)
                        )
                    )
