"""Who else a person may be: of what speaks for a pair, how much speaks for other pairs as well."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    Float64Array = npt.NDArray[np.float64]
    Int64Array = npt.NDArray[np.int64]

_LARGEST_LOG_ODDS = 20.0  # of what is certain one person more would drown all else in rounding
_WEDGES_AT_ONCE = 1 << 20  # 8 MiB for each array of indices


def rivalry(pairs: Int64Array, log_odds: Float64Array) -> Float64Array:
    """How strong each pair's rivals are (p,), 0 where it has none.

    `pairs` (p, 2) of positions, no pair twice, with log-odds (p,) of being one person by what is
    known of the two alone. If a person is *one* of several others, the probability of each is its
    odds' share of 1 and the odds of all: the logarithm of that sum without the pair's own odds, for
    both of its persons together. But tracks of one person are no rivals, and there may be many: of
    (a, b), c counts against b only as far as c is not b, by the odds of (a, c) times the
    probability that (b, c) are two. Pairs not named (not similar, or seen apart) are two for
    certain.
    """
    if not len(pairs):
        return np.zeros(0)
    odds = np.exp(np.clip(log_odds, -_LARGEST_LOG_ODDS, _LARGEST_LOG_ODDS))
    chance = odds / (1 + odds)
    of_all = np.bincount(pairs.ravel(), np.repeat(odds, 2))
    against = of_all[pairs] - odds[:, None]  # (p, 2): of the first and of the second
    for triangle in _triangles(pairs):
        for turn in range(3):
            pair, one, other = triangle[turn], triangle[turn - 1], triangle[turn - 2]
            first_in_one = (pairs[one] == pairs[pair, :1]).any(1)
            from_one, from_other = odds[one] * chance[other], odds[other] * chance[one]
            against[:, 0] -= np.bincount(
                pair, np.where(first_in_one, from_one, from_other), len(pairs)
            )
            against[:, 1] -= np.bincount(
                pair, np.where(first_in_one, from_other, from_one), len(pairs)
            )
    strength: Float64Array = np.log1p(np.maximum(against, 0)).sum(1)
    return strength


def _triangles(pairs: Int64Array) -> Iterator[tuple[Int64Array, Int64Array, Int64Array]]:
    """All triples of pairs among three persons, as positions in `pairs`, many at once.

    Each pair is led by the one with fewer pairs, so that who is like everybody starts none: with at
    most 20 neighbours that a person names itself, that makes a few dozen steps a pair (Chiba and
    Nishizeki 1985).
    """
    count = pairs.max() + 1
    rank = np.empty(count, np.int64)
    rank[np.argsort(np.bincount(pairs.ravel()), kind="stable")] = np.arange(count)
    low, high = np.sort(rank[pairs], axis=1).T
    order = np.lexsort((high, low))
    low, high = low[order], high[order]
    keys = low * count + high
    later = (
        np.searchsorted(low, low, side="right") - np.arange(len(low)) - 1
    )  # pairs after this one, of the same lead
    steps = np.cumsum(later)
    start = 0
    while start < len(low):
        done = steps[start] - later[start]
        end = max(start + 1, int(np.searchsorted(steps, done + _WEDGES_AT_ONCE, side="right")))
        one = np.repeat(np.arange(start, end), later[start:end])
        other = (
            one
            + 1
            + np.arange(len(one))
            - np.repeat(steps[start:end] - later[start:end] - done, later[start:end])
        )
        wanted = high[one] * count + high[other]
        third = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        closed = keys[third] == wanted
        yield order[one[closed]], order[other[closed]], order[third[closed]]
        start = end
