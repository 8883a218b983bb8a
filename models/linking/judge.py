"""From measured pairs to candidates and groups, as the product would make them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from models.linking.rows import Listed
from models.linking.scores import NOBODY
from streamproc.gallery.linking.groups import same_group
from streamproc.gallery.linking.pair_model import (
    add_context,
    final_log_odds,
    first_log_odds,
    group_probabilities,
    group_tracklets,
    sigmoid,
)

if TYPE_CHECKING:
    import numpy.typing as npt

    from models.linking.fit_linking import KnownPairs
    from models.linking.rows import TrackedFile
    from streamproc.gallery.linking.groups import Clustering
    from streamproc.gallery.linking.pair_model import PairModel

    FloatArray = npt.NDArray[np.float64]

IN_GROUP, APART, LIKELY = 0.6, 0.7, 0.9
"""The least probability of a candidate in a video with boxes whose two are in one group, of another
one there, and of a likely one: the product's defaults."""


def final_odds(known: KnownPairs, model: PairModel) -> FloatArray:
    """Return the final log-odds (p,) of measured pairs."""
    add_context(known.measured, first_log_odds(known.measured, model), known.vetoes)
    return final_log_odds(known.measured, model)


def candidates(file: TrackedFile, known: KnownPairs, model: PairModel) -> Listed:
    """Return the list of one tracker's file, with probabilities as they are published."""
    odds = final_odds(known, model)
    pairs = known.measured.pairs
    chance = np.round(sigmoid(odds), 2)
    together = same_group(pairs, _grouped(known, odds).label)
    chosen = (together & (chance >= IN_GROUP)) | (chance >= APART)
    listed = chance[chosen]
    return Listed(file.ids[pairs[chosen]], listed, listed >= LIKELY)


def judge_groups(known: KnownPairs, model: PairModel) -> list[tuple[float, bool]]:
    """Return the probability of each group with two known tracklets or more, and its truth."""
    found = _grouped(known, final_odds(known, model))
    members = found.members()
    judged = []
    for own, chance in zip(members, group_probabilities(found, members, model), strict=True):
        who = known.person[own][known.person[own] != NOBODY]
        if len(who) > 1:
            judged.append((float(chance), len(set(who.tolist())) == 1))
    return judged


def _grouped(known: KnownPairs, odds: FloatArray) -> Clustering:
    return group_tracklets(known.measured.pairs, odds, known.vetoes, len(known.person))
