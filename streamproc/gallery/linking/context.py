"""What the pairs that share a tracklet say of a pair: its competitors, and who supports it.

Of a pair (a, b) only pairs (a, c) and (b, c) count. Where a and b are of one video, c is of it
too, so that what is said of them never changes once their video is closed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streamproc.types import Float64Array, Int64Array

LARGEST_LOG_ODDS = 6.0
"""Of one pair, where it speaks for or against others: nobody is surer than that of a third one."""
NO_SUPPORT = -3.0
_WEDGES_AT_ONCE = 1 << 20  # 8 MiB for each array of indices


def competition(pairs: Int64Array, log_odds: Float64Array, video: Int64Array) -> Float64Array:
    """How strong the competitors of each pair are, (p,), 0 where it has none.

    `pairs` (p, 2), none twice, with log-odds (p,) by looks and motion; `video` (n,) of each
    tracklet. If a is *one* of several others, the probability of each is its odds' share of 1 and
    the odds of all: the logarithm of that sum without the pair's own odds, for a and b together.
    But pieces of one person are no competitors, and trackers make many: c counts against (a, b) by
    the odds of (a, c) only as far as (b, c) are two. Pairs that are not named are two for certain.
    """
    if not len(pairs):
        return np.zeros(0)
    odds = np.exp(np.minimum(log_odds, LARGEST_LOG_ODDS))
    chance = odds / (1 + odds)
    against = _odds_of_others(pairs, odds, video)
    for pair, one, other in _wedges(pairs, video):
        take_off_pieces(against, pairs, odds, chance, (pair, one, other))
    strength: Float64Array = np.log1p(np.maximum(against, 0)).sum(1)
    return strength


def take_off_pieces(
    against: Float64Array,
    pairs: Int64Array,
    odds: Float64Array,
    chance: Float64Array,
    triangles: tuple[Int64Array, Int64Array, Int64Array],
) -> None:
    """Subtract from the odds `against` each pair (p, 2) those of pieces of the same person.

    `triangles` are positions (t,) of the pairs (a, b), (a, c) and (b, c), the last two in either
    order: c does not compete as far as (b, c), or (a, c), is one person.
    """
    pair, one, other = triangles
    first_in_one = (pairs[one] == pairs[pair, :1]).any(1)
    from_one = odds[one] * chance[other]
    from_other = odds[other] * chance[one]
    of_first = np.where(first_in_one, from_one, from_other)
    of_second = np.where(first_in_one, from_other, from_one)
    against[:, 0] -= np.bincount(pair, of_first, len(pairs))
    against[:, 1] -= np.bincount(pair, of_second, len(pairs))


def support(pairs: Int64Array, log_odds: Float64Array, video: Int64Array) -> Float64Array:
    """The best way around (p,): over all c, the weaker of (a, c) and (c, b), in [-3, 6]."""
    best: Float64Array = np.full(len(pairs), NO_SUPPORT)
    for pair, one, other in _wedges(pairs, video):
        np.maximum.at(best, pair, np.minimum(log_odds[one], log_odds[other]))
    capped: Float64Array = np.minimum(best, LARGEST_LOG_ODDS)
    return capped


def _odds_of_others(pairs: Int64Array, odds: Float64Array, video: Int64Array) -> Float64Array:
    """Odds (p, 2) of all other pairs that the first, and the second, has.

    Where both are of one video, only pairs within it count.
    """
    count = len(video)
    within = video[pairs[:, 0]] == video[pairs[:, 1]]
    both = np.repeat(odds, 2)
    anywhere = np.bincount(pairs.ravel(), both, count)
    inside = np.bincount(pairs.ravel(), both * np.repeat(within, 2), count)
    of_all: Float64Array = np.where(within[:, None], inside[pairs], anywhere[pairs])
    return of_all - odds[:, None]


def _wedges(
    pairs: Int64Array, video: Int64Array
) -> Iterator[tuple[Int64Array, Int64Array, Int64Array]]:
    """A pair, and the two pairs of its tracklets with a third: positions in `pairs`, (w,) each."""
    within = video[pairs[:, 0]] == video[pairs[:, 1]]
    for triangle in triangles(pairs):
        for turn in range(3):
            pair = triangle[turn]
            one = triangle[turn - 1]
            other = triangle[turn - 2]
            counts = ~within[pair] | (within[one] & within[other])
            yield pair[counts], one[counts], other[counts]


def triangles(pairs: Int64Array) -> Iterator[tuple[Int64Array, Int64Array, Int64Array]]:
    """All triples of pairs among three tracklets, as positions in `pairs`, many at once.

    Each pair is led by the tracklet with fewer pairs, so that who is like everybody starts none:
    a few dozen steps a pair where each has at most some 20 (Chiba and Nishizeki 1985).
    """
    if not len(pairs):
        return
    count = int(pairs.max()) + 1
    order, low, high = _by_lead(pairs, count)
    keys = low * count + high
    # How many pairs come after each one that have the same lead.
    later = np.searchsorted(low, low, side="right") - np.arange(len(low)) - 1
    steps = np.cumsum(later)
    start = 0
    while start < len(low):
        done = steps[start] - later[start]
        end = int(np.searchsorted(steps, done + _WEDGES_AT_ONCE, side="right"))
        end = max(start + 1, end)
        own = later[start:end]
        before = steps[start:end] - later[start:end] - done
        one = np.repeat(np.arange(start, end), own)
        other = one + 1 + np.arange(len(one)) - np.repeat(before, own)
        wanted = high[one] * count + high[other]
        third = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        closed = keys[third] == wanted
        yield order[one[closed]], order[other[closed]], order[third[closed]]
        start = end


def _by_lead(pairs: Int64Array, count: int) -> tuple[Int64Array, Int64Array, Int64Array]:
    """The order of pairs by the rank of their lead, and both ranks in that order, (p,) each."""
    rank = np.empty(count, np.int64)
    rank[np.argsort(np.bincount(pairs.ravel()), kind="stable")] = np.arange(count)
    low, high = np.sort(rank[pairs], axis=1).T
    order = np.lexsort((high, low))
    return order, low[order], high[order]
