"""The matcher's look at events that wait: parsed before their turn, and compared with each gallery together."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from streamproc.errors import EventError
from streamproc.events import GalleryExpired, PersonEmbedding, VideoClosed, parse_embedded

if TYPE_CHECKING:
    from streamproc.services.matcher.faust_table import Waiting
    from streamproc.services.matcher.metrics import MatcherMetrics
    from streamproc.services.matcher.table import Galleries

Parsed: TypeAlias = PersonEmbedding | VideoClosed | GalleryExpired

_AHEAD_EVENTS = 64
_IDLE_TURNS = 3


class LookAhead:
    """What the next events say. `waiting(n)` gives the messages behind the one at hand, n at most.

    What was looked at is kept by partition and offset, not by message: Faust waits until the
    messages that it took back are garbage.
    """

    def __init__(self, max_event_bytes: int, waiting: Waiting, metrics: MatcherMetrics) -> None:
        self._max_event_bytes, self._waiting, self._metrics = max_event_bytes, waiting, metrics
        self._looked_at: dict[tuple[int, int], Parsed | EventError] = {}

    async def parsed(
        self,
        message: Any,
        galleries: Galleries,
    ) -> Parsed | EventError:
        """Say what a message holds, an EventError for a bad one; every so often that of those behind it as well."""
        place = (message.partition, message.offset)
        if place not in self._looked_at:
            await self._let_others_come()
            self._look([message, *self._waiting(_AHEAD_EVENTS)], galleries)
        return self._looked_at.pop(place)

    async def _let_others_come(self) -> None:
        """Let Faust hand over what it has fetched: the loop goes round until nothing more comes."""
        idle_turns, size = 0, -1
        while idle_turns < _IDLE_TURNS and size < _AHEAD_EVENTS:
            await asyncio.sleep(0)
            idle_turns = idle_turns + 1 if len(self._waiting(_AHEAD_EVENTS)) == size else 0
            size = len(self._waiting(_AHEAD_EVENTS))

    def _look(self, messages: list[Any], galleries: Galleries) -> None:
        self._looked_at.clear()  # what is left was taken away by a rebalance
        persons: dict[tuple[str, str, int], list[PersonEmbedding]] = {}
        start = time.perf_counter()
        for message in messages:
            parsed = self._parse(message)
            self._looked_at[message.partition, message.offset] = parsed
            if isinstance(parsed, PersonEmbedding):
                key = (parsed.gallery_id, parsed.model.weights_sha256, parsed.vector.dim)
                persons.setdefault(key, []).append(parsed)
        compared = time.perf_counter()
        for (gallery_id, weights_sha256, _), together in persons.items():
            held = galleries.get(gallery_id)
            if held is not None and len(together) > 1:
                held.gallery.foresee(
                    np.stack([person.vector.numpy() for person in together]), weights_sha256
                )
        seconds = self._metrics.seconds
        seconds["parse"] += compared - start
        seconds["apply"] += time.perf_counter() - compared

    def _parse(self, message: Any) -> Parsed | EventError:
        value: bytes = message.value or b""
        if len(value) > self._max_event_bytes:  # its row might not fit into the changelog
            return EventError(
                f"expected at most {self._max_event_bytes} bytes, got {len(value)}: see kafka.max_event_bytes"
            )
        try:
            return parse_embedded(value)
        except EventError as error:
            return error
