"""Collects each person's crops; a bucket is complete when its last planned frame has passed."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

import numpy as np

from streamproc.types import Bucket, Crop

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from streamproc.crops.plan import Plan

GOOD_ENOUGH = 0.7
"""Crops of at least this share of a person's best quality (90th percentile) are spread over for embedding."""


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
        """Return all open buckets as they are: the video ended, or is given up, before they were full."""
        return [self._close(person) for _, person in sorted(self._due)]

    def _close(self, person: int) -> Bucket:
        crops = tuple(self._crops.pop(person))
        return Bucket(person, crops, choose_embedded(crops, self._crops_embedded))


def choose_embedded(crops: Sequence[Crop], count: int) -> tuple[int, ...]:
    """Choose up to `count` positions in `crops`, best first: evenly spread in time over those that are good enough.

    Spread matters more than the last bit of quality: the best crop of each part of a track was measured to be worse
    (README, "Which crops"). Where too few are good enough, the next best fill up.
    """
    quality = np.array([crop.quality for crop in crops])
    if len(quality) > count:
        by_quality = np.lexsort((np.arange(len(quality)), -quality))
        good_enough = int(np.count_nonzero(quality >= GOOD_ENOUGH * np.percentile(quality, 90)))
        usable = np.sort(by_quality[: max(count, good_enough)])
        chosen = usable[np.linspace(0, len(usable) - 1, count).round().astype(int)]
    else:
        chosen = np.arange(len(quality))
    return tuple(sorted(chosen.tolist(), key=lambda i: (-crops[i].quality, i)))
