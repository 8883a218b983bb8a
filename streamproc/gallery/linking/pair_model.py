"""How likely two tracklets are one person, and which tracklets are one.

First log-odds come from the two tracklets alone (`pair_features`). They make the context:
competitors and support among the pairs that share a tracklet (`context`), and for pairs of one
video the log-odds at which a clustering of its tracklets joins the two (`groups`). The final
log-odds are a logistic regression of these (Platt 1999). Last, all tracklets are clustered by them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from streamproc.gallery.linking.context import competition, support
from streamproc.gallery.linking.groups import Clustering, cluster
from streamproc.gallery.linking.motion import PositionModel
from streamproc.gallery.linking.pair_features import (
    ACROSS,
    MOVING,
    STILL,
    LooksModel,
    Video,
    features_across,
    features_within,
    log_odds_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from streamproc.types import Float64Array, Int64Array

FIRST: dict[str, tuple[str, ...]] = {
    MOVING: ("centred", "position", "height_change", "reappears"),
    STILL: ("whitened", "whitened_by_crops", "log_crops", "log_others"),
    ACROSS: ("whitened", "whitened_by_crops", "log_crops", "log_others"),
}
"""Features of the first log-odds of each kind of pair."""
FINAL: dict[str, tuple[str, ...]] = {
    MOVING: ("first", "joined", "competition", "support"),
    STILL: ("first", "joined", "competition", "support", "log_duplicates"),
    ACROSS: (*FIRST[ACROSS], "competition"),
}
"""Features of the final ones."""
JOIN_FLOOR = -3.0
"""In a clustering, what a pair that nobody judged counts."""
JOIN_STOP = -2.9
"""The least log-odds at which clusters of one video are joined."""
LARGEST_JOINED = 6.0
"""Beyond these log-odds the place where two are joined says nothing more."""
GROUP_STOP = 0.5
"""Log-odds: parts of a group are joined where it is likelier than not by e^0.5 to 1."""
_LARGEST_LOGIT = 40.0
_PRIOR_DUPLICATES = 0.5
_PRIOR_TRACKLETS = 1.5
_GROUP = ("weakest", "log_size")


@dataclass(frozen=True, slots=True, eq=False)
class Coefficients:
    """Learned of pairs by `models/linking/fit_linking.py`: coefficients by kind of pair.

    `first` and `final`: intercept and a coefficient for each of `FIRST` and `FINAL`. `group`:
    intercept and weights of what makes a group's probability (`group_probabilities`).
    """

    position: PositionModel
    first: Mapping[str, Sequence[float]]
    final: Mapping[str, Sequence[float]]
    group: Sequence[float]

    def to_json(self) -> dict[str, Any]:
        """Return the coefficients by name, as JSON values."""
        return {
            "position": asdict(self.position),
            "first": {kind: _named(FIRST[kind], own) for kind, own in self.first.items()},
            "final": {kind: _named(FINAL[kind], own) for kind, own in self.final.items()},
            "group": _named(_GROUP, self.group),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Coefficients:
        """Read what `to_json` gave; raises KeyError, TypeError or ValueError for anything else."""
        position = {name: float(value) for name, value in values["position"].items()}
        first = {kind: _listed(names, values["first"][kind]) for kind, names in FIRST.items()}
        final = {kind: _listed(names, values["final"][kind]) for kind, names in FINAL.items()}
        coefficients = cls(
            PositionModel(**position), first, final, _listed(_GROUP, values["group"])
        )
        numbers = [*position.values(), *coefficients.group]
        for own in (*first.values(), *final.values()):
            numbers += own
        if not np.isfinite(numbers).all():
            raise ValueError("expected finite coefficients")
        return coefficients


@dataclass(frozen=True, slots=True, eq=False)
class PairModel(Coefficients):
    """The coefficients for one set of weights, and what was learned of their vectors."""

    looks: LooksModel

    @classmethod
    def of(cls, looks: LooksModel, learned: Coefficients) -> Self:
        """Put both together."""
        return cls(learned.position, learned.first, learned.final, learned.group, looks)


def _named(names: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    return dict(zip(("intercept", *names), values, strict=True))


def _listed(names: Sequence[str], values: Mapping[str, float]) -> list[float]:
    return [float(values[name]) for name in ("intercept", *names)]


@dataclass(frozen=True, slots=True, eq=False)
class GalleryPairs:
    """The similar pairs of some videos: no veto, above the similarity threshold, none twice.

    `pairs` (p, 2) number the tracklets of all videos, one after the other; `video` (n,) says
    whose each is. `kind` (p,): of `FIRST`. `features` by name, (p,) each.
    """

    pairs: Int64Array
    video: Int64Array
    kind: npt.NDArray[np.str_]
    features: dict[str, Float64Array]


def measure(videos: Sequence[Video], pairs: Int64Array, model: PositionModel) -> GalleryPairs:
    """Measure pairs (p, 2) of tracklets, numbered through all videos in order."""
    sizes = [len(video) for video in videos]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    number = np.repeat(np.arange(len(videos)), sizes)
    ordered = np.sort(pairs, axis=1)
    of = number[ordered]  # (p, 2)
    features: dict[str, Float64Array] = {}
    for first, second in np.unique(of, axis=0).tolist():
        rows = np.flatnonzero((of == (first, second)).all(1))
        local = ordered[rows] - starts[[first, second]]
        if first == second:
            found = features_within(videos[first], local, model)
        else:
            found = features_across(videos[first], videos[second], local)
        for name, values in found.items():
            features.setdefault(name, np.zeros(len(pairs)))[rows] = values
    moves = features.get("moves", np.zeros(len(pairs))) > 0
    kind = np.where(of[:, 0] != of[:, 1], ACROSS, np.where(moves, MOVING, STILL))
    return GalleryPairs(ordered, number, kind, features)


def first_log_odds(measured: GalleryPairs, model: PairModel) -> Float64Array:
    """Log-odds (p,) by the two tracklets alone."""
    return _by_kind(measured, FIRST, model.first)


def add_context(measured: GalleryPairs, first: Float64Array, vetoes: Int64Array) -> None:
    """Add what the pairs that share a tracklet say; `vetoes` (v, 2) number all tracklets."""
    pairs = measured.pairs
    video = measured.video
    measured.features["first"] = first
    measured.features["competition"] = competition(pairs, first, video)
    measured.features["support"] = support(pairs, first, video)
    measured.features["log_duplicates"] = log_duplicates(pairs, first, video)
    measured.features["joined"] = joined_within(measured, first, vetoes)


def final_log_odds(measured: GalleryPairs, model: PairModel) -> Float64Array:
    """Log-odds (p,) with the context."""
    return _by_kind(measured, FINAL, model.final)


def _by_kind(
    measured: GalleryPairs,
    names: Mapping[str, Sequence[str]],
    coefficients: Mapping[str, Sequence[float]],
) -> Float64Array:
    log_odds = np.zeros(len(measured.pairs))
    for kind in coefficients:
        own = measured.kind == kind
        if own.any():
            features = {name: measured.features[name][own] for name in names[kind]}
            log_odds[own] = log_odds_of(features, names[kind], coefficients[kind])
    return log_odds


def log_duplicates(pairs: Int64Array, log_odds: Float64Array, video: Int64Array) -> Float64Array:
    """Log of how many duplicates a tracklet has on average in the two videos of a pair, (p,)."""
    of = np.sort(video[pairs], axis=1)  # (p, 2)
    which, place = np.unique(of, axis=0, return_inverse=True)
    place = place.ravel()
    expected = np.bincount(place, sigmoid(log_odds), len(which))
    size = np.bincount(video, minlength=int(video.max(initial=0)) + 1)
    tracklets = size[which].mean(1)
    tracklets = np.where(which[:, 0] == which[:, 1], tracklets / 2, tracklets)
    rate = (expected + _PRIOR_DUPLICATES) / (tracklets + _PRIOR_TRACKLETS)
    logs: Float64Array = np.log(rate)[place]
    return logs


def joined_within(
    measured: GalleryPairs, log_odds: Float64Array, vetoes: Int64Array
) -> Float64Array:
    """At which log-odds a clustering of its video joins each pair (p,); of `across` -3."""
    joined = np.full(len(log_odds), JOIN_FLOOR)
    video = measured.video
    for i in np.unique(video[measured.pairs[measured.kind != ACROSS]]):
        own = (video[measured.pairs] == i).all(1)
        forbidden = vetoes[(video[vetoes] == i).all(1)]
        found = cluster(
            measured.pairs[own],
            log_odds[own],
            forbidden,
            len(video),
            stop=JOIN_STOP,
            floor=JOIN_FLOOR,
        )
        joined[own] = np.clip(found.merged_at, JOIN_FLOOR, LARGEST_JOINED)
    return joined


def group_tracklets(
    pairs: Int64Array, log_odds: Float64Array, vetoes: Int64Array, count: int
) -> Clustering:
    """Decide all pairs together, by their final log-odds."""
    return cluster(pairs, log_odds, vetoes, count, stop=GROUP_STOP, floor=JOIN_FLOOR)


def group_features(clustering: Clustering, members: Sequence[Int64Array]) -> Float64Array:
    """What says that a group is one person (g, 2): its weakest join, and its log size."""
    weakest = [clustering.weakest[own[0]] for own in members]
    sizes = [len(own) for own in members]
    return np.stack([np.array(weakest), np.log(sizes)], axis=1).reshape(-1, 2)


def group_probabilities(
    clustering: Clustering, members: Sequence[Int64Array], model: PairModel
) -> Float64Array:
    """The probability (g,) that all tracklets of each group are one person."""
    intercept, *weights = model.group
    return sigmoid(group_features(clustering, members) @ np.array(weights) + intercept)


def sigmoid(log_odds: Float64Array) -> Float64Array:
    """Probabilities of log-odds."""
    chances: Float64Array = 1 / (1 + np.exp(-np.clip(log_odds, -_LARGEST_LOGIT, _LARGEST_LOGIT)))
    return chances
