"""Who was seen apart from whom, of tracks that are found while decoding: counted frame by frame."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from streamproc.crops.overlaps import VETO_FRAMES

if TYPE_CHECKING:
    from streamproc.types import BoolArray, Int64Array

_FIRST_CAPACITY = 16


class SeenApart:
    """In how many frames two tracks were apart, as far as that matters: `VETO_FRAMES` at most.

    Each track under way has a row and a column. A thousand people have half a million pairs, so
    nothing is done pair by pair. Used by `GrowingBuckets`.
    """

    def __init__(self) -> None:
        self._place: dict[int, int] = {}  # by person id
        self._free: list[int] = []
        # At k: which pairs were apart in more than k frames.
        self._apart = np.zeros((VETO_FRAMES, 0, 0), bool)
        self._ended: dict[int, list[int]] = {}  # by person id: those who have ended

    def __repr__(self) -> str:
        return f"SeenApart({len(self._place)} tracks)"

    def add(self, person_ids: Int64Array, apart: BoolArray) -> None:
        """Take a frame: who of `person_ids` (n,) was apart, symmetric (n, n)."""
        places = np.array([self._place_of(one) for one in person_ids.tolist()], np.int64)
        count = len(places)
        if (places == np.arange(count)).all():
            self._count(self._apart[:, :count, :count], apart)
            return
        block = np.ix_(np.arange(VETO_FRAMES), places, places)
        chosen = self._apart[block]
        self._count(chosen, apart)
        self._apart[block] = chosen

    @staticmethod
    def _count(more_than: BoolArray, apart: BoolArray) -> None:
        for k in reversed(range(1, VETO_FRAMES)):
            more_than[k] |= more_than[k - 1] & apart
        more_than[0] |= apart

    def seen_with(self, person_id: int) -> tuple[int, ...]:
        """Return who was apart from a track often enough so far, ascending."""
        found = [*self._ended.get(person_id, ()), *self._under_way(person_id)]
        return tuple(sorted(found))

    def _under_way(self, person_id: int) -> list[int]:
        """Return those of `seen_with` whose tracks have not ended."""
        place = self._place.get(person_id)
        if place is None:
            return []
        enough = self._apart[-1, place]
        return [other for other, own in self._place.items() if enough[own]]

    def close(self, person_id: int) -> tuple[int, ...]:
        """End a track; return who was apart from it often enough, ascending."""
        seen_with = self.seen_with(person_id)
        under_way = self._under_way(person_id)
        place = self._place.pop(person_id, None)
        self._ended.pop(person_id, None)
        if place is None:
            return seen_with
        for other in under_way:
            self._ended[other].append(person_id)
        self._apart[:, place] = False
        self._apart[:, :, place] = False
        self._free.append(place)
        return seen_with

    def _place_of(self, person_id: int) -> int:
        place = self._place.get(person_id)
        if place is None:
            if not self._free:
                self._grow()
            place = self._place[person_id] = self._free.pop()
            self._ended[person_id] = []
        return place

    def _grow(self) -> None:
        before = self._apart.shape[1]
        capacity = max(_FIRST_CAPACITY, 2 * before)
        grown = np.zeros((VETO_FRAMES, capacity, capacity), bool)
        grown[:, :before, :before] = self._apart
        self._apart = grown
        self._free += range(capacity - 1, before - 1, -1)  # the first place first
