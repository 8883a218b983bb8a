"""Collects each person's crops; a bucket is complete when its last planned frame has passed."""

from __future__ import annotations

import heapq
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from streamproc.crops.selection import choose_embedded, spread
from streamproc.types import Bucket, Crop

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from streamproc.crops.plan import Plan

_LATEST_CROPS = 3
"""Crops to come are taken to be as sharp as so many before them: better than all of them on vtest.avi."""


class Buckets:
    """The buckets of one video.

    Frames must come in ascending order; a frame that never comes is simply missing.
    """

    def __init__(self, plan: Plan, *, crops_embedded: int) -> None:
        self._plan = plan
        self._last_frame = -1
        self._crops: dict[int, list[Crop]] = {person: [] for person in plan.tracks}
        self._due = [(frame, person) for person, frame in plan.last_frame.items()]
        heapq.heapify(self._due)
        self._crops_embedded = crops_embedded

    def add(self, frame_index: int, crops: Iterable[Crop]) -> list[Bucket]:
        """Take the crops of one frame; return the buckets that are complete with it."""
        self._last_frame = frame_index
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

    def likely(self, frames_ahead: int) -> Iterator[Crop]:
        """The crops so far that will probably be embedded, of buckets due within so many planned frames, soonest first.

        A crop to come is expected to have the quality that its box gives it, times the sharpness of
        the latest.
        """
        frames = self._plan.frame_indices
        to_come = frames[np.searchsorted(frames, self._last_frame, side="right") :]
        horizon = to_come[:frames_ahead].max(initial=-1)
        for _, person in sorted(due for due in self._due if due[0] <= horizon):
            crops = self._crops[person]
            if not crops:
                continue
            placed, latest = self._placed[person], crops[-_LATEST_CROPS:]
            ratio = sum(crop.quality for crop in latest) / max(
                sum(placed[crop.slot] for crop in latest), 1e-9
            )
            expected = [ratio * quality for quality in placed[crops[-1].slot + 1 :]]
            chosen = spread([crop.quality for crop in crops] + expected, self._crops_embedded)
            yield from (crops[i] for i in chosen if i < len(crops))

    @cached_property
    def _placed(self) -> dict[int, list[float]]:
        """The placement quality of each person's planned crops, by slot."""
        placed: dict[int, list[float]] = {person: [] for person in self._plan.tracks}
        for cuts in self._plan.cuts.values():
            for cut in cuts:
                placed[cut.person_id].append(cut.placement_quality)
        return placed

    def _close(self, person: int) -> Bucket:
        crops = tuple(self._crops.pop(person))
        return Bucket(person, crops, choose_embedded(crops, self._crops_embedded))
