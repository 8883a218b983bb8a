"""A bounded hand-over between two asyncio stages, closable, read in batches.

`asyncio.Queue` can be neither closed (before Python 3.13) nor read in batches with a time limit;
this adds both. Contract: any number of tasks may `put`; exactly one task reads. `close` does not
wait; what was put before it is still delivered. After `close`, `put` raises `ChannelClosed`, so a
producer learns that its reader has gone. A cancelled `put` has not put; a cancelled read has taken
nothing. One event loop only, not thread-safe.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

T = TypeVar("T")


class ChannelClosed(Exception):  # noqa: N818 - a state as StopIteration is, not a user's error
    """Something was put into a channel that is closed."""


class Channel(Generic[T]):
    """Hands over at most `capacity` waiting items; `put` waits while it is full."""

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"a channel needs room for one item or more, got {capacity}")
        self._capacity = capacity
        self._items: deque[tuple[T, float]] = deque()  # with the loop's time when each came
        self._closed = False
        self._changed = asyncio.Condition()

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        state = ", closed" if self._closed else ""
        return f"Channel({len(self._items)}/{self._capacity}{state})"

    async def put(self, item: T) -> None:
        """Wait for room, then hand over.

        Raises:
            ChannelClosed: The channel is closed.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: self._closed or len(self._items) < self._capacity)
            if self._closed:
                raise ChannelClosed
            self._items.append((item, asyncio.get_running_loop().time()))
            self._changed.notify_all()

    async def close(self) -> None:
        """Say that nothing more comes (by the producer) or is wanted (by the reader).

        May be called twice.
        """
        async with self._changed:
            self._closed = True
            self._changed.notify_all()

    async def batches(self, max_items: int, max_wait_seconds: float) -> AsyncIterator[list[T]]:
        """Yield lists of 1 to `max_items` items.

        One that is not full leaves `max_wait_seconds` after its first item came. Items stay in the
        channel (and count against its capacity) until their batch leaves, so a batch can only be
        full where `max_items` is at most the capacity. Ends when the channel is closed and empty.
        """
        full_at = min(max_items, self._capacity)
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self._closed or self._items)
                if not self._items:
                    return
                # Time in which the reader was busy counts as waited.
                deadline = self._items[0][1] + max_wait_seconds
                try:
                    async with asyncio.timeout_at(deadline):
                        await self._changed.wait_for(
                            lambda: self._closed or len(self._items) >= full_at
                        )
                except TimeoutError:
                    pass
                count = min(max_items, len(self._items))
                batch = [self._items.popleft()[0] for _ in range(count)]
                self._changed.notify_all()
            yield batch
