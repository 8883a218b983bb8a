"""In which order a partition's messages are taken: none twice, none passed over, whatever a client hands over."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

_READINGS = 3


class Turn(Enum):
    """What is to be done with a message."""

    NEXT = "take it"
    LATER = "leave it: it was taken, or comes again"
    PASSED_OVER = "leave it, and have the partition read again from `next_offset`"
    NEXT_AFTER_GAP = "take it: the offsets before it are no messages"


@dataclass(slots=True)
class _Place:
    next_offset: int
    began_at: int = -1
    """The first offset of the reading at hand, where that is not `next_offset`."""
    highest: int = -1
    readings: int = 0
    """How many readings in a row began there."""


@dataclass(slots=True)
class InOrder:
    """Says of each message whether it is the one to take now.

    While partitions move nothing is taken: `close`, then `start` for each partition with its committed offset, and
    `open`, in any order. Some offsets are no messages (a transaction's end, what was compacted or has expired): where
    three readings in a row begin behind one, it does not exist.
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

    def turn_of(self, partition: int, offset: int) -> Turn:
        """Judge a message that was handed over; one that is to be taken moves its partition on."""
        place = self._places.get(partition)
        if place is None or not self._opened or offset < place.next_offset:
            return Turn.LATER
        if offset == place.next_offset:
            self._places[partition] = _Place(offset + 1)
            return Turn.NEXT
        if place.readings and offset > place.highest:
            place.highest = offset
            return Turn.LATER  # of the same reading
        place.readings = place.readings + 1 if offset == place.began_at else 1
        place.began_at = place.highest = offset
        if place.readings < _READINGS:
            return Turn.PASSED_OVER
        self._places[partition] = _Place(offset + 1)
        return Turn.NEXT_AFTER_GAP
