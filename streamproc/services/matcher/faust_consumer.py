"""Faust's consumer and flow control, where they must be other than Faust has them.

Used by `faust_app` alone.

Faust may drop events that it has fetched: when it is done with recovering a table it goes back to
the committed offsets, takes up fetching, and empties its queues then. What came in between is gone,
and its consumer refuses it when it is fetched again, since it has read further. Both are switched
off here: every message is handed over, and `InOrder` says which one is to be taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from faust.transport.drivers.aiokafka import Consumer
from mode.threads import WorkerThread
from mode.utils.queues import FlowControlEvent

if TYPE_CHECKING:
    from collections.abc import Callable

_FETCH_WAIT_MS = 50


class FlowControl(FlowControlEvent):  # type: ignore[misc] # mode counts as untyped
    """Faust's flow control; what has come in while it was resumed stays."""

    def resume(self) -> None:
        """Let messages through."""
        self._suspend.clear()
        self._resume.set()


class _DaemonThread(WorkerThread):  # type: ignore[misc] # as above
    """The consumer's thread: one that hangs must not keep the process alive."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.daemon = True


class _ReadOffsets(dict[Any, Any]):
    """How far each partition was read.

    Of the events nothing is remembered, so that Faust refuses none.
    """

    def __init__(self, is_changelog: Callable[[Any], bool]) -> None:
        super().__init__()
        self._is_changelog = is_changelog

    def __getitem__(self, tp: Any) -> Any:
        return self.get(tp) if self._is_changelog(tp) else None


class EventConsumer(Consumer):  # type: ignore[misc] # as above
    """Faust's consumer.

    `on_committed` is told the offset to begin at whenever it goes back to what is committed.

    It must not skip what came before a group's first commit: where nothing is committed yet, Faust
    does not go back.
    """

    on_committed: Callable[[Any, int], None]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._read_offset = _ReadOffsets(self._is_changelog_tp)

    def _new_consumer_thread(self) -> Any:
        thread = super()._new_consumer_thread()
        thread.Worker = _DaemonThread
        create = thread._create_worker_consumer  # noqa: SLF001 - Faust has no setting for what is set here

        def create_impatient(transport: Any) -> Any:
            consumer = create(transport)
            # A broker answers one fetch at a time: one that waits for silent partitions, 1.5 s in
            # Faust, holds up the next part of a busy one.
            consumer._fetch_max_wait_ms = _FETCH_WAIT_MS  # noqa: SLF001 - as above
            return consumer

        thread._create_worker_consumer = create_impatient  # noqa: SLF001 - as above
        return thread

    async def seek_to_committed(self) -> Any:
        """Go back to what is committed, or to the beginning."""
        committed = await super().seek_to_committed()
        starts = {tp: offset for tp, offset in committed.items() if not self._is_changelog_tp(tp)}
        never = [tp for tp, offset in starts.items() if not offset]
        if never:
            starts.update(await self._thread.earliest_offsets(*never))
        for tp, offset in starts.items():
            self.on_committed(tp, offset)
        await self.seek_wait(starts)  # once more: what has come in before this was told is gone
        return committed

    async def go_back(self, tp: Any, offset: int) -> None:
        """Read a partition again from an offset."""
        if tp in self.assignment():
            await self.seek_wait({tp: offset})

    async def mark_as_no_messages(self, tp: Any, offset_from: int, offset_to: int) -> None:
        """Commit past offsets, both included, that are no messages."""
        await self._add_gap(tp, offset_from, offset_to)

    def leave(self, message: Any) -> None:
        """Do not wait for a message to be acknowledged before partitions move: it comes again, or came before."""
        self._unacked_messages.discard(message)
