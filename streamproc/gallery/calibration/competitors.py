"""How likely other pairs of the same tracklets are: they compete with a pair."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    Float64Array = npt.NDArray[np.float64]
    Int64Array = npt.NDArray[np.int64]

# One further tracklet of a person that is certain would drown all other terms in rounding.
_LARGEST_LOG_ODDS = 20.0
_WEDGES_AT_ONCE = 1 << 20  # 8 MiB for each array of indices


def competitor_strength(pairs: Int64Array, log_odds: Float64Array) -> Float64Array:
    """Return how strong the competitors of each pair are (p,); 0 where a pair has none.

    `pairs` (p, 2) are positions of tracklets, no pair twice. `log_odds` (p,) are those of being one
    person, from the two tracklets alone. Pairs that are not given count as two people for certain.

    Were tracklet a the same person as exactly one of several others, the probability of each would
    be its odds divided by 1 plus the odds of all. So the strength of the pair (a, b) is the
    logarithm of 1 plus the odds of all other pairs of a, and the same of b, added up.

    Several tracklets may however belong to one person, and then do not compete. So the pair (a, c)
    counts against (a, b) by its odds times the probability that b and c are two people.
    """
    if not len(pairs):
        return np.zeros(0)
    odds = np.exp(np.clip(log_odds, -_LARGEST_LOG_ODDS, _LARGEST_LOG_ODDS))
    probability = odds / (1 + odds)
    odds_of_tracklet = np.bincount(pairs.ravel(), np.repeat(odds, 2))
    against = odds_of_tracklet[pairs] - odds[:, None]  # (p, 2): of the first and of the second
    for triangle in _triangles(pairs):
        # Each side of a triangle in turn is the pair (a, b); the others are (a, c) and (b, c).
        for turn in range(3):
            pair = triangle[turn]
            one = triangle[turn - 1]
            other = triangle[turn - 2]
            one_has_first = (pairs[one] == pairs[pair, :1]).any(1)
            by_one = odds[one] * probability[other]
            by_other = odds[other] * probability[one]
            first = np.where(one_has_first, by_one, by_other)
            second = np.where(one_has_first, by_other, by_one)
            against[:, 0] -= np.bincount(pair, first, len(pairs))
            against[:, 1] -= np.bincount(pair, second, len(pairs))
    strength: Float64Array = np.log1p(np.maximum(against, 0)).sum(1)
    return strength


def _triangles(pairs: Int64Array) -> Iterator[tuple[Int64Array, Int64Array, Int64Array]]:
    """Yield all triples of pairs among three tracklets, many at once, as positions in `pairs`.

    The tracklets are ranked by how many pairs they have, and each pair is listed under its tracklet
    of lower rank. Two pairs under one tracklet are a wedge, and a triangle where the third pair
    exists. A tracklet that is similar to all others has no pairs listed under it, so the number of
    wedges stays small: with at most 20 candidates a tracklet, a few dozen a pair (Chiba and
    Nishizeki, SIAM Journal on Computing 1985).
    """
    count = pairs.max() + 1
    rank = np.empty(count, np.int64)
    rank[np.argsort(np.bincount(pairs.ravel()), kind="stable")] = np.arange(count)
    low, high = np.sort(rank[pairs], axis=1).T
    order = np.lexsort((high, low))
    low = low[order]
    high = high[order]
    keys = low * count + high  # one ascending number a pair, to look pairs up
    # How many pairs come after each one under the same tracklet: its wedges.
    wedges = np.searchsorted(low, low, side="right") - np.arange(len(low)) - 1
    wedges_so_far = np.cumsum(wedges)
    start = 0
    while start < len(low):
        done = wedges_so_far[start] - wedges[start]
        end = int(np.searchsorted(wedges_so_far, done + _WEDGES_AT_ONCE, side="right"))
        end = max(start + 1, end)
        counts = wedges[start:end]
        one = np.repeat(np.arange(start, end), counts)
        first_wedge = np.repeat(wedges_so_far[start:end] - counts - done, counts)
        other = one + 1 + np.arange(len(one)) - first_wedge
        wanted = high[one] * count + high[other]
        third = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        is_triangle = keys[third] == wanted
        yield order[one[is_triangle]], order[other[is_triangle]], order[third[is_triangle]]
        start = end
