"""Which boxes of a track are cut, and which of a person's crops are embedded.

Before decoding, `choose_boxes` divides a track's boxes into as many consecutive windows as crops
are wanted; each window gives one. Within a window all boxes of nearly its best placement quality
count as equally good, and the one that needs the least further decoding is taken: a frame that
another person needs anyway costs nothing, one early in its group of pictures little.

Afterwards `choose_embedded` chooses among the crops that were cut. Which those will be is estimated
twice: by placement alone when the crops are planned (`spread`), and while they come
(`expect_embedded`).
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamproc.types import Crop, Float32Array, FrameTable, Int64Array, Track

GOOD_ENOUGH = 0.7
"""Embedded are crops of at least this share of a person's best quality (its 90th percentile)."""
EQUALLY_GOOD = 0.85
"""Boxes of at least this share of their window's best placement quality are chosen by cost."""
_LATEST_CROPS = 3
"""Crops to come are expected to be as sharp as this many before them.

On vtest.avi that was better than to take all of them.
"""


@dataclass(frozen=True, slots=True, eq=False)
class JudgedTrack:
    """A track and how good its n boxes are.

    `placements` (n,) are their placement qualities, `usable_rows` (k,) the ones that can be cut.
    """

    track: Track
    placements: Float32Array
    usable_rows: Int64Array


def choose_boxes(
    tracks: Sequence[JudgedTrack], crops_per_person: int, table: FrameTable
) -> list[list[int]]:
    """Choose up to `crops_per_person` boxes of each track: rows of it, in ascending order.

    Boxes of all tracks are chosen together, so that tracks share frames.
    """
    windows = [_windows_of(judged, crops_per_person) for judged in tracks]
    picks = iter(_pick_rows(list(chain.from_iterable(windows)), _DecodingCosts(table)))
    return [list(islice(picks, len(own))) for own in windows]


@dataclass(frozen=True, slots=True, eq=False)
class _Window:
    """Consecutive boxes of one track, the first its box `first_row`, of which one is cut.

    `rows` and `frames` are those of the equally good boxes, the ones nearest the middle first.
    """

    first_row: int
    rows: Int64Array
    frames: Int64Array


def _windows_of(judged: JudgedTrack, count: int) -> list[_Window]:
    """Divide a track's usable boxes into at most `count` windows, of sizes as equal as can be."""
    rows = judged.usable_rows
    quality = judged.placements[rows]
    count = min(count, rows.size)
    numbers = np.arange(count + 1)
    bounds = numbers * (rows.size // count) + np.minimum(numbers, rows.size % count)
    sizes = np.diff(bounds)
    starts = bounds[:-1]
    window = np.repeat(np.arange(count), sizes)  # (k,): which window each box is in
    best_quality = np.maximum.reduceat(quality, starts)
    is_good = quality >= EQUALLY_GOOD * best_quality[window]
    middles = rows[starts + sizes // 2]
    order = np.lexsort((np.abs(rows - middles[window]), window))  # windows stay in place
    order = order[is_good[order]]
    candidates = rows[order]
    frames = judged.track.frame_indices[candidates]
    ends = np.cumsum(np.bincount(window[is_good], minlength=count)).tolist()
    return [
        _Window(first, candidates[start:end], frames[start:end])
        for first, (start, end) in zip(rows[starts].tolist(), pairwise([0, *ends]), strict=True)
    ]


class _DecodingCosts:
    """How many pictures must still be decoded to reach a frame, given the frames already chosen."""

    def __init__(self, table: FrameTable) -> None:
        packets = int(table.decode_order.max(initial=-1)) + 1
        needed = np.zeros(packets + 1, np.int64)
        needed[table.decode_order[~table.disposable] + 1] = 1
        until = np.cumsum(needed)  # (packets + 1,): pictures before a packet that cannot be skipped
        self._starts = _plain(table.start_order)
        self._depths = _plain(until[table.decode_order + 1] - until[table.start_order])
        self._disposable = _plain(table.disposable)
        self._reached: Counter[int] = Counter()  # the depth decoded anyway, by start packet
        self._chosen: set[int] = set()

    def choose(self, frames: Sequence[int]) -> int:
        """Return the place in `frames` of the cheapest, the first of equals.

        It counts as chosen from now on.
        """
        best = 0
        least = math.inf
        for place, frame in enumerate(frames):
            if frame in self._chosen:
                return place
            more = max(0, self._depths[frame] - self._reached[self._starts[frame]])
            cost = more + self._disposable[frame]  # a disposable frame is decoded for itself alone
            if cost < least:
                best = place
                least = cost
        frame = frames[best]
        self._chosen.add(frame)
        start = self._starts[frame]
        self._reached[start] = max(self._reached[start], self._depths[frame])
        return best


def _plain(column: np.ndarray) -> array[int]:
    """The same numbers (n,) for reading one by one.

    Windows are short: plain numbers are looked up in less time than numpy arrays are made of them.
    """
    return array("q", column.astype(np.int64).tobytes())


def _pick_rows(windows: Sequence[_Window], costs: _DecodingCosts) -> list[int]:
    """Return one row a window.

    Windows with the least choice go first, as the others can then share their frames.
    """

    def choice(i: int) -> tuple[int, int]:
        return len(windows[i].rows), windows[i].first_row

    picks = [0] * len(windows)
    for i in sorted(range(len(windows)), key=choice):
        window = windows[i]
        picks[i] = int(window.rows[costs.choose(window.frames.tolist())])
    return picks


def choose_embedded(crops: Sequence[Crop], count: int) -> tuple[int, ...]:
    """Choose up to `count` positions in `crops`, best first.

    They are evenly spread in time over the crops that are good enough. Spread matters more than the
    last bit of quality: the best crop of each part of a track was measured to be worse. Where too
    few are good enough, the next best are added.
    """
    chosen = spread([crop.quality for crop in crops], count)
    return tuple(sorted(chosen, key=lambda i: (-crops[i].quality, i)))


def expect_embedded(crops: Sequence[Crop], placements: Sequence[float], count: int) -> list[Crop]:
    """Those of a person's crops so far that will probably be chosen once all have come.

    `placements` are the placement qualities of all that are planned, by `crop_index`. A crop to
    come is expected to have the quality that its placement gives it, times what the latest crops
    had of theirs.
    """
    if not crops:
        return []
    latest = crops[-_LATEST_CROPS:]
    placed = sum(placements[crop.crop_index] for crop in latest)
    ratio = sum(crop.quality for crop in latest) / max(placed, 1e-9)
    to_come = placements[crops[-1].crop_index + 1 :]
    expected = [ratio * placement for placement in to_come]
    chosen = spread([crop.quality for crop in crops] + expected, count)
    return [crops[i] for i in chosen if i < len(crops)]


def spread(qualities: Sequence[float], count: int) -> list[int]:
    """Choose up to `count` positions, in order, as `choose_embedded` says.

    Plain Python: of 50 numbers numpy's percentile alone takes five times as long as all of this.
    """
    if len(qualities) <= count:
        return list(range(len(qualities)))
    best_first = sorted(range(len(qualities)), key=lambda i: -qualities[i])
    ascending = [qualities[i] for i in reversed(best_first)]
    least = GOOD_ENOUGH * _percentile(ascending, 0.9)
    good_enough = sum(quality >= least for quality in qualities)
    usable = sorted(best_first[: max(count, good_enough)])
    step = (len(usable) - 1) / max(count - 1, 1)
    return [usable[round(i * step)] for i in range(count)]


def _percentile(ascending: Sequence[float], share: float) -> float:
    """Linear between the two values around it."""
    whole, part = divmod(share * (len(ascending) - 1), 1)
    low = ascending[int(whole)]
    high = ascending[min(int(whole) + 1, len(ascending) - 1)]
    return low + (high - low) * part
