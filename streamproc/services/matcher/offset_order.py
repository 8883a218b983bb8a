"""In which order a partition's messages are taken: none twice, none passed over, whatever a client hands over."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class Turn(Enum):
    """What is to be done with a message."""

    NEXT = "take it"
    LATER = "leave it: it was taken, or comes again"
    PASSED_OVER = "offsets before it are missing: if they are messages, have the partition read again from there"


@dataclass(slots=True)
class _Place:
    next_offset: int
    highest: int = -1
    """Of the reading that passed `next_offset` over, -1 where none did."""


@dataclass(slots=True)
class InOrder:
    """Says of each message whether it is the one to take now.

    While partitions move nothing is taken: `close`, then `start` for each partition with its
    committed offset, and `open`, in any order. Some offsets are no messages (a transaction's end,
    what was compacted or has expired): whoever knows that of those that a reading passed over says
    so with `skip`.
    """

    _places: dict[int, _Place] = field(default_factory=dict)
    _opened: bool = False

    def close(self) -> None:
        """Take nothing any more, and forget all places."""
        self._places, self._opened = {}, False

    def open(self) -> None:
        """Take messages of the partitions that are started."""
        self._opened = True

    def start(self, partition: int, offset: int) -> None:
        """Begin a partition at an offset; one whose messages are being taken goes on where it is."""
        if not (self._opened and partition in self._places):
            self._places[partition] = _Place(offset)

    def next_offset(self, partition: int) -> int | None:
        """The offset of the message to take next, None for a partition that was not started."""
        place = self._places.get(partition)
        return None if place is None else place.next_offset

    def skip(self, partition: int, start: int, stop: int) -> bool:
        """Pass the offsets from `start` up to `stop`, not included, which are no messages.

        Returns False, and does nothing, where the partition does not stand at `start`, as when it
        moved meanwhile.
        """
        place = self._places.get(partition)
        if place is None or place.next_offset != start or start >= stop:
            return False
        self._places[partition] = _Place(stop)
        return True

    def turn_of(self, partition: int, offset: int) -> Turn:
        """Judge a message that was handed over; one that is to be taken moves its partition on."""
        place = self._places.get(partition)
        if place is None or not self._opened or offset < place.next_offset:
            return Turn.LATER
        if offset == place.next_offset:
            self._places[partition] = _Place(offset + 1)
            return Turn.NEXT
        same_reading = -1 < place.highest < offset
        place.highest = offset
        return Turn.LATER if same_reading else Turn.PASSED_OVER
