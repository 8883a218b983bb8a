"""Fitting a curve on pairs whose truth is known.

The truth comes from the identities of a data set (`models/calibrate.py`) or from a user
(`streamproc calibrate`). A user's few pairs move the package's curve only as far as they outweigh
it; weights without a curve start from nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING

import numpy as np

from streamproc.gallery.calibration.curve import (
    FEATURES,
    NO_BETA,
    SIZE_COEFFICIENT,
    Curve,
    beta_calibrate,
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

KNOWN_CURVE_PAIRS = 10.0
"""A known curve counts as much as so many pairs: 10 pairs of even odds move a coefficient a fifth
of the way, 1,000 nearly all of it."""
NO_CURVE_PAIRS = 1.0
"""The same for the neutral curve of weights of which nothing is known."""
SIMILARITY_SCALE = 0.05
"""The usual standard deviation of similarities, the unit of the ridge. That of a user's own pairs
would not do: a feature that hardly varies among them would get any slope."""
FEATURE_SCALES = (0.15, 0.15, 0.3, 0.5, 0.5, 0.5, 1.5, 0.5, 0.5)
"""The same for each of the features."""
COSINE_FEATURES = 3
"""The first features are whitened cosines, whose coefficients are never negative."""
FOLDS = 10
_WITHIN_TRACK_TRACE = 0.1  # as in the package's curves, for tracklets without parts
# Roughly those of the package's curves.
_PAIR_COEFFICIENTS = (3.0, 10.0, 12.0, 3.0, -1.3, -1.7, -2.7)
_LIGHT_RIDGE = (1e-9, 1e-3)
_ROWS_AT_ONCE = 1024  # of a table of similarities
_MOST_STEPS = 100
_SMALLEST_STEP = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class KnownGallery:
    """The tracklets of a gallery by key, and the identity of those whose person is known."""

    tracklets: Mapping[str, PersonEmbedding]
    identity: Mapping[str, str]

    def similar_pairs(self, least: float) -> tuple[list[tuple[str, str]], Float64Array, BoolArray]:
        """Return the pairs of known tracklets above `least` that have no veto.

        They come with their similarities (p,), and whether they are one person (p,).
        """
        known = {key: self.tracklets[key] for key in self.identity}
        pairs, cosines = similar_pairs(known, least)
        same = np.array([self.identity[a] == self.identity[b] for a, b in pairs], bool)
        return pairs, cosines, same


def similar_pairs(
    tracklets: Mapping[str, PersonEmbedding], least: float
) -> tuple[list[tuple[str, str]], Float64Array]:
    """Return the pairs of keys above `least` with no veto, sorted, and their similarities (p,)."""
    keys = sorted(tracklets)
    vectors = np.zeros((0, 1))
    if keys:
        vectors = np.stack([tracklets[key].vector.numpy() for key in keys])
    pairs = list[tuple[str, str]]()
    for start in range(0, len(keys), _ROWS_AT_ONCE):
        above = vectors[start : start + _ROWS_AT_ONCE] @ vectors.T > least
        rows, columns = np.nonzero(np.triu(above, start + 1))
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            a, b = keys[start + row], keys[column]
            if not has_veto(tracklets[a], tracklets[b]):
                pairs.append((a, b))
    cosines = [pair_similarity(tracklets[a], tracklets[b]) for a, b in pairs]
    return pairs, np.array(cosines)


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Pairs to fit on: similarity (p,), features (p, f), and whether they are one person (p,).

    `people` (p, 2) int64 are numbers of the persons that the two tracklets are.
    """

    similarity: Float64Array
    features: Float64Array
    same: BoolArray
    people: Int64Array

    def __len__(self) -> int:
        return len(self.same)

    def select(self, chosen: BoolArray) -> Examples:
        """Return those where `chosen` (p,) is true."""
        return Examples(
            self.similarity[chosen], self.features[chosen], self.same[chosen], self.people[chosen]
        )


def logistic(
    features: Float64Array,
    same: npt.NDArray[np.generic],
    weights: Float64Array,
    *,
    prior: Sequence[float] | None = None,
    ridge: tuple[float, float] = _LIGHT_RIDGE,
    scale: Sequence[float] | None = None,
    nonnegative: int = 1,
    beta: tuple[float, float, float] = NO_BETA,
) -> list[float]:
    """Fit a logistic regression of `same` (p,) on `features` (p, f), by Newton's method.

    Returns the intercept and the coefficients (1 + f). `weights` (p,) are those of the pairs.
    `ridge` pulls the intercept and each coefficient towards `prior` (zero if None), with these
    shares of the total weight; there, features count from their mean, in units of `scale` (their
    standard deviations if None). The first `nonnegative` coefficients are never negative: more
    similar pairs are not less likely one person. `beta` is applied to the log-odds before they are
    compared with the truth.
    """
    count = features.shape[1]
    start = np.zeros(count + 1) if prior is None else np.asarray(prior, np.float64)
    if not weights.sum() > 0:
        return [float(value) for value in start]
    units = features.std(0) + 1e-9 if scale is None else np.asarray(scale, np.float64)
    kept = np.arange(count)
    while True:
        # A coefficient that would be negative is zero in the best fit, so its feature is left out
        # and the others are fitted again.
        left_out = np.setdiff1d(np.arange(count), kept)
        intercept = start[0] + features[:, left_out].mean(0) @ start[1 + left_out]
        fitted = _ridge_fit(
            features[:, kept],
            same.astype(np.float64),
            weights,
            np.r_[intercept, start[1 + kept]],
            units[kept],
            ridge,
            beta,
        )
        negative = (fitted[1:] < 0) & (kept < nonnegative)
        if not negative.any():
            break
        kept = kept[~negative]
    coefficients = np.zeros(count + 1)
    coefficients[np.r_[0, 1 + kept]] = fitted
    return [float(value) for value in coefficients]


def _ridge_fit(
    features: Float64Array,
    same: Float64Array,
    weights: Float64Array,
    prior: Float64Array,
    units: Float64Array,
    ridge: tuple[float, float],
    beta: tuple[float, float, float],
) -> Float64Array:
    """Return the intercept and coefficients (1 + f) that `logistic` describes, of any sign.

    What is fitted is the difference to `prior`, for inputs of mean 0 in units of `units`.
    """
    mean = features.mean(0)
    shares = weights / weights.sum()
    inputs = np.c_[np.ones(len(features)), (features - mean) / units]
    by_prior = features @ prior[1:] + prior[0]
    penalty = np.array([ridge[0]] + [ridge[1]] * features.shape[1])
    _, low, high = beta

    def cost(change: Float64Array) -> float:
        log_odds = beta_calibrate(by_prior + inputs @ change, beta)
        loss = shares @ (np.logaddexp(0, log_odds) - same * log_odds)
        return float(loss + 0.5 * penalty @ change**2)

    change = np.zeros(inputs.shape[1])
    for _ in range(_MOST_STEPS):
        log_odds = by_prior + inputs @ change
        probability = sigmoid(beta_calibrate(log_odds, beta))
        slope = low + (high - low) * sigmoid(log_odds)  # of the beta calibration
        gradient = inputs.T @ (shares * (probability - same) * slope) + penalty * change
        variance = shares * probability * (1 - probability) * slope**2
        curvature = (inputs * variance[:, None]).T @ inputs + np.diag(penalty)
        step = np.linalg.solve(curvature, gradient)
        before = cost(change)
        while cost(change - step) > before and np.abs(step).max() > _SMALLEST_STEP:
            step = step / 2  # far from the minimum Newton's step may overshoot
        change = change - step
        if np.abs(step).max() < _SMALLEST_STEP:
            break
    slopes = change[1:] / units
    coefficients: Float64Array = prior + np.r_[change[0] - slopes @ mean, slopes]
    return coefficients


def neutral_curve(tracklets: Sequence[PersonEmbedding]) -> Curve:
    """Return a curve for weights of which nothing is known but these tracklets.

    Its mean is theirs, and all directions are alike. The pair coefficients, which competitors and
    duplicate rate are computed with, are about those of the package's curves.
    """
    vectors = np.stack([tracklet.vector.numpy() for tracklet in tracklets])
    dim = vectors.shape[1]
    residuals, degrees = within_tracks(tracklets, dim)
    within_track_trace = _WITHIN_TRACK_TRACE
    if degrees:
        within_track_trace = max(float((residuals**2).sum() / degrees), 1e-6)
    return Curve(
        mean=vectors.mean(0),
        basis=np.zeros((0, dim), np.float32),
        basis_variances=np.zeros(0, np.float32),
        rest_variance=1 / dim,
        within_track_trace=within_track_trace,
        arrival_coefficients=(0.0, 0.0),
        pair_coefficients=_PAIR_COEFFICIENTS,
        closing_coefficients=(*(0.0,) * FEATURES, SIZE_COEFFICIENT),
        beta_coefficients=NO_BETA,
    )


def fit_beta(
    log_odds: Float64Array, same: npt.NDArray[np.generic], weights: Float64Array
) -> tuple[float, float, float]:
    """Return the coefficients of `beta_calibrate` that fit log-odds (p,) to the truth (p,) best."""
    sides = [-np.logaddexp(0, -log_odds), np.logaddexp(0, log_odds)]
    shift, low, high = logistic(np.stack(sides, axis=1), same, weights, nonnegative=2)
    return shift, low, high


def with_coefficients(curve: Curve, arrival: Sequence[float], closing: Sequence[float]) -> Curve:
    """Return the curve with other coefficients, which judge pairs in place of its pair model."""
    intercept, slope = arrival
    return replace(
        curve,
        arrival_coefficients=(intercept, slope),
        closing_coefficients=tuple(closing),
        linking=None,
    )


def refit(curve: Curve, examples: Examples, *, prior_pairs: float) -> Curve:
    """Fit a curve on examples, pulled towards `curve`, which counts as much as `prior_pairs` pairs.

    The pair coefficients stay, since the features were computed with them, and so do the beta
    coefficients.
    """
    ridge = prior_pairs / max(len(examples), 1)
    weights = np.ones(len(examples))
    arrival = logistic(
        examples.similarity[:, None],
        examples.same,
        weights,
        prior=curve.arrival_coefficients,
        ridge=(ridge, ridge),
        scale=(SIMILARITY_SCALE,),
    )
    closing = logistic(
        examples.features,
        examples.same,
        weights,
        prior=curve.closing_coefficients,
        ridge=(ridge, ridge),
        scale=FEATURE_SCALES,
        nonnegative=COSINE_FEATURES,
        beta=curve.beta_coefficients,
    )
    return with_coefficients(curve, arrival, closing)


def predict(curve: Curve, examples: Examples) -> tuple[Float64Array, Float64Array]:
    """Return the probability of each pair (p,): at arrival, and when its gallery is closed."""
    intercept, slope = curve.arrival_coefficients
    at_arrival = sigmoid(intercept + slope * examples.similarity)
    intercept, *weights = curve.closing_coefficients
    log_odds = examples.features @ np.array(weights) + intercept
    return at_arrival, sigmoid(beta_calibrate(log_odds, curve.beta_coefficients))


def cross_validated(
    curve: Curve, examples: Examples, *, prior_pairs: float, rng: np.random.Generator
) -> tuple[Float64Array, Float64Array]:
    """Predict each pair as `predict` does, by a curve fitted without either of its two persons."""
    fold = _folds(examples, rng)[examples.people]  # (p, 2)
    at_arrival = np.zeros(len(examples))
    at_close = np.zeros(len(examples))
    for one, other in combinations_with_replacement(range(FOLDS), 2):
        asked = (np.sort(fold, 1) == (one, other)).all(1)
        if asked.any():
            others = np.logical_not(np.isin(fold, (one, other)).any(1))
            unseen = refit(curve, examples.select(others), prior_pairs=prior_pairs)
            at_arrival[asked], at_close[asked] = predict(unseen, examples.select(asked))
    return at_arrival, at_close


def _folds(examples: Examples, rng: np.random.Generator) -> Int64Array:
    """Return the fold of each person, at random.

    The persons who have a duplicate are spread evenly over all folds.
    """
    count = int(examples.people.max(initial=-1)) + 1
    order = rng.permutation(count)
    has_duplicate = np.isin(order, examples.people[examples.same])
    fold = np.zeros(count, np.int64)
    fold[np.r_[order[has_duplicate], order[~has_duplicate]]] = np.arange(count) % FOLDS
    return fold
