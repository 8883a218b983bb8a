"""Fitting a curve on pairs whose truth is known: the package's own curves, and a user's on top of them.

The truth comes from `models/calibrate.py` (identities of a data set) or from a user (`streamproc
calibrate`). A user's few pairs move the package's curve only as far as they weigh against it;
weights without a curve start from nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING

import numpy as np

from streamproc.gallery.calibration.curve import (
    FEATURES,
    SIZE_COUNTS,
    STRAIGHT,
    Curve,
    bend,
    sigmoid,
)
from streamproc.gallery.calibration.whitening import within_tracks
from streamproc.gallery.pairs import has_veto, pair_similarity

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from streamproc.events import PersonEmbedding

    Float64Array = npt.NDArray[np.float64]
    BoolArray = npt.NDArray[np.bool_]
    Int64Array = npt.NDArray[np.int64]

KNOWN_CURVE_WEIGHS = 10.0
"""Ridge in pairs: 10 of even odds move a coefficient a fifth of the way, 1,000 nearly all of it."""
NOTHING_WEIGHS = 1.0
SIMILARITY_SCALE, SCALES = 0.05, (0.15, 0.15, 0.3, 0.5, 0.5, 0.5, 1.5, 0.5, 0.5)
"""Usual spread of similarity and features.

A user's own would not do: what hardly varies there would get any slope.
"""
FOLDS = 10
COSINES = 3
"""The first features are whitened cosines, in one video, across videos, and times the crops: no weight is negative."""
_PART_TRACE = 0.1  # of the package's curves, for persons without parts
_ALONE = (3.0, 10.0, 12.0, 3.0, -1.3, -1.7, -2.7)  # of the package's curves, roughly
_LIGHT = (1e-9, 1e-3)
_ROWS_AT_ONCE = 1024  # of a table of similarities
_STEPS = 100
_SMALLEST_STEP = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class KnownGallery:
    """Persons by key, and who those are that are known."""

    persons: Mapping[str, PersonEmbedding]
    identity: Mapping[str, str]

    def similar_pairs(self, least: float) -> tuple[list[tuple[str, str]], Float64Array, BoolArray]:
        """Pairs of known keys above `least` with no veto, their similarities (p,), whether they are one person (p,)."""
        pairs, cosines = similar_pairs({key: self.persons[key] for key in self.identity}, least)
        return (
            pairs,
            cosines,
            np.array([self.identity[a] == self.identity[b] for a, b in pairs], bool),
        )


def similar_pairs(
    persons: Mapping[str, PersonEmbedding], least: float
) -> tuple[list[tuple[str, str]], Float64Array]:
    """Pairs of keys above `least` with no veto, in order, and their similarities (p,)."""
    keys = sorted(persons)
    vectors = np.stack([persons[key].vector.numpy() for key in keys]) if keys else np.zeros((0, 1))
    pairs = list[tuple[str, str]]()
    for start in range(0, len(keys), _ROWS_AT_ONCE):
        rows, columns = np.nonzero(
            np.triu(vectors[start : start + _ROWS_AT_ONCE] @ vectors.T > least, start + 1)
        )
        found = (
            (keys[start + i], keys[j]) for i, j in zip(rows.tolist(), columns.tolist(), strict=True)
        )
        pairs += [(a, b) for a, b in found if not has_veto(persons[a], persons[b])]
    return pairs, np.array([pair_similarity(persons[a], persons[b]) for a, b in pairs])


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Pairs to fit on: similarity (p,), features (p, f), truth (p,), and who is who.

    `people` (p, 2) are numbers.
    """

    similarity: Float64Array
    features: Float64Array
    same: BoolArray
    people: Int64Array

    def __len__(self) -> int:
        return len(self.same)

    def of(self, chosen: BoolArray) -> Examples:
        """Some of them."""
        return Examples(
            self.similarity[chosen], self.features[chosen], self.same[chosen], self.people[chosen]
        )


def logistic(
    features: Float64Array,
    same: npt.NDArray[np.generic],
    weights: Float64Array,
    *,
    towards: Sequence[float] | None = None,
    ridge: tuple[float, float] = _LIGHT,
    scale: Sequence[float] | None = None,
    rising: int = 1,
    bent: tuple[float, float, float] = STRAIGHT,
) -> list[float]:
    """Intercept and coefficients of a logistic regression of `same` (p,) on `features` (p, f), by Newton's method.

    They are held `towards` others (naught) by a `ridge` on the intercept and on each coefficient,
    as a share of all weight, where features are counted from their mean and in units of `scale`
    (their standard deviation). The first `rising` coefficients are never negative: who looks more
    alike is not less likely one person. The log-odds are `bent` before they count.
    """
    prior = np.zeros(features.shape[1] + 1) if towards is None else np.asarray(towards, np.float64)
    if not weights.sum() > 0:
        return [float(value) for value in prior]
    units = features.std(0) + 1e-9 if scale is None else np.asarray(scale, np.float64)
    found, kept = np.zeros(len(prior)), np.arange(features.shape[1])
    while True:
        # Without those that would fall: the best with a slope of naught, the others are fitted
        # again.
        left_out = np.setdiff1d(np.arange(features.shape[1]), kept)
        start = np.r_[
            prior[0] + features[:, left_out].mean(0) @ prior[1 + left_out], prior[1 + kept]
        ]
        fitted = _held(
            features[:, kept], same.astype(np.float64), weights, start, units[kept], ridge, bent
        )
        falls = (fitted[1:] < 0) & (kept < rising)
        if not falls.any():
            break
        kept = kept[~falls]
    found[np.r_[0, 1 + kept]] = fitted
    return [float(value) for value in found]


def _held(
    features: Float64Array,
    same: Float64Array,
    weights: Float64Array,
    prior: Float64Array,
    units: Float64Array,
    ridge: tuple[float, float],
    bent: tuple[float, float, float],
) -> Float64Array:
    middle, shares = features.mean(0), weights / weights.sum()
    inputs = np.c_[np.ones(len(features)), (features - middle) / units]
    start = features @ prior[1:] + prior[0]
    held = np.array([ridge[0]] + [ridge[1]] * features.shape[1])

    def cost(beta: Float64Array) -> float:
        logits = bend(start + inputs @ beta, bent)
        return float(shares @ (np.logaddexp(0, logits) - same * logits) + 0.5 * held @ beta**2)

    beta = np.zeros(inputs.shape[1])
    for _ in range(_STEPS):
        straight = start + inputs @ beta
        chance, slope = (
            sigmoid(bend(straight, bent)),
            bent[1] + (bent[2] - bent[1]) * sigmoid(straight),
        )
        gradient = inputs.T @ (shares * (chance - same) * slope) + held * beta
        curvature = (
            inputs * (shares * chance * (1 - chance) * slope**2)[:, None]
        ).T @ inputs + np.diag(held)
        step = np.linalg.solve(curvature, gradient)
        now = cost(beta)
        while cost(beta - step) > now and np.abs(step).max() > _SMALLEST_STEP:
            step = step / 2  # far from the end Newton's step may overshoot
        beta = beta - step
        if np.abs(step).max() < _SMALLEST_STEP:
            break
    slopes = beta[1:] / units
    found: Float64Array = prior + np.r_[beta[0] - slopes @ middle, slopes]
    return found


def neutral_curve(persons: Sequence[PersonEmbedding]) -> Curve:
    """A curve for weights of which nothing is known: these persons' mean, no direction more than another.

    What it takes for the odds of rivals is about what the package's curves do.
    """
    vectors = np.stack([person.vector.numpy() for person in persons])
    dim = vectors.shape[1]
    residuals, degrees = within_tracks(persons, dim)
    return Curve(
        mean=vectors.mean(0),
        basis=np.zeros((0, dim), np.float32),
        spread=np.zeros(0, np.float32),
        rest=1 / dim,
        part_trace=max(float((residuals**2).sum() / degrees), 1e-6) if degrees else _PART_TRACE,
        arrival=(0.0, 0.0),
        alone=_ALONE,
        closed=(*(0.0,) * FEATURES, SIZE_COUNTS),
        bent=STRAIGHT,
    )


def bent_towards(
    logits: Float64Array, same: npt.NDArray[np.generic], weights: Float64Array
) -> tuple[float, float, float]:
    """How log-odds (p,) must be bent to say how often pairs are one person, with the weights (p,)."""
    sides = np.stack([-np.logaddexp(0, -logits), np.logaddexp(0, logits)], axis=1)
    shift, low, high = logistic(sides, same, weights, rising=2)
    return shift, low, high


def with_coefficients(curve: Curve, arrival: Sequence[float], closed: Sequence[float]) -> Curve:
    """The curve with other coefficients."""
    intercept, slope = arrival
    return replace(curve, arrival=(intercept, slope), closed=tuple(closed))


def refit(curve: Curve, examples: Examples, *, weighs: float) -> Curve:
    """The curve as the examples would have it, held towards what it is; that counts as `weighs` pairs.

    What it takes for the odds of rivals stays, as the features were made with it, and how log-odds
    are bent.
    """
    ridge, ones = weighs / max(len(examples), 1), np.ones(len(examples))
    return with_coefficients(
        curve,
        logistic(
            examples.similarity[:, None],
            examples.same,
            ones,
            towards=curve.arrival,
            ridge=(ridge, ridge),
            scale=(SIMILARITY_SCALE,),
        ),
        logistic(
            examples.features,
            examples.same,
            ones,
            towards=curve.closed,
            ridge=(ridge, ridge),
            scale=SCALES,
            rising=COSINES,
            bent=curve.bent,
        ),
    )


def judge(curve: Curve, examples: Examples) -> tuple[Float64Array, Float64Array]:
    """What the curve thinks of each pair (p,): at arrival, and when its gallery is closed."""
    intercept, *weights = curve.closed
    return (
        sigmoid(curve.arrival[0] + curve.arrival[1] * examples.similarity),
        sigmoid(bend(examples.features @ np.array(weights) + intercept, curve.bent)),
    )


def cross_validated(
    curve: Curve, examples: Examples, *, weighs: float, rng: np.random.Generator
) -> tuple[Float64Array, Float64Array]:
    """As `judge` by a curve that was fitted on other people: neither of a pair's two has a part in it."""
    fold = _folds(examples, rng)[examples.people]  # (p, 2)
    arrival, closed = np.zeros(len(examples)), np.zeros(len(examples))
    for one, other in combinations_with_replacement(range(FOLDS), 2):
        asked = (np.sort(fold, 1) == (one, other)).all(1)
        if asked.any():
            others = np.logical_not(np.isin(fold, (one, other)).any(1))
            unseen = refit(curve, examples.of(others), weighs=weighs)
            arrival[asked], closed[asked] = judge(unseen, examples.of(asked))
    return arrival, closed


def _folds(examples: Examples, rng: np.random.Generator) -> Int64Array:
    """The fold of each person: at random, those who have a double spread evenly over all."""
    count = int(examples.people.max(initial=-1)) + 1
    order = rng.permutation(count)
    doubled = np.isin(order, examples.people[examples.same])
    fold = np.zeros(count, np.int64)
    fold[np.r_[order[doubled], order[~doubled]]] = np.arange(count) % FOLDS
    return fold
