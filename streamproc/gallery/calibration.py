"""How likely a pair is one person: a curve for each set of weights, and what a gallery says of itself.

When a person arrives, the probability follows from the similarity alone, so it is the same whatever came before. When a
video closes, all similar pairs of its gallery are judged again with labels that cost nothing:

- The gallery's mean vector is subtracted ("centring"), shrunk towards the mean of the curve's training set.
- What differs *within* a track is no difference between persons: the covariance of the means of a track's consecutive
  parts is divided out (WCCN: Hatch, Kajarekar and Stolcke, Interspeech 2006), shrunk towards a covariance learned once
  for these weights from persons seen by several cameras, and towards a multiple of the identity (Ledoit and Wolf 2004).
- People seen apart in the same frames are known to differ: the fewer persons are left to be somebody's double, the
  likelier each of them is.
- A mean of few crops is noisier, so the same person's tracks are less alike then: of two pairs that look equally alike,
  the one with fewer crops is likelier one person.
- In one video, who is found again is about as large as when last seen (`evidence.py`).
- Who is like others too is less likely this one: whatever speaks for a rival pair speaks against the pair, unless the
  three may be one person (`rivals.py`). Scores are made comparable by those of others as in cohort normalisation
  (s-norm: Kenny, Odyssey 2010; adaptive: Matejka et al., Interspeech 2017), here by the odds of the rivals themselves.

- Where many have a double each similar pair is likelier one: how many doubles a person has on average is estimated from
  the gallery's own pairs (prior shift: Saerens, Latinne and Decaestecker, Neural Computation 2002).

Logistic regressions (Platt 1999), fitted on identities that took no part in the above, turn that into a probability:
one by the two persons alone gives the odds of rivals and the number of doubles, a second one what is said. Its log-odds
are bent last, since high and low ones want slopes of their own (beta calibration: Kull, Silva Filho and Flach, 2017).
Both steps depend on the persons in the gallery alone, not on their order: keys are sorted before anything is summed up.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import orjson

from streamproc.errors import WeightsError
from streamproc.events import hash_of
from streamproc.gallery.evidence import size_evidence
from streamproc.gallery.rivals import rivalry

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from streamproc.events import PersonEmbedding
    from streamproc.types import Float32Array

    Float64Array = npt.NDArray[np.float64]

METHOD = "centred-whitened-rivals-size-4"
"""Part of every `calibration_id`: raise it when the arithmetic below changes."""

MEAN_PERSONS = 3.0
"""The training set's mean counts as much as so many persons of the gallery."""
COVARIANCE_DEGREES = 200.0
"""The learned covariance counts as much as so many degrees of freedom (a track of 4 parts has 3)."""
SCALE_DEGREES = 10.0
IDENTITY_SHARE = 0.3
MOST_CROPS = 8
"""Curves are fitted on means of 1 to so many crops; more count as so many."""
SAMPLED_PERSONS = 2000
"""Of a larger gallery so many persons are enough for a mean and a covariance."""
ALONE = 5
"""So many features are of the two persons' looks alone; then come rivals, the gallery's doubles, and sizes."""
FEATURES = ALONE + 3
SIZE_COUNTS = 1.0
"""The last coefficient, where nobody's pairs say otherwise: what sizes say is log-odds already."""
DOUBLES, DOUBLES_PERSONS = 1.0, 3.0
"""With so many doubles among so many persons every gallery is taken to begin: of a small one its own say little."""
_PROBABILITY_DIGITS = 2  # more would promise too much, and say "updated" for nothing
_LARGEST_LOGIT = 50.0
_PAIRS_AT_ONCE = 4096  # 32 MiB of vectors

Band = Literal["likely", "uncertain"]


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is thought of a pair: the probability that it is one person, rounded to what it is worth."""

    probability: float
    band: Band
    calibration_id: str


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """What was learned once of the vectors of one set of weights. Made by `models/calibrate.py`.

    `mean` (dim,) of the training persons; their covariance within persons, of trace 1, is `spread` (k,) along the unit
    rows of `basis` (k, dim) and `rest` in every other direction; `part_trace` is the trace of the covariance within
    tracks. `arrival`: intercept, weight of the similarity. `alone`: intercept and weights of the first features of
    `GalleryScorer.features`, of two persons alone, for the odds of others; `closed`: intercept and weights of them all,
    and `bent`: intercept, slope towards 0 and slope towards 1 of what they come to (see `bend`).
    """

    mean: Float32Array
    basis: Float32Array
    spread: Float32Array
    rest: float
    part_trace: float
    arrival: tuple[float, float]
    alone: tuple[float, ...]
    closed: tuple[float, ...]
    bent: tuple[float, float, float]
    calibration_id: str = field(init=False)

    def __post_init__(self) -> None:
        k, dim = self.basis.shape
        if self.mean.shape != (dim,) or self.spread.shape != (k,):
            raise ValueError(f"expected mean ({dim},) and spread ({k},), got {self.mean.shape}, {self.spread.shape}")
        if (len(self.alone), len(self.closed)) != (1 + ALONE, 1 + FEATURES):
            raise ValueError(f"expected {1 + ALONE} and {1 + FEATURES} coefficients, got {self.alone}, {self.closed}")
        object.__setattr__(self, "calibration_id", hash_of(METHOD, self.to_json())[:16])

    def __repr__(self) -> str:
        return f"Curve({self.calibration_id}, basis {self.basis.shape})"

    def to_json(self) -> dict[str, Any]:
        """Return the curve as JSON values; arrays as base64 of little-endian float32."""
        return {
            "method": METHOD,
            "dim": len(self.mean),
            "mean": _packed(self.mean),
            "basis": _packed(self.basis),
            "spread": _packed(self.spread),
            "rest": self.rest,
            "part_trace": self.part_trace,
            "arrival": list(self.arrival),
            "alone": list(self.alone),
            "closed": list(self.closed),
            "bent": list(self.bent),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_json` gave; raises ValueError for anything else."""
        try:
            if values["method"] != METHOD:
                raise ValueError(f"expected the method {METHOD!r}, got {values['method']!r:.80}")
            dim = int(values["dim"])
            intercept, slope = map(float, values["arrival"])
            shift, low, high = map(float, values["bent"])
            curve = cls(
                mean=_unpacked(values["mean"]),
                basis=_unpacked(values["basis"]).reshape(-1, dim),
                spread=_unpacked(values["spread"]),
                rest=float(values["rest"]),
                part_trace=float(values["part_trace"]),
                arrival=(intercept, slope),
                alone=tuple(map(float, values["alone"])),
                closed=tuple(map(float, values["closed"])),
                bent=(shift, low, high),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"expected a curve, got one without or with another {error}") from error
        numbers = [curve.rest, curve.part_trace, *curve.arrival, *curve.alone, *curve.closed, *curve.bent]
        arrays = (curve.mean, curve.basis, curve.spread)
        if not (np.isfinite(numbers).all() and all(np.isfinite(a).all() for a in arrays)):
            raise ValueError("expected finite coefficients and arrays")
        if low < 0 or high < 0:
            raise ValueError(f"expected slopes that do not fall, got {low} and {high}")
        return curve


def _packed(values: Float32Array) -> str:
    return base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode()


def _unpacked(text: str) -> Float32Array:
    return np.frombuffer(base64.b64decode(text, validate=True), "<f4").astype(np.float32)


def sigmoid(logits: Float64Array) -> Float64Array:
    """Probabilities of log-odds."""
    chances: Float64Array = 1 / (1 + np.exp(-np.clip(logits, -_LARGEST_LOGIT, _LARGEST_LOGIT)))
    return chances


STRAIGHT = (0.0, 1.0, 1.0)


def bend(logits: Float64Array, bent: tuple[float, float, float]) -> Float64Array:
    """Log-odds after beta calibration: -`low` ln(1 + e^-x) + `high` ln(1 + e^x) + `shift`, x by itself if STRAIGHT."""
    shift, low, high = bent
    new: Float64Array = shift - low * np.logaddexp(0, -logits) + high * np.logaddexp(0, logits)
    return new


class GalleryScorer:
    """The persons of one gallery and one set of weights, seen together; nothing depends on their order.

    `persons` by key; `index` says which row of `features` is whose.
    """

    def __init__(self, curve: Curve, persons: Mapping[str, PersonEmbedding]) -> None:
        self._curve = curve
        self._persons = [persons[key] for key in sorted(persons)]
        self.index = {person.person_key: i for i, person in enumerate(self._persons)}
        self._mean, self._within = self._statistics()
        self._log_others = self._count_others()
        self._log_crops = np.log([_crops_embedded(person) for person in self._persons])

    def _sampled(self) -> list[PersonEmbedding]:
        if len(self._persons) <= SAMPLED_PERSONS:
            return self._persons
        # Which ones must not depend on who came first: those whose keys have the smallest hashes.
        chosen = set(sorted(self.index, key=hash_of)[:SAMPLED_PERSONS])
        return [person for person in self._persons if person.person_key in chosen]

    def _statistics(self) -> tuple[Float64Array, Float64Array]:
        """Mean (dim,), and the covariance within persons (dim, dim)."""
        curve, sample = self._curve, self._sampled()
        vectors = np.stack([person.vector.numpy() for person in sample]).astype(np.float64)
        mean = (vectors.sum(0) + MEAN_PERSONS * curve.mean) / (len(vectors) + MEAN_PERSONS)
        residuals, degrees = within_tracks(sample, len(curve.mean))
        scatter = residuals.T @ residuals  # (dim, dim)
        trace = (np.trace(scatter) + SCALE_DEGREES * curve.part_trace) / (degrees + SCALE_DEGREES)
        basis = curve.basis.astype(np.float64)
        learned = (basis.T * (curve.spread - curve.rest)) @ basis + curve.rest * np.eye(len(mean))
        within = (scatter + COVARIANCE_DEGREES * trace * learned) / (degrees + COVARIANCE_DEGREES)
        flat = np.trace(within) / len(mean) * np.eye(len(mean))
        return mean, (1 - IDENTITY_SHARE) * within + IDENTITY_SHARE * flat

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
        """Features (p, 5) of pairs of keys, of the two persons alone.

        The whitened cosine of two in one video, that of two in different ones (the other is 0), whether they are in one
        video, and the mean logarithms of how many others they may be and of the crops embedded.
        """
        if not pairs:
            return np.zeros((0, ALONE))
        place = self.places(pairs)
        involved, local = np.unique(place, return_inverse=True)
        local = local.reshape(place.shape)
        vectors = np.stack([self._persons[i].vector.numpy() for i in involved]).astype(np.float64) - self._mean
        # Whitened vectors are nowhere: their products are those of the vectors with W^-1 times the vectors.
        solved = np.linalg.solve(self._within, vectors.T).T
        lengths = np.maximum(np.sqrt(np.einsum("nd,nd->n", vectors, solved)), 1e-12)
        chunks = np.array_split(local, len(local) // _PAIRS_AT_ONCE + 1)
        products = np.concatenate([np.einsum("pd,pd->p", vectors[c[:, 0]], solved[c[:, 1]]) for c in chunks])
        cosines = products / lengths[local].prod(1)
        videos = [self._persons[i].video_id == self._persons[j].video_id for i, j in place.tolist()]
        one_video = np.array(videos, np.float64)
        logs = [log[place].mean(1) for log in (self._log_others, self._log_crops)]
        return np.stack([cosines * one_video, cosines * (1 - one_video), one_video, *logs], axis=1)

    def features(self, pairs: Sequence[tuple[str, str]]) -> Float64Array:
        """Features (p, 8) of pairs of keys.

        Those of `alone`, how strong each one's rivals are among the others, the logarithm of how many doubles a person
        has on average (so `pairs` must be all that are similar and have no veto), and what their sizes say.
        """
        places = self.places(pairs)
        among = among_others(self.alone(pairs), places, self._curve.alone, len(self._persons))
        return np.column_stack([among, size_evidence(self._persons, places)])

    def places(self, pairs: Sequence[tuple[str, str]]) -> npt.NDArray[np.int64]:
        """Which persons (p, 2) the pairs of keys are."""
        return np.array([[self.index[a], self.index[b]] for a, b in pairs], np.int64).reshape(-1, 2)

    def probabilities(self, pairs: Sequence[tuple[str, str]]) -> Float64Array:
        """Chance (p,) that each pair of keys is one person; `pairs` must be all that are similar and have no veto."""
        intercept, *weights = self._curve.closed
        return sigmoid(bend(self.features(pairs) @ np.array(weights) + intercept, self._curve.bent))


def among_others(
    alone: Float64Array, places: npt.NDArray[np.int64], coefficients: Sequence[float], persons: int
) -> Float64Array:
    """Features (p, 7) from those (p, 5) of the two persons alone: what the gallery's other pairs say is added.

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


def within_tracks(persons: Iterable[PersonEmbedding], dim: int) -> tuple[Float64Array, int]:
    """How the parts of each track differ from their mean (r, dim), and the degrees of freedom in that."""
    parts = [person.segments.numpy() for person in persons if person.segments is not None]
    usable = [_unit(part) for part in parts if len(part) > 1 and part.shape[1] == dim]
    if not usable:
        return np.zeros((0, dim)), 0
    return np.concatenate([part - part.mean(0) for part in usable]), sum(len(part) - 1 for part in usable)


def _unit(rows: npt.ArrayLike) -> Float64Array:
    """Rows of length 1, whatever a producer sent: none may outweigh all others."""
    values = np.asarray(rows, np.float64)
    units: Float64Array = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    return units


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """The curves by `weights_sha256`, and what a probability must be. Used by `apply`.

    Pairs below `min_probability` are held back; from `likely_probability` on they are in the band `likely`. Weights
    without a curve are not judged.
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


def curves_to_json(curves: Mapping[str, Curve]) -> bytes:
    """What `load_curves` reads."""
    content = {"curves": {sha256: curves[sha256].to_json() for sha256 in sorted(curves)}}
    return orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def load_curves(path: Path) -> dict[str, Curve]:
    """Read `calibration.json`: curves by `weights_sha256`. Raises WeightsError in one line."""
    try:
        content = orjson.loads(path.read_bytes())
        return {sha256: Curve.from_json(values) for sha256, values in content["curves"].items()}
    except OSError as error:
        raise WeightsError(f"{path}: expected the calibration curves ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{path}: expected calibration curves by weights ({' '.join(str(error).split())})"
        ) from error
