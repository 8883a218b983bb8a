"""How likely other pairs of the same tracklets are: they compete with a pair."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from streamproc.gallery.linking.context import take_off_pieces, triangles

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
    odds_of_tracklet = np.bincount(pairs.ravel(), np.repeat(odds, 2)).astype(np.float64, copy=False)
    # (p, 2): of the first and of the second
    against: Float64Array = odds_of_tracklet[pairs] - odds[:, None]
    for triangle in triangles(pairs):
        # Each side of a triangle in turn is the pair (a, b); the others are (a, c) and (b, c).
        for turn in range(3):
            sides = (triangle[turn], triangle[turn - 1], triangle[turn - 2])
            take_off_pieces(against, pairs, odds, probability, sides)
    strength: Float64Array = np.log1p(np.maximum(against, 0)).sum(1)
    return strength
