"""In which order a partition's messages are taken: each once and none left out.

The consumer may hand over messages twice, or leave some out; see `faust_consumer`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class Verdict(Enum):
    """What to do with a message."""

    TAKE = "it is the next one"
    LEAVE = "it was taken, or will come again"
    GAP = "offsets before it are missing; if they are messages, read the partition again from there"


@dataclass(slots=True)
class _Position:
    next_offset: int
    highest: int = -1
    """The highest offset since the reading that left out `next_offset`; -1: none did."""


@dataclass(slots=True)
class OffsetOrder:
    """Judges each message that the consumer hands over.

    While partitions move nothing is taken: call `close`, then `start` for each partition with its
    committed offset, and `open`, in any order. Some offsets are no messages (the end of a
    transaction, what was compacted or has expired). Whoever knows that of missing offsets calls
    `skip`.
    """

    _positions: dict[int, _Position] = field(default_factory=dict)
    _is_open: bool = False

    def close(self) -> None:
        """Take nothing any more, and forget all partitions."""
        self._positions = {}
        self._is_open = False

    def open(self) -> None:
        """Take messages of the partitions that are started."""
        self._is_open = True

    def start(self, partition: int, offset: int) -> None:
        """Begin a partition at an offset; one whose messages are being taken goes on unchanged."""
        if not (self._is_open and partition in self._positions):
            self._positions[partition] = _Position(offset)

    def next_offset(self, partition: int) -> int | None:
        """Return the offset to take next, None for a partition that was not started."""
        position = self._positions.get(partition)
        return None if position is None else position.next_offset

    def skip(self, partition: int, start: int, stop: int) -> bool:
        """Pass over the offsets from `start` to before `stop`, which are no messages.

        Returns False, and does nothing, if `start` is not the next offset, as after a rebalance.
        """
        position = self._positions.get(partition)
        if position is None or position.next_offset != start or start >= stop:
            return False
        self._positions[partition] = _Position(stop)
        return True

    def judge(self, partition: int, offset: int) -> Verdict:
        """Say what to do with a message; one to take advances its partition."""
        position = self._positions.get(partition)
        if position is None or not self._is_open or offset < position.next_offset:
            return Verdict.LEAVE
        if offset == position.next_offset:
            self._positions[partition] = _Position(offset + 1)
            return Verdict.TAKE
        # The caller has the partition read again once, not for each message behind the gap. Offsets
        # fall when it is read again: if the gap is still there, that is said again.
        is_same_reading = -1 < position.highest < offset
        position.highest = offset
        return Verdict.LEAVE if is_same_reading else Verdict.GAP
