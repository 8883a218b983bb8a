"""How likely other pairs of the same tracklets are: they compete with a pair."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from streamproc.gallery.linking.context import triangles

if TYPE_CHECKING:
    import numpy.typing as npt

    Float64Array = npt.NDArray[np.float64]
    Int64Array = npt.NDArray[np.int64]

# One further tracklet of a person that is certain would drown all other terms in rounding.
_LARGEST_LOG_ODDS = 20.0


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
    for triangle in triangles(pairs):
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
