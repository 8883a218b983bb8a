"""Faust's consumer and flow control, where they must differ from Faust's own.

Used by `faust_table` alone.

Faust may drop events that it has fetched. When it has recovered a table it goes back to the
committed offsets, resumes fetching, and only then empties its queues: what came in between is lost.
Its consumer even refuses those events when they are fetched again, as it has read further already.
Both are switched off here: every message is handed over, and `OffsetOrder` says which one to take.
"""

# ruff: noqa: SLF001 - what is changed here Faust offers no public way to change
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from faust.transport.drivers.aiokafka import Consumer
from mode.threads import WorkerThread
from mode.utils.queues import FlowControlEvent

from streamproc.kafka.connection import COMMITTED_ONLY

if TYPE_CHECKING:
    from collections.abc import Callable

_FETCH_WAIT_MS = 50


class FlowControl(FlowControlEvent):  # type: ignore[misc] # mode counts as untyped
    """Faust's flow control, except that `resume` does not empty the queues."""

    def resume(self) -> None:
        """Let messages through."""
        self._suspend.clear()
        self._resume.set()


class _DaemonThread(WorkerThread):  # type: ignore[misc] # as above
    """The consumer's thread; as a daemon it cannot keep the process alive if it hangs."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.daemon = True


class _ReadOffsets(dict[Any, Any]):
    """How far each partition was read: that of events is forgotten, so that Faust refuses none."""

    def __init__(self, is_changelog: Callable[[Any], bool]) -> None:
        super().__init__()
        self._is_changelog = is_changelog

    def __getitem__(self, tp: Any) -> Any:
        return self.get(tp) if self._is_changelog(tp) else None


class EventConsumer(Consumer):  # type: ignore[misc] # as above
    """Faust's consumer, which also goes back if nothing is committed yet.

    Whenever it goes back to the committed offsets, it tells `on_committed` where each partition
    begins. Faust's own does not go back before a group's first commit, and so would leave out what
    came before it.
    """

    on_committed: Callable[[Any, int], None]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._read_offset = _ReadOffsets(self._is_changelog_tp)

    def _new_consumer_thread(self) -> Any:
        thread = super()._new_consumer_thread()
        thread.Worker = _DaemonThread
        create = thread._create_worker_consumer

        def create_with_short_wait(transport: Any) -> Any:
            consumer = create(transport)
            # A broker answers a client's fetches one after the other. A fetch that waits for silent
            # partitions, in Faust up to 1.5 s, delays the next one of a busy partition.
            consumer._fetch_max_wait_ms = _FETCH_WAIT_MS
            consumer._isolation_level = COMMITTED_ONLY
            return consumer

        thread._create_worker_consumer = create_with_short_wait
        return thread

    async def seek_to_committed(self) -> Any:
        """Go back to the committed offsets, or to the beginning."""
        committed = await super().seek_to_committed()
        starts = {tp: offset for tp, offset in committed.items() if not self._is_changelog_tp(tp)}
        uncommitted = [tp for tp, offset in starts.items() if not offset]
        if uncommitted:
            starts.update(await self._thread.earliest_offsets(*uncommitted))
        for tp, offset in starts.items():
            self.on_committed(tp, offset)
        # Once more, as what came in before `on_committed` was told has been left.
        await self.seek_wait(starts)
        return committed

    async def go_back(self, tp: Any, offset: int) -> None:
        """Read a partition again from an offset."""
        if tp in self.assignment():
            await self.seek_wait({tp: offset})

    async def mark_as_no_messages(self, tp: Any, offset_from: int, offset_to: int) -> None:
        """Let Faust commit past offsets, the two included, that are no messages."""
        await self._add_gap(tp, offset_from, offset_to)

    def leave(self, message: Any) -> None:
        """Before partitions move, do not wait until a message is acknowledged that is not taken."""
        self._unacked_messages.discard(message)
