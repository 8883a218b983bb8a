"""Fit a `PairModel` on pairs whose truth is known.

`moving` pairs come from trackers on videos with truth, `still` and `across` from galleries drawn
from a data set's identities (`models/known_people.py`), among them one kind whose tracks are cut in
as many pieces as trackers make. Few coefficients, held towards 0 by a ridge: whoever uses them has
other videos and other trackers.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from streamproc.gallery.calibration.fitting import logistic
from streamproc.gallery.linking.motion import PositionModel
from streamproc.gallery.linking.pair_features import ACROSS, MOVING, STILL
from streamproc.gallery.linking.pair_model import (
    FINAL,
    FIRST,
    GalleryPairs,
    PairModel,
    add_context,
    final_log_odds,
    first_log_odds,
    group_features,
    group_tracklets,
)
from streamproc.gallery.linking.purity import PurityModel

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from streamproc.gallery.linking.pair_features import LooksModel
    from streamproc.gallery.linking.purity import Suspect

    FloatArray = npt.NDArray[np.float64]
    IntArray = npt.NDArray[np.int64]
    BoolArray = npt.NDArray[np.bool_]

MOVING_RIDGE, LOOKS_RIDGE, PURITY_RIDGE = 3e-3, 1e-3, 2e-2
"""Of videos with truth there are few, of identities many."""
_NO_RIDGE = 1e-9
_NO_GROUPS = (0.0, 0.0, 0.0)
POSITION = PositionModel(
    followed=0.97,
    follow_seconds=8.0,
    scale_heights=0.1,
    scale_heights_a_second=0.1,
    tail=2.5,
    damping_seconds=0.7,
    vertical=0.55,
)
"""Rounded by hand from a fit on the boxes of MOT17-04, -05 and -11."""
SOURCE_SHARES = {"one camera": 0.5, "two cameras": 0.25, "in pieces": 0.25, "broken": 0.25}
"""How much all pairs of a kind of drawn galleries weigh together."""


@dataclass(frozen=True, slots=True, eq=False)
class KnownPairs:
    """The similar pairs of a gallery and their truth.

    `same` (p,); `counts` (p,): whether the truth of a pair is known. `vetoes` (v, 2) and `person`
    (n,), -1 where not known, number the tracklets. `source`: a video's name, or how it was drawn.
    """

    measured: GalleryPairs
    same: BoolArray
    counts: BoolArray
    vetoes: IntArray
    person: IntArray
    source: str


def fit_looks(drawn: Sequence[KnownPairs], looks: LooksModel) -> PairModel:
    """Fit `still` and `across` on galleries of still pictures."""
    return _fit_kinds((STILL, ACROSS), drawn, PairModel(POSITION, {}, {}, _NO_GROUPS, looks))


def fit_moving(tracked: Sequence[KnownPairs], looks: LooksModel) -> PairModel:
    """Fit `moving` and the groups on videos with tracks."""
    fitted = _fit_kinds((MOVING,), tracked, PairModel(POSITION, {}, {}, _NO_GROUPS, looks))
    return replace(fitted, group=_fit_groups(tracked, fitted))


def joined(moving: PairModel, still: PairModel) -> PairModel:
    """Put both together: a model of all kinds of pairs."""
    first = {**moving.first, **still.first}
    return replace(moving, first=first, final={**moving.final, **still.final})


def _fit_kinds(
    kinds: Sequence[str], galleries: Sequence[KnownPairs], model: PairModel
) -> PairModel:
    """Fit first log-odds, add the context that they make, and fit final ones on that."""
    first = {kind: _fit_kind(kind, FIRST[kind], galleries) for kind in kinds}
    model = replace(model, first={**model.first, **first})
    for known in galleries:
        odds = first_log_odds(known.measured, model)
        add_context(known.measured, odds, known.vetoes)
    final = {kind: _fit_kind(kind, FINAL[kind], galleries) for kind in kinds}
    return replace(model, final={**model.final, **final})


def _fit_kind(kind: str, names: Sequence[str], galleries: Sequence[KnownPairs]) -> list[float]:
    columns = []
    same = []
    weights = []
    for known, pair_weight in zip(galleries, _pair_weights(kind, galleries), strict=True):
        own = known.counts & (known.measured.kind == kind)
        features = [known.measured.features[name][own] for name in names]
        columns.append(np.stack(features, axis=1))
        same.append(known.same[own])
        weights.append(np.full(own.sum(), pair_weight))
    return logistic(
        np.concatenate(columns),
        np.concatenate(same),
        np.concatenate(weights),
        ridge=(_NO_RIDGE, MOVING_RIDGE if kind == MOVING else LOOKS_RIDGE),
    )


def _pair_weights(kind: str, galleries: Sequence[KnownPairs]) -> list[float]:
    """Of each gallery's pairs: trackers by the root of their pairs, drawn kinds by their shares."""
    if kind == MOVING:
        asked = [(known.counts & (known.measured.kind == kind)).sum() for known in galleries]
        return [float(max(count, 1)) ** -0.5 for count in asked]
    total: Counter[str] = Counter()
    for known in galleries:
        total[known.source] += len(known.same)
    return [SOURCE_SHARES[known.source] / max(total[known.source], 1) for known in galleries]


def _fit_groups(tracked: Sequence[KnownPairs], model: PairModel) -> list[float]:
    """A group is one person where all its known tracklets are."""
    features = []
    one_person = []
    for known in tracked:
        odds = final_log_odds(known.measured, model)
        pairs = known.measured.pairs
        count = len(known.person)
        found = group_tracklets(pairs, odds, known.vetoes, count)
        members = found.members()
        who = [np.unique(known.person[own][known.person[own] >= 0]) for own in members]
        asked = [i for i, own in enumerate(members) if (known.person[own] >= 0).sum() > 1]
        features.append(group_features(found, members)[asked])
        one_person += [len(who[i]) == 1 for i in asked]
    table = np.concatenate(features)
    ones = np.ones(len(table))
    return logistic(table, np.array(one_person), ones, ridge=(_NO_RIDGE, MOVING_RIDGE))


def fit_purity(suspects: Sequence[Suspect], impure: BoolArray) -> PurityModel:
    """Fit on tracks that would be cut, and whether each (s,) truly holds two people."""
    rows = np.array([[s.split, s.rest, s.share] for s in suspects])
    ridge = (_NO_RIDGE, PURITY_RIDGE)
    return PurityModel(*logistic(rows, impure, np.ones(len(rows)), ridge=ridge))
