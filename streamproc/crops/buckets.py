"""Collects each person's crops; a bucket is complete when its last planned frame has passed."""

from __future__ import annotations

import heapq
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from streamproc.crops.selection import choose_embedded, expect_embedded
from streamproc.types import Bucket, Crop

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from streamproc.crops.plan import Plan


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
        """Return all buckets that are not complete, as they are.

        The video has ended or is not processed further.
        """
        return [self._close(person) for _, person in sorted(self._due)]

    def likely(self, frames_ahead: int) -> Iterator[Crop]:
        """The crops so far that will probably be embedded, those of the next full bucket first.

        Only of buckets that are complete within the next `frames_ahead` planned frames.
        """
        frames = self._plan.frame_indices
        to_come = frames[np.searchsorted(frames, self._last_frame, side="right") :]
        horizon = to_come[:frames_ahead].max(initial=-1)
        for _, person in sorted(due for due in self._due if due[0] <= horizon):
            placements = self._placements[person]
            yield from expect_embedded(self._crops[person], placements, self._crops_embedded)

    @cached_property
    def _placements(self) -> dict[int, list[float]]:
        """The placement qualities of each person's planned crops, by `crop_index`."""
        placements: dict[int, list[float]] = {person: [] for person in self._plan.tracks}
        for cuts in self._plan.cuts.values():
            for cut in cuts:
                placements[cut.person_id].append(cut.placement_quality)
        return placements

    def _close(self, person: int) -> Bucket:
        crops = tuple(self._crops.pop(person))
        return Bucket(person, crops, choose_embedded(crops, self._crops_embedded))
