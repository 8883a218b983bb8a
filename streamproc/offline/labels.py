"""What a user knows of replayed persons: who is whom, and a curve fitted on it (`streamproc calibrate`)."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from streamproc.errors import EventError, TracksError, UsageError
from streamproc.events import PersonEmbedding
from streamproc.gallery import FLOAT32_SLACK, Curve, GalleryScorer
from streamproc.gallery.calibration.curve import FEATURES
from streamproc.gallery.calibration.fitting import (
    KNOWN_CURVE_WEIGHS,
    NOTHING_WEIGHS,
    Examples,
    KnownGallery,
    cross_validated,
    judge,
    neutral_curve,
    refit,
    similar_pairs,
)
from streamproc.gallery.calibration.reliability import (
    calibration_error,
    error_if_perfect,
    log_losses,
)
from streamproc.offline.evaluation import owners
from streamproc.settings import Clustering
from streamproc.tracks import load_tracks
from streamproc.types import Track

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    Float64Array = npt.NDArray[np.float64]

PERSONS_FILE = "person_embeddings.jsonl"
LEAST_OF_A_KIND = 10
"""Fewer true pairs, or fewer wrong ones, tell nothing: what a fit is worth could not be said either."""
FEW_OF_A_KIND = 30
_RESAMPLINGS = 1000
_CSV_FIELDS = 3


@dataclass(frozen=True, slots=True)
class Known:
    """Two persons of one gallery, by key, and whether they are one."""

    gallery: int
    pair: tuple[str, str]
    same: bool
    people: tuple[str, str]
    """Names of who they are; two tracks of one person have one name."""


@dataclass(frozen=True, slots=True)
class Figures:
    """How right the probabilities of some pairs are.

    `perfect_error` is what chance alone makes of the error.
    """

    log_loss: float
    calibration_error: float
    perfect_error: float


@dataclass(frozen=True, slots=True, eq=False)
class Calibrated:
    """A curve fitted on known pairs, and what it is worth on people that it was not fitted on.

    `before` is the package's curve, None where it has none for these weights. `gain` is by how much
    the log loss of a pair falls when its gallery is closed: least, as found, and most (90 % of
    resamplings of the people lie between).
    """

    weights_sha256: str
    curve: Curve
    labelled: int
    true_pairs: int
    wrong_pairs: int
    before: Mapping[str, Figures] | None
    after: Mapping[str, Figures]
    gain: tuple[float, float, float] | None
    same: npt.NDArray[np.bool_]
    chances: tuple[Float64Array, ...]
    """When closed, (p,): cross-validated, and by the package's curve where there is one."""


def read_galleries(folders: Sequence[Path]) -> list[dict[str, PersonEmbedding]]:
    """Persons by key of output folders; videos of one gallery are put together.

    Raises UsageError.
    """
    galleries: list[dict[str, PersonEmbedding]] = []
    for folder in folders:
        persons = _read_persons(folder)
        # Two videos of one name have one id, and galleries of one video are named by it: those stay
        # apart.
        gallery = next((known for known in galleries if _belong_together(known, persons)), None)
        if gallery is None:
            galleries.append(persons)
        else:
            gallery.update(persons)
    weights = {person.model.weights_sha256 for persons in galleries for person in persons.values()}
    dims = {person.vector.dim for persons in galleries for person in persons.values()}
    if len(weights) != 1 or len(dims) != 1:
        names = ", ".join(sorted(sha256[:8] for sha256 in weights))
        raise UsageError(
            f"expected persons embedded by the same weights in all folders, got {names or 'no person'}: "
            "replay the videos again with the same --weights"
        )
    return galleries


def _read_persons(folder: Path) -> dict[str, PersonEmbedding]:
    path = folder / PERSONS_FILE
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UsageError(
            f"{folder}: expected a folder that `streamproc replay` wrote, with {PERSONS_FILE} ({error.strerror}): "
            "run replay again"
        ) from error
    persons = {}
    for number, line in enumerate(lines, 1):
        try:
            person = PersonEmbedding.from_json(line)
        except EventError as error:
            raise UsageError(f"{path}: line {number}: {error}") from error
        persons[person.person_key] = person
    return persons


def _belong_together(
    known: Mapping[str, PersonEmbedding], persons: Mapping[str, PersonEmbedding]
) -> bool:
    runs = {person.video_id: person.run_id for person in known.values()}
    one_gallery = {person.gallery_id for person in known.values()} == {
        p.gallery_id for p in persons.values()
    }
    return one_gallery and all(runs.get(p.video_id, p.run_id) == p.run_id for p in persons.values())


def by_truth(
    folders: Sequence[Path],
    truths: Sequence[Path],
    galleries: Sequence[Mapping[str, PersonEmbedding]],
) -> list[Known]:
    """The similar pairs within each folder whose tracks lie on persons of its truth, a MOT text of who is where."""
    if len(folders) != len(truths):
        raise UsageError(
            f"expected one --truth for each of the {len(folders)} folders, got {len(truths)}"
        )
    known = []
    for number, (folder, truth) in enumerate(zip(folders, truths, strict=True)):
        persons = _read_persons(folder)
        if len({person.video_id for person in persons.values()}) > 1:
            raise UsageError(
                f"{folder}: expected the output of one video with --truth: give its subfolders, or --pairs"
            )
        try:
            people = load_tracks(truth).tracks
        except TracksError as error:
            raise UsageError(f"--truth {error}") from error
        found = owners([_track_of(person) for person in persons.values()], people)
        identity = {
            key: str(who) for key, who in zip(persons, found, strict=True) if who is not None
        }
        gallery = next(
            i for i, all_of_it in enumerate(galleries) if all_of_it.items() >= persons.items()
        )
        least = min(map(_threshold_of, persons.values()), default=1.0) - FLOAT32_SLACK
        pairs, _, same = KnownGallery(persons, identity).similar_pairs(least)
        known += [
            Known(gallery, (a, b), one, (f"{number}/{identity[a]}", f"{number}/{identity[b]}"))
            for (a, b), one in zip(pairs, same.tolist(), strict=True)
        ]
    return known


def _track_of(person: PersonEmbedding) -> Track:
    """Where the person was when its crops were cut: that is what the vector is made of."""
    crops = sorted({crop.frame_index: crop.box_xyxy for crop in person.crops}.items())
    frames = np.array([frame for frame, _ in crops], np.int64)
    boxes = np.array([box for _, box in crops], np.float32).reshape(-1, 4)
    return Track(person.person_id, frames, boxes, np.ones(len(crops), np.float32))


def by_pairs(path: Path, galleries: Sequence[Mapping[str, PersonEmbedding]]) -> list[Known]:
    """The pairs of a text, a line each: person_key, person_key, 1 for one person or 0 for two.

    Raises UsageError.
    """
    labels = dict[tuple[str, str], bool]()
    place = dict[tuple[str, str], int]()
    for where, a, b, same in _lines_of(path):
        pair = (min(a, b), max(a, b))
        for key in pair:
            if not any(key in persons for persons in galleries):
                raise UsageError(
                    f"{where}: no person {key!r} in the folders: expected a person_key of {PERSONS_FILE}"
                )
        homes = [i for i, persons in enumerate(galleries) if set(pair) <= persons.keys()]
        if a == b or len(homes) != 1:
            why = (
                "are the same"
                if a == b
                else "are of different galleries"
                if not homes
                else "are in two galleries"
            )
            raise UsageError(
                f"{where}: expected two persons of one gallery, but {a!r} and {b!r} {why}"
            )
        if labels.setdefault(pair, same) != same:
            raise UsageError(f"{where}: {a!r} and {b!r} are said to be one person and to be two")
        place[pair] = homes[0]
    who = _people({(place[pair], pair) for pair, same in labels.items() if same})
    known = []
    for pair, same in labels.items():
        names = tuple(who.get((place[pair], key), f"{place[pair]}/{key}") for key in pair)
        if not same and names[0] == names[1]:
            raise UsageError(
                f"{path}: {pair[0]!r} and {pair[1]!r} are two persons, and by way of others one"
            )
        known.append(Known(place[pair], pair, same, (names[0], names[1])))
    return known


def _lines_of(path: Path) -> Iterator[tuple[str, str, str, bool]]:
    try:
        rows = list(
            csv.reader(
                path.read_text(encoding="utf-8").splitlines(), skipinitialspace=True, strict=True
            )
        )
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(
            f"--pairs {path}: expected lines of person_key,person_key,0 or 1 ({error})"
        ) from error
    for number, row in enumerate(rows, 1):
        where = f"--pairs {path}: line {number}"
        if not row:
            continue
        if len(row) != _CSV_FIELDS or row[2].strip() not in ("0", "1"):
            raise UsageError(
                f"{where}: expected person_key,person_key,0 or 1, got {','.join(row)!r:.80}"
            )
        yield where, row[0].strip(), row[1].strip(), row[2].strip() == "1"


def _people(same: set[tuple[int, tuple[str, str]]]) -> dict[tuple[int, str], str]:
    """A name for all tracks that are one person, also by way of others."""
    name: dict[tuple[int, str], str] = {}
    for gallery, (a, b) in sorted(same):
        own, other = (name.setdefault((gallery, key), f"{gallery}/{key}") for key in (a, b))
        for track, called in list(name.items()):
            if called == other:
                name[track] = own
    return name


def calibrate(
    galleries: Sequence[Mapping[str, PersonEmbedding]],
    known: Sequence[Known],
    curves: Mapping[str, Curve],
) -> Calibrated:
    """Fit a curve on known pairs, towards the one in `curves` for these weights; raises UsageError for too few."""
    weights = next(
        person.model.weights_sha256 for persons in galleries for person in persons.values()
    )
    package = curves.get(weights)
    everybody = [person for persons in galleries for person in persons.values()]
    if package is not None and len(package.mean) != everybody[0].vector.dim:
        raise UsageError(
            f"expected vectors of {len(package.mean)} numbers, got {everybody[0].vector.dim}"
        )
    start = neutral_curve(everybody) if package is None else package
    weighs = NOTHING_WEIGHS if package is None else KNOWN_CURVE_WEIGHS
    examples = _examples(start, galleries, known)
    true_pairs = int(examples.same.sum())
    wrong_pairs = len(examples) - true_pairs
    if min(true_pairs, wrong_pairs) < LEAST_OF_A_KIND:
        raise UsageError(
            f"{true_pairs} true and {wrong_pairs} wrong pairs above the similarity threshold, expected at least "
            f"{LEAST_OF_A_KIND} of each: say of more persons who they are, or replay with a lower --threshold"
        )
    rng = np.random.default_rng(1)
    before = None if package is None else judge(package, examples)
    after = cross_validated(start, examples, weighs=weighs, rng=rng)
    return Calibrated(
        weights_sha256=weights,
        curve=refit(start, examples, weighs=weighs),
        labelled=len(known),
        true_pairs=true_pairs,
        wrong_pairs=wrong_pairs,
        before=None if before is None else _figures(before, examples, rng),
        after=_figures(after, examples, rng),
        gain=None if before is None else _gain(before[1], after[1], examples, rng),
        same=examples.same,
        chances=(after[1],) if before is None else (after[1], before[1]),
    )


def _examples(
    curve: Curve, galleries: Sequence[Mapping[str, PersonEmbedding]], known: Sequence[Known]
) -> Examples:
    """Of the known pairs those that a probability would be asked for: above the threshold, with no veto."""
    numbers = {
        name: i for i, name in enumerate(sorted({name for item in known for name in item.people}))
    }
    similarity, features, same, people = [np.zeros(0)], [np.zeros((0, FEATURES))], [], []
    for i, persons in enumerate(galleries):
        # Of all similar pairs, known or not: each is a rival of those with which it shares a
        # person.
        found, cosines = similar_pairs(
            persons, min(map(_threshold_of, persons.values()), default=1.0) - FLOAT32_SLACK
        )
        above = {
            pair: cosine
            for pair, cosine in zip(found, cosines.tolist(), strict=True)
            if cosine > max(_threshold_of(persons[key]) for key in pair)
        }
        place = {pair: row for row, pair in enumerate(above)}
        asked = [item for item in known if item.gallery == i and item.pair in above]
        if asked:
            similarity.append(np.array([above[item.pair] for item in asked]))
            judged = GalleryScorer(curve, persons).features(list(above))
            features.append(judged[[place[item.pair] for item in asked]])
            same += [item.same for item in asked]
            people += [[numbers[name] for name in item.people] for item in asked]
    return Examples(
        np.concatenate(similarity),
        np.concatenate(features),
        np.array(same, bool),
        np.array(people, np.int64).reshape(-1, 2),
    )


def _threshold_of(person: PersonEmbedding) -> float:
    return (
        Clustering().similarity_threshold
        if person.similarity_threshold is None
        else person.similarity_threshold
    )


def _figures(
    chances: tuple[Float64Array, Float64Array], examples: Examples, rng: np.random.Generator
) -> dict[str, Figures]:
    return {
        when: Figures(
            float(log_losses(chance, examples.same).mean()),
            calibration_error(chance, examples.same),
            error_if_perfect(chance, rng),
        )
        for when, chance in zip(("at arrival", "when closed"), chances, strict=True)
    }


def _gain(
    before: Float64Array, after: Float64Array, examples: Examples, rng: np.random.Generator
) -> tuple[float, float, float]:
    """By how much the log loss falls.

    5 %, as found, 95 % of resamplings of the people (pairs share them).
    """
    fall = log_losses(before, examples.same) - log_losses(after, examples.same)
    first, second = examples.people.T
    count = int(examples.people.max()) + 1
    falls = []
    for _ in range(_RESAMPLINGS):
        times = np.bincount(rng.integers(0, count, count), minlength=count)
        weight = times[first] * np.where(first == second, 1, times[second])
        if weight.any():
            falls.append(float(weight @ fall / weight.sum()))
    least, most = np.quantile(falls, (0.05, 0.95)).tolist()
    return least, float(fall.mean()), most
