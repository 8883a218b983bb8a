"""Prefetch: events are parsed before their turn, and compared with their gallery together.

One comparison of many vectors costs little more than one of a single vector.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from streamproc.decisions import GalleryEvent, parse_gallery_event
from streamproc.errors import EventError
from streamproc.events import PersonEmbedding, VideoClosed, check_submitted_at

if TYPE_CHECKING:
    from streamproc.services.matcher.faust_table import Waiting
    from streamproc.services.matcher.metrics import MatcherMetrics
    from streamproc.services.matcher.table import Galleries

Parsed: TypeAlias = GalleryEvent

_MAX_EVENTS = 64
_IDLE_ROUNDS = 3


class Prefetch:
    """The next events, parsed. Made by the matcher; used by its one task that takes events.

    `waiting(n)` returns the messages behind the current one, n at most. Events are kept by
    partition and offset, and not by message: Faust counts on messages that it has taken back being
    garbage collected.
    """

    def __init__(self, max_event_bytes: int, waiting: Waiting, metrics: MatcherMetrics) -> None:
        self._max_event_bytes = max_event_bytes
        self._waiting = waiting
        self._metrics = metrics
        self._parsed: dict[tuple[int, int], Parsed | EventError] = {}

    async def event_of(self, message: Any, galleries: Galleries) -> Parsed | EventError:
        """Return the event in a message, an EventError for a bad one.

        If it was not prefetched, prefetch the events behind it too.
        """
        place = (message.partition, message.offset)
        if place not in self._parsed:
            await self._wait_for_messages()
            self._prefetch([message, *self._waiting(_MAX_EVENTS)], galleries)
        return self._parsed.pop(place)

    async def _wait_for_messages(self) -> None:
        """Let Faust hand over what it has fetched: run the event loop until no more comes."""
        idle_rounds = 0
        count = -1
        while idle_rounds < _IDLE_ROUNDS and count < _MAX_EVENTS:
            await asyncio.sleep(0)
            previous = count
            count = len(self._waiting(_MAX_EVENTS))
            idle_rounds = idle_rounds + 1 if count == previous else 0

    def _prefetch(self, messages: list[Any], galleries: Galleries) -> None:
        self._parsed.clear()  # what is left was taken away by a rebalance
        start = time.perf_counter()
        for message in messages:
            self._parsed[message.partition, message.offset] = self._parse(message)
        parsed = time.perf_counter()
        self._compare(galleries)
        seconds = self._metrics.seconds
        seconds["parse"] += parsed - start
        seconds["apply"] += time.perf_counter() - parsed

    def _compare(self, galleries: Galleries) -> None:
        """Compare the persons of each gallery with it, so that `apply` need not."""
        groups: dict[tuple[str, str, int], list[PersonEmbedding]] = {}
        for event in self._parsed.values():
            if isinstance(event, PersonEmbedding):
                key = (event.gallery_id, event.model.weights_sha256, event.vector.dim)
                groups.setdefault(key, []).append(event)
        for (gallery_id, weights_sha256, _), persons in groups.items():
            owned = galleries.get(gallery_id)
            if owned is not None and len(persons) > 1:
                vectors = np.stack([person.vector.numpy() for person in persons])
                owned.gallery.precompute(vectors, weights_sha256)

    def _parse(self, message: Any) -> Parsed | EventError:
        value: bytes = message.value or b""
        if len(value) > self._max_event_bytes:  # its table entry might not fit into the changelog
            return EventError(
                f"expected at most {self._max_event_bytes} bytes, got {len(value)}: "
                "see kafka.max_event_bytes"
            )
        try:
            event = parse_gallery_event(value)
            if isinstance(event, PersonEmbedding | VideoClosed):
                check_submitted_at(event.submitted_at)
                if event.started_at is not None:
                    check_submitted_at(event.started_at, "started_at")
        except EventError as error:
            return error
        return event
