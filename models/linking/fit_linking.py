"""Fit a `PairModel` on pairs whose truth is known.

`moving` pairs come from trackers on videos with truth, `still` and `across` from galleries drawn
from a data set's identities (`models/known_people.py`), among them one kind whose tracks are cut in
as many pieces as trackers make. Few coefficients, held towards 0 by a ridge: whoever uses them has
other videos and other trackers.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from models.linking.pair_features import ACROSS, MOVING, STILL
from models.linking.pair_model import (
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
from models.linking.purity import PurityModel
from streamproc.gallery.calibration.fitting import logistic

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from models.linking.motion import PositionModel
    from models.linking.pair_features import LooksModel
    from models.linking.purity import Suspect

    FloatArray = npt.NDArray[np.float64]
    IntArray = npt.NDArray[np.int64]
    BoolArray = npt.NDArray[np.bool_]

MOVING_RIDGE, LOOKS_RIDGE, PURITY_RIDGE = 3e-3, 1e-3, 2e-2
"""Of videos with truth there are few, of identities many."""
_NO_RIDGE = 1e-9
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


def fit(
    tracked: Sequence[KnownPairs],
    drawn: Sequence[KnownPairs],
    looks: LooksModel,
    position: PositionModel,
) -> PairModel:
    """Fit all kinds of pairs: `tracked` are of videos, `drawn` of still pictures."""
    of_kind = {MOVING: tracked, STILL: drawn, ACROSS: drawn}
    first = {kind: _fit_kind(kind, FIRST[kind], of) for kind, of in of_kind.items()}
    start = PairModel(looks, position, first, {}, (0.0, 0.0, 0.0))
    for known in (*tracked, *drawn):
        odds = first_log_odds(known.measured, start)
        add_context(known.measured, odds, known.vetoes)
    final = {kind: _fit_kind(kind, FINAL[kind], of) for kind, of in of_kind.items()}
    fitted = PairModel(looks, position, first, final, (0.0, 0.0, 0.0))
    return PairModel(looks, position, first, final, _fit_groups(tracked, fitted))


def _fit_kind(kind: str, names: Sequence[str], galleries: Sequence[KnownPairs]) -> list[float]:
    columns, same, weights = [], [], []
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
        rising=1,
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
    features, one_person = [], []
    for known in tracked:
        odds = final_log_odds(known.measured, model)
        pairs, count = known.measured.pairs, len(known.person)
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


def to_json(model: PairModel) -> Mapping[str, object]:
    """Coefficients by kind; the looks stay in the curve's fields mean, basis, spread and rest."""
    position = {name: getattr(model.position, name) for name in model.position.__slots__}
    named = {
        stage: {
            kind: dict(zip(("intercept", *names[kind]), values, strict=True))
            for kind, values in coefficients.items()
        }
        for stage, names, coefficients in (
            ("first", FIRST, model.first),
            ("final", FINAL, model.final),
        )
    }
    group = dict(zip(("intercept", "weakest", "log_size"), model.group, strict=True))
    return {"position": position, **named, "group": group}
