"""Which of a person's crops are embedded."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamproc.types import Crop

GOOD_ENOUGH = 0.7
"""Crops of at least this share of a person's best quality (90th percentile) are spread over for embedding."""


def choose_embedded(crops: Sequence[Crop], count: int) -> tuple[int, ...]:
    """Choose up to `count` positions in `crops`, best first: evenly spread in time over those that are good enough.

    Spread matters more than the last bit of quality: the best crop of each part of a track was measured to be worse
    (README, "Which crops"). Where too few are good enough, the next best fill up.
    """
    chosen = spread([crop.quality for crop in crops], count)
    return tuple(sorted(chosen, key=lambda i: (-crops[i].quality, i)))


def spread(qualities: Sequence[float], count: int) -> list[int]:
    """Choose up to `count` positions, in order, as `choose_embedded` says.

    Plain Python, as in the plan: of 50 numbers numpy's percentile alone takes five times as long as all of this.
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
