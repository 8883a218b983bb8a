"""How likely a pair is one person, by a curve for its weights and by what its gallery tells.

When a tracklet comes, the probability of its pairs follows from their similarity alone, so it does
not depend on what came before. When a video closes, its pairs are judged again: by the model in
`gallery.linking` where the curve has its coefficients, as those of the package have; else, as by
the curves that `streamproc calibrate` makes, all similar pairs of the gallery are, by features that
need no labels:

- The whitened cosine (`whitening`). From each vector the mean of its video is subtracted, since
  each camera has its own; that mean is shrunk towards the gallery's, and the gallery's towards the
  mean of the curve's training set. Then the covariance within persons is divided out (WCCN: Hatch,
  Kajarekar and Stolcke, Interspeech 2006). It is estimated from the means of consecutive parts of
  each track, shrunk towards a covariance that was learned once for these weights from persons seen
  by several cameras, and towards a multiple of the identity (Ledoit and Wolf 2004). For pairs of
  two videos the learned one counts most: what changes from camera to camera shows in no track.
- How many tracklets are left to be the same person: those seen in the same frames in different
  places are not. The fewer are left, the likelier each of them.
- How many crops the two vectors are means of. A mean of few crops is noisy, so its cosines say
  less: the more crops, the steeper the curve.
- The strength of competing pairs (`competitors`): a tracklet that is similar to others as well is
  less likely the same as this one, unless the three are one person. This makes scores comparable,
  as cohort normalisation does in speaker recognition (s-norm: Kenny, Odyssey 2010; adaptive:
  Matejka et al., Interspeech 2017), here by the odds of the competitors themselves.
- The duplicate rate of the gallery: where many persons have several tracklets, each similar pair is
  likelier one person (prior shift: Saerens, Latinne and Decaestecker, Neural Computation 2002).
- The heights of the boxes (`sizes`): a person found again in one video is about as tall as before.

Logistic regressions (Platt 1999) make a probability of these. They were fitted on identities that
took no part in the means and covariances. A first one, on the features of the two tracklets alone,
gives the odds that competitors and duplicate rate are computed from. A second one, on all features,
gives the log-odds that are published, after a beta calibration (Kull, Silva Filho and Flach 2017),
which gives low and high log-odds slopes of their own.

All of this depends on the tracklets of the gallery alone, not on their order: keys are sorted
before anything is summed up.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from streamproc.gallery.calibration.competitors import competitor_strength
from streamproc.gallery.calibration.curve import PAIR_FEATURES, beta_calibrate, sigmoid
from streamproc.gallery.calibration.sizes import size_log_odds
from streamproc.gallery.calibration.whitening import WhitenedSimilarity
from streamproc.gallery.pairs import Judgement

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from streamproc.events import PersonEmbedding
    from streamproc.gallery.calibration.curve import Curve
    from streamproc.gallery.pairs import Band

    Float64Array = npt.NDArray[np.float64]
    Int64Array = npt.NDArray[np.int64]
    BoolArray = npt.NDArray[np.bool_]

MOST_CROPS = 8
"""More crops count as so many: curves are fitted on means of 1 to 8 crops."""
PRIOR_DUPLICATES = 1.0
PRIOR_TRACKLETS = 3.0
"""The duplicate rate starts from so many duplicates among so many tracklets, since a small gallery
tells little of its own rate."""
_PROBABILITY_DIGITS = 2  # more would promise too much, and cause "updated" events for nothing


class GalleryScorer:
    """Computes the features and probabilities of pairs of one gallery and one set of weights.

    `tracklets` are all of the gallery, by key; a pair is two keys.
    """

    def __init__(self, curve: Curve, tracklets: Mapping[str, PersonEmbedding]) -> None:
        self._curve = curve
        self._tracklets = [tracklets[key] for key in sorted(tracklets)]
        self._position = {
            tracklet.person_key: position for position, tracklet in enumerate(self._tracklets)
        }
        self._whitened = WhitenedSimilarity(curve, self._tracklets)
        self._log_others = self._count_others()
        self._log_crops = np.log([crops_embedded(tracklet) for tracklet in self._tracklets])

    def _count_others(self) -> Float64Array:
        """Return the log (n,) of how many others each tracklet may be: not those seen beside it."""
        count = len(self._tracklets)
        by_id = {
            (tracklet.video_id, tracklet.person_id): position
            for position, tracklet in enumerate(self._tracklets)
            if tracklet.part is None
        }
        seen_together: set[tuple[int, int]] = set()
        for position, tracklet in enumerate(self._tracklets):
            if tracklet.part is None:
                named = (by_id.get((tracklet.video_id, one)) for one in tracklet.seen_with)
            else:
                named = (self._position.get(key) for key in tracklet.keys_seen_apart)
            for other in named:
                if other is not None and other != position:
                    seen_together.add((min(position, other), max(position, other)))
        pairs = np.array(sorted(seen_together), np.int64).reshape(-1, 2)
        others = np.full(count, count - 1)
        np.subtract.at(others, pairs.ravel(), 1)
        logs: Float64Array = np.log(np.maximum(others, 1))
        return logs

    def positions(self, pairs: Sequence[tuple[str, str]]) -> Int64Array:
        """Return pairs of keys as positions (p, 2) among the sorted keys."""
        found = [(self._position[a], self._position[b]) for a, b in pairs]
        return np.array(found, np.int64).reshape(-1, 2)

    def pair_features(self, pairs: Sequence[tuple[str, str]]) -> Float64Array:
        """Return the features (p, 6) of pairs that follow from their two tracklets alone.

        In order: the whitened cosine of pairs in one video (else 0), that of pairs of two videos
        (else 0), the whitened cosine times the last feature, whether the pair is in one video, and
        the mean over its two tracklets of the logarithms of how many others they may be, and of
        the number of embedded crops.
        """
        if not pairs:
            return np.zeros((0, PAIR_FEATURES))
        positions = self.positions(pairs)
        cosines = self._whitened.cosines(positions)
        in_one_video = self._whitened.in_one_video(positions).astype(np.float64)
        others = self._log_others[positions].mean(1)
        crops = self._log_crops[positions].mean(1)
        columns = [
            cosines * in_one_video,
            cosines * (1 - in_one_video),
            cosines * crops,
            in_one_video,
            others,
            crops,
        ]
        return np.stack(columns, axis=1)

    def features(self, pairs: Sequence[tuple[str, str]]) -> Float64Array:
        """Return all features (p, 9) of pairs.

        Those of `pair_features`, then the strength of the competitors, the logarithm of the
        gallery's duplicate rate, and the log-odds by heights. `pairs` must be all that are similar
        and have no veto, as these tell of each other.
        """
        positions = self.positions(pairs)
        features = with_gallery_features(
            self.pair_features(pairs),
            positions,
            self._curve.pair_coefficients,
            len(self._tracklets),
        )
        return np.column_stack([features, size_log_odds(self._tracklets, positions)])

    def probabilities(self, pairs: Sequence[tuple[str, str]]) -> Float64Array:
        """Return the probability (p,) that each pair is one person; `pairs` as for `features`."""
        intercept, *weights = self._curve.closing_coefficients
        log_odds = self.features(pairs) @ np.array(weights) + intercept
        return sigmoid(beta_calibrate(log_odds, self._curve.beta_coefficients))


def with_gallery_features(
    pair_features: Float64Array,
    positions: Int64Array,
    pair_coefficients: Sequence[float],
    tracklet_count: int,
) -> Float64Array:
    """Add to `pair_features` (p, 6) the strength of competitors and the log duplicate rate: (p, 8).

    `positions` (p, 2) say which tracklets the pairs are, of a gallery of `tracklet_count`.
    """
    intercept, *weights = pair_coefficients
    log_odds = pair_features @ np.array(weights) + intercept
    # Each pair that is one person makes both of its tracklets duplicates.
    duplicates = 2 * sigmoid(log_odds).sum() + PRIOR_DUPLICATES
    duplicate_rate = duplicates / (tracklet_count + PRIOR_TRACKLETS)
    log_rates = np.full(len(pair_features), np.log(duplicate_rate))
    return np.column_stack([pair_features, competitor_strength(positions, log_odds), log_rates])


def crops_embedded(tracklet: PersonEmbedding) -> int:
    """Return how many crops the vector is the mean of, at most `MOST_CROPS`."""
    # `crop_count` counts what was cut for the animation, up to 50; the network saw `crops` only.
    return min(max(len(tracklet.crops) or tracklet.crop_count, 1), MOST_CROPS)


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """The curves by `weights_sha256`, and the limits on probabilities. Used by `apply`.

    Pairs below `min_probability` are suppressed; from `likely_probability` on they are in the band
    "likely". Pairs of one video that were judged by their boxes as well need more, since a tracker
    that breaks people into pieces makes many: `min_grouped_probability` where both are in one
    group, else `min_ungrouped_probability`. Weights without a curve are not judged.
    """

    curves: Mapping[str, Curve] = field(default_factory=dict)
    min_probability: float = 0.2
    likely_probability: float = 0.9
    min_grouped_probability: float = 0.6
    min_ungrouped_probability: float = 0.7

    def at_arrival(self, weights_sha256: str, similarity: float) -> Judgement | None:
        """Judge a pair by its similarity alone; None where the weights have no curve."""
        curve = self.curves.get(weights_sha256)
        if curve is None:
            return None
        intercept, slope = curve.arrival_coefficients
        log_odds = np.array([intercept + slope * similarity])
        return self.judgement(curve, float(sigmoid(log_odds)[0]))

    def at_close(
        self, tracklets: Mapping[str, PersonEmbedding], pairs: Sequence[tuple[str, str]]
    ) -> dict[tuple[str, str], Judgement]:
        """Judge pairs of keys by all `tracklets` of their gallery.

        `pairs` must be all that are similar and have no veto. Those of weights without a curve are
        left out.
        """
        weights_of = {key: item.model.weights_sha256 for key, item in tracklets.items()}
        judged: dict[tuple[str, str], Judgement] = {}
        for weights in sorted({weights_of[a] for a, _ in pairs} & self.curves.keys()):
            curve = self.curves[weights]
            group = {key: item for key, item in tracklets.items() if weights_of[key] == weights}
            if any(item.vector.dim != len(curve.mean) for item in group.values()):
                continue  # a producer names the wrong weights: the first judgement stays
            own = [pair for pair in pairs if weights_of[pair[0]] == weights]
            probabilities = GalleryScorer(curve, group).probabilities(own).tolist()
            for pair, probability in zip(own, probabilities, strict=True):
                judged[pair] = self.judgement(curve, probability)
        return judged

    def weights_without_pair_model(self) -> set[str]:
        """Return the weights whose curve says nothing of motion."""
        return {name for name, curve in self.curves.items() if curve.pair_model is None}

    def without_pair_model(
        self, tracklets: Mapping[str, PersonEmbedding]
    ) -> dict[str, PersonEmbedding]:
        """Return the tracklets whose weights have a curve that says nothing of motion."""
        weights = self.weights_without_pair_model()
        return {key: one for key, one in tracklets.items() if one.model.weights_sha256 in weights}

    def suppresses(self, judgement: Judgement | None) -> bool:
        """Return whether a pair is not likely enough to be announced."""
        return judgement is not None and judgement.probability < self.min_probability

    def least_probabilities(self, grouped: BoolArray, moves: BoolArray) -> Float64Array:
        """Return what pairs (p,) need at least: those `grouped`, and those judged by boxes."""
        if not self.min_probability:  # all are asked for
            return np.zeros(len(moves))
        by_boxes = np.where(grouped, self.min_grouped_probability, self.min_ungrouped_probability)
        return np.where(moves, np.maximum(by_boxes, self.min_probability), self.min_probability)

    def judgement(self, curve: Curve, probability: float) -> Judgement:
        """Return what a probability says."""
        rounded = round(probability, _PROBABILITY_DIGITS)
        band: Band = "likely" if rounded >= self.likely_probability else "uncertain"
        return Judgement(rounded, band, curve.calibration_id)
