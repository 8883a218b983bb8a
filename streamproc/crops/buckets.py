"""Collects each person's crops; a bucket is complete when its last planned frame has passed."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

from streamproc.types import Bucket, Crop

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from streamproc.crops.plan import Plan


class Buckets:
    """The buckets of one video. Frames must come in ascending order; a frame that never comes is simply missing."""

    def __init__(self, plan: Plan, *, crops_embedded: int) -> None:
        self._crops: dict[int, list[Crop]] = {person: [] for person in plan.tracks}
        self._due = [(frame, person) for person, frame in plan.last_frame.items()]
        heapq.heapify(self._due)
        self._crops_embedded = crops_embedded

    def add(self, frame_index: int, crops: Iterable[Crop]) -> list[Bucket]:
        """Take the crops of one frame; return the buckets that are complete with it."""
        for crop in crops:
            self._crops[crop.person_id].append(crop)
        complete = []
        while self._due and self._due[0][0] <= frame_index:
            _, person = heapq.heappop(self._due)
            complete.append(self._close(person))
        return complete

    def finish(self) -> list[Bucket]:
        """Return all buckets that are still open, as they are: the video ended, or is given up, before they were full."""
        return [self._close(person) for _, person in sorted(self._due)]

    def _close(self, person: int) -> Bucket:
        crops = tuple(self._crops.pop(person))
        return Bucket(person, crops, choose_embedded(crops, self._crops_embedded))


def choose_embedded(crops: Sequence[Crop], count: int) -> tuple[int, ...]:
    """Choose up to `count` positions in `crops`, best first: good ones, spread in time.

    Greedy: the next is the crop of the highest quality after discounting those near one already chosen.
    """
    spacing = max(1.0, len(crops) / count) if count else 1.0
    open_positions = set(range(len(crops)))
    chosen: list[int] = []
    while open_positions and len(chosen) < count:

        def value(i: int) -> tuple[float, int]:
            gap = min((abs(crops[i].slot - crops[j].slot) for j in chosen), default=spacing)
            return crops[i].quality * min(1.0, gap / spacing), -i

        best = max(open_positions, key=value)
        open_positions.remove(best)
        chosen.append(best)
    return tuple(sorted(chosen, key=lambda i: (-crops[i].quality, i)))
