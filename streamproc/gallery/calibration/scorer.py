"""How likely a pair is one person: a curve for each set of weights, and what a gallery says of itself.

When a person arrives, the probability follows from the similarity alone, so it is the same whatever
came before. When a video closes, all similar pairs of its gallery are judged again with labels that
cost nothing:

- The mean vector of each video is subtracted ("centring"), since each camera has its own, shrunk
  towards the gallery's, and that towards the mean of the curve's training set.
- What differs *within* a track is no difference between persons: the covariance of the means of a
  track's consecutive parts is divided out (WCCN: Hatch, Kajarekar and Stolcke, Interspeech 2006),
  shrunk towards a covariance learned once for these weights from persons seen by several cameras,
  and towards a multiple of the identity (Ledoit and Wolf 2004). Of two videos the learned one says
  most: no track shows what changes from camera to camera (`whitening.py`).
- People seen apart in the same frames are known to differ: the fewer persons are left to be
  somebody's double, the likelier each of them is.
- A mean of few crops is noisier, so the same person's tracks are less alike then, and likeness says
  less: the more crops, the steeper the curve.
- In one video, who is found again is about as large as when last seen (`evidence.py`).
- Who is like others too is less likely this one: whatever speaks for a rival pair speaks against
  the pair, unless the three may be one person (`rivals.py`). Scores are made comparable by those of
  others as in cohort normalisation (s-norm: Kenny, Odyssey 2010; adaptive: Matejka et al.,
  Interspeech 2017), here by the odds of the rivals themselves.

- Where many have a double each similar pair is likelier one: how many doubles a person has on
  average is estimated from the gallery's own pairs (prior shift: Saerens, Latinne and Decaestecker,
  Neural Computation 2002).

Logistic regressions (Platt 1999), fitted on identities that took no part in the above, turn that
into a probability: one by the two persons alone gives the odds of rivals and the number of doubles,
a second one what is said. Its log-odds are bent last, since high and low ones want slopes of their
own (beta calibration: Kull, Silva Filho and Flach, 2017). Both steps depend on the persons in the
gallery alone, not on their order: keys are sorted before anything is summed up.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from streamproc.gallery.calibration.competitors import rivalry
from streamproc.gallery.calibration.curve import ALONE, bend, sigmoid
from streamproc.gallery.calibration.sizes import size_evidence
from streamproc.gallery.calibration.whitening import Looks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from streamproc.events import PersonEmbedding
    from streamproc.gallery.calibration.curve import Curve

    Float64Array = npt.NDArray[np.float64]

MOST_CROPS = 8
"""Curves are fitted on means of 1 to so many crops; more count as so many."""
DOUBLES, DOUBLES_PERSONS = 1.0, 3.0
"""With so many doubles among so many persons every gallery is taken to begin: of a small one its own say little."""
_PROBABILITY_DIGITS = 2  # more would promise too much, and say "updated" for nothing

Band = Literal["likely", "uncertain"]


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is thought of a pair: the probability that it is one person, rounded to what it is worth."""

    probability: float
    band: Band
    calibration_id: str


class GalleryScorer:
    """The persons of one gallery and one set of weights, seen together; nothing depends on their order.

    `persons` by key; `index` says which row of `features` is whose.
    """

    def __init__(self, curve: Curve, persons: Mapping[str, PersonEmbedding]) -> None:
        self._curve = curve
        self._persons = [persons[key] for key in sorted(persons)]
        self.index = {person.person_key: i for i, person in enumerate(self._persons)}
        self._looks = Looks(curve, self._persons)
        self._log_others = self._count_others()
        self._log_crops = np.log([_crops_embedded(person) for person in self._persons])

    def _count_others(self) -> Float64Array:
        """Log of how many of the others each person may be: all but those seen beside them."""
        by_id = {(person.video_id, person.person_id): i for i, person in enumerate(self._persons)}
        seen = {
            (min(i, j), max(i, j))
            for i, person in enumerate(self._persons)
            for other in person.seen_with
            if (j := by_id.get((person.video_id, other))) is not None and j != i
        }
        others = np.full(len(self._persons), len(self._persons) - 1)
        pairs = np.array(sorted(seen), np.int64).reshape(-1, 2)
        np.subtract.at(others, pairs.ravel(), 1)
        logs: Float64Array = np.log(np.maximum(others, 1))
        return logs

    def alone(self, pairs: Sequence[tuple[str, str]]) -> Float64Array:
        """Features (p, 6) of pairs of keys, of the two persons alone.

        The whitened cosine of two in one video, that of two in different ones (the other is 0),
        either times the last feature, whether they are in one video, and the mean logarithms of how
        many others they may be and of the crops embedded.
        """
        if not pairs:
            return np.zeros((0, ALONE))
        place = self.places(pairs)
        cosines, one_video = (
            self._looks.cosines(place),
            self._looks.in_one_video(place).astype(np.float64),
        )
        others, crops = (log[place].mean(1) for log in (self._log_others, self._log_crops))
        likeness = (cosines * one_video, cosines * (1 - one_video), cosines * crops)
        return np.stack([*likeness, one_video, others, crops], axis=1)

    def features(self, pairs: Sequence[tuple[str, str]]) -> Float64Array:
        """Features (p, 9) of pairs of keys.

        Those of `alone`, how strong each one's rivals are among the others, the logarithm of how
        many doubles a person has on average (so `pairs` must be all that are similar and have no
        veto), and what their sizes say.
        """
        places = self.places(pairs)
        among = among_others(self.alone(pairs), places, self._curve.alone, len(self._persons))
        return np.column_stack([among, size_evidence(self._persons, places)])

    def places(self, pairs: Sequence[tuple[str, str]]) -> npt.NDArray[np.int64]:
        """Which persons (p, 2) the pairs of keys are."""
        return np.array([[self.index[a], self.index[b]] for a, b in pairs], np.int64).reshape(-1, 2)

    def probabilities(self, pairs: Sequence[tuple[str, str]]) -> Float64Array:
        """Chance (p,) that each pair of keys is one person.

        `pairs` must be all that are similar and have no veto.
        """
        intercept, *weights = self._curve.closed
        return sigmoid(bend(self.features(pairs) @ np.array(weights) + intercept, self._curve.bent))


def among_others(
    alone: Float64Array, places: npt.NDArray[np.int64], coefficients: Sequence[float], persons: int
) -> Float64Array:
    """Features (p, 8) from those (p, 6) of the two persons alone: what the gallery's other pairs say is added.

    `coefficients` are a curve's `alone`, `persons` is how many there are.
    """
    intercept, *weights = coefficients
    log_odds = alone @ np.array(weights) + intercept
    doubles = (2 * sigmoid(log_odds).sum() + DOUBLES) / (persons + DOUBLES_PERSONS)
    return np.column_stack([alone, rivalry(places, log_odds), np.full(len(alone), np.log(doubles))])


def _crops_embedded(person: PersonEmbedding) -> int:
    """Of how many crops the vector is the mean: those that the event names, where it names any."""
    # `crop_count` counts what was cut for the animation, up to 50; the network saw `crops` only.
    return min(max(len(person.crops) or person.crop_count, 1), MOST_CROPS)


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """The curves by `weights_sha256`, and what a probability must be. Used by `apply`.

    Pairs below `min_probability` are held back; from `likely_probability` on they are in the band
    `likely`. Weights without a curve are not judged.
    """

    curves: Mapping[str, Curve] = field(default_factory=dict)
    min_probability: float = 0.2
    likely_probability: float = 0.9

    def at_arrival(self, weights_sha256: str, similarity: float) -> Judgement | None:
        """Judge a pair by its similarity alone."""
        curve = self.curves.get(weights_sha256)
        if curve is None:
            return None
        intercept, slope = curve.arrival
        return self._judgement(curve, float(sigmoid(np.array([intercept + slope * similarity]))[0]))

    def at_close(
        self, persons: Mapping[str, PersonEmbedding], pairs: Sequence[tuple[str, str]]
    ) -> dict[tuple[str, str], Judgement]:
        """Judge pairs of keys by all `persons` of their gallery; weights without a curve are left out."""
        judged: dict[tuple[str, str], Judgement] = {}
        weights_of = {key: person.model.weights_sha256 for key, person in persons.items()}
        for weights in sorted({weights_of[a] for a, _ in pairs} & self.curves.keys()):
            curve = self.curves[weights]
            own = [pair for pair in pairs if weights_of[pair[0]] == weights]
            group = {key: person for key, person in persons.items() if weights_of[key] == weights}
            if any(person.vector.dim != len(curve.mean) for person in group.values()):
                continue  # somebody names these weights wrongly: their first judgement stands
            scorer = GalleryScorer(curve, group)
            for pair, chance in zip(own, scorer.probabilities(own).tolist(), strict=True):
                judged[pair] = self._judgement(curve, chance)
        return judged

    def holds_back(self, judgement: Judgement | None) -> bool:
        """Whether a pair is not likely enough to be shown to anybody."""
        return judgement is not None and judgement.probability < self.min_probability

    def _judgement(self, curve: Curve, chance: float) -> Judgement:
        probability = round(chance, _PROBABILITY_DIGITS)
        band: Band = "likely" if probability >= self.likely_probability else "uncertain"
        return Judgement(probability, band, curve.calibration_id)
