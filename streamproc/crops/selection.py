"""Which of a person's crops are embedded."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamproc.types import Crop, Float32Array, FrameTable, Int64Array, Track

GOOD_ENOUGH = 0.7
"""Crops of at least this share of a person's best quality (90th percentile) are spread over for embedding."""


def choose_embedded(crops: Sequence[Crop], count: int) -> tuple[int, ...]:
    """Choose up to `count` positions in `crops`, best first: evenly spread in time over those that are good enough.

    Spread matters more than the last bit of quality: the best crop of each part of a track was
    measured to be worse (README, "Which crops"). Where too few are good enough, the next best fill
    up.
    """
    chosen = spread([crop.quality for crop in crops], count)
    return tuple(sorted(chosen, key=lambda i: (-crops[i].quality, i)))


def spread(qualities: Sequence[float], count: int) -> list[int]:
    """Choose up to `count` positions, in order, as `choose_embedded` says.

    Plain Python, as in the plan: of 50 numbers numpy's percentile alone takes five times as long as
    all of this.
    """
    if len(qualities) <= count:
        return list(range(len(qualities)))
    best_first = sorted(range(len(qualities)), key=lambda i: -qualities[i])
    least = GOOD_ENOUGH * _percentile([qualities[i] for i in reversed(best_first)], 0.9)
    good_enough = sum(quality >= least for quality in qualities)
    usable = sorted(best_first[: max(count, good_enough)])
    step = (len(usable) - 1) / max(count - 1, 1)
    return [usable[round(i * step)] for i in range(count)]


def _percentile(ascending: Sequence[float], share: float) -> float:
    """Linear between the two values around it."""
    whole, part = divmod(share * (len(ascending) - 1), 1)
    low, high = ascending[int(whole)], ascending[min(int(whole) + 1, len(ascending) - 1)]
    return low + (high - low) * part


EQUALLY_GOOD = 0.85
"""Boxes of at least this share of their window's best placement quality are chosen among by cost."""


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """Consecutive boxes of one track, the first its box `first_row`, of which one is cut.

    `rows` and `frames` are those of the equally good boxes, the ones nearest the middle first.
    """

    first_row: int
    rows: Int64Array
    frames: Int64Array


def windows_of(track: Track, rows: Int64Array, quality: Float32Array, count: int) -> list[Window]:
    """Divide the usable boxes `rows` of a track, of this quality, into at most `count` windows as equal as can be."""
    count = min(count, rows.size)
    bounds = np.arange(count + 1) * (rows.size // count) + np.minimum(
        np.arange(count + 1), rows.size % count
    )
    sizes, starts = np.diff(bounds), bounds[:-1]
    window = np.repeat(np.arange(count), sizes)
    good = quality >= EQUALLY_GOOD * np.maximum.reduceat(quality, starts)[window]
    from_middle = np.abs(rows - rows[starts + sizes // 2][window])
    order = np.lexsort((from_middle, window))  # windows stay in place
    order = order[good[order]]
    ends = np.cumsum(np.bincount(window[good], minlength=count)).tolist()
    candidates = rows[order]
    frames = track.frame_indices[candidates]
    return [
        Window(first, candidates[start:end], frames[start:end])
        for first, (start, end) in zip(rows[starts].tolist(), pairwise([0, *ends]), strict=True)
    ]


class DecodingCosts:
    """How many pictures the decoder must still decode to reach a frame, given the frames already chosen."""

    def __init__(self, table: FrameTable) -> None:
        packets = int(table.decode_order.max(initial=-1)) + 1
        needed = np.zeros(packets + 1, np.int64)
        needed[table.decode_order[~table.disposable] + 1] = 1
        until = np.cumsum(needed)  # (packets + 1,): pictures before a packet that cannot be skipped
        # Windows are short: plain numbers are looked at in less time than arrays are made of them.
        depth = until[table.decode_order + 1] - until[table.start_order]
        self._starts, self._depth, self._alone = (
            array("q", column.astype(np.int64).tobytes())
            for column in (table.start_order, depth, table.disposable)
        )
        self._reached: Counter[int] = Counter()  # by start packet
        self._chosen: set[int] = set()

    def choose(self, frames: Sequence[int]) -> int:
        """The place in `frames` of the first of the cheapest ones, which counts as chosen from now on."""
        best, least = 0, math.inf
        for place, frame in enumerate(frames):
            if frame in self._chosen:
                return place
            cost = (
                max(0, self._depth[frame] - self._reached[self._starts[frame]]) + self._alone[frame]
            )
            if cost < least:
                best, least = place, cost
        frame = frames[best]
        self._chosen.add(frame)
        start = self._starts[frame]
        self._reached[start] = max(self._reached[start], self._depth[frame])
        return best


def pick_boxes(windows: Sequence[Window], costs: DecodingCosts) -> list[int]:
    """Return one row a window; windows with the least choice go first, the others can then share their frames."""
    picks = [0] * len(windows)
    for i in sorted(
        range(len(windows)), key=lambda i: (len(windows[i].rows), windows[i].first_row)
    ):
        picks[i] = int(windows[i].rows[costs.choose(windows[i].frames.tolist())])
    return picks
