"""Labels of a user, which pairs are one person, and a curve fitted on them."""

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
    KNOWN_CURVE_PAIRS,
    NO_CURVE_PAIRS,
    Examples,
    KnownGallery,
    cross_validated,
    neutral_curve,
    predict,
    refit,
    similar_pairs,
)
from streamproc.gallery.calibration.reliability import (
    calibration_error,
    error_if_perfect,
    log_losses,
)
from streamproc.gallery.identities import Identities, statements_of
from streamproc.offline.evaluation import owners
from streamproc.offline.replay_folder import DECISIONS_NAME, read_decisions
from streamproc.settings import Clustering
from streamproc.tracks import read_tracks
from streamproc.types import Track

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    Float64Array = npt.NDArray[np.float64]
    Tracklets = Mapping[str, PersonEmbedding]

PERSONS_FILE = "person_embeddings.jsonl"
LEAST_OF_A_KIND = 10
"""With fewer true pairs, or fewer wrong ones, the value of a fit could not be measured."""
FEW_OF_A_KIND = 30
_RESAMPLINGS = 1000
_CSV_FIELDS = 3


@dataclass(frozen=True, slots=True)
class LabelledPair:
    """Two tracklets of one gallery, by key, and whether they are one person.

    `gallery` is its position in the list of galleries. `people` are names of the persons: tracklets
    of one person have the same name.
    """

    gallery: int
    pair: tuple[str, str]
    same: bool
    people: tuple[str, str]


@dataclass(frozen=True, slots=True)
class Metrics:
    """How well the probabilities of some pairs agree with their labels.

    `perfect_error` is the calibration error that chance alone would give.
    """

    log_loss: float
    calibration_error: float
    perfect_error: float


@dataclass(frozen=True, slots=True, eq=False)
class Calibrated:
    """A curve fitted on labelled pairs, and its metrics on people that it was not fitted on.

    `before` are the metrics of the package's curve, None where it has none for these weights. Both
    are by "at arrival" and "when closed". `gain` is by how much the log loss of a pair falls when
    its gallery is closed: the 5 % quantile over resamplings of the people, as found, and the 95 %
    quantile. `same` (p,) are the labels of the pairs that were used, and `probabilities` (p,) those
    when closed: cross-validated, and by the package's curve where there is one.
    """

    weights_sha256: str
    curve: Curve
    label_count: int
    true_pairs: int
    wrong_pairs: int
    before: Mapping[str, Metrics] | None
    after: Mapping[str, Metrics]
    gain: tuple[float, float, float] | None
    same: npt.NDArray[np.bool_]
    probabilities: tuple[Float64Array, ...]


# The persons that were replayed.


def read_galleries(folders: Sequence[Path]) -> list[dict[str, PersonEmbedding]]:
    """Read the tracklets of output folders by key; videos of one gallery are put together.

    Raises UsageError.
    """
    galleries: list[dict[str, PersonEmbedding]] = []
    for folder in folders:
        tracklets = _read_tracklets(folder)
        # Two videos of one name have one id, and a gallery of one video is named by it: these are
        # different galleries nevertheless.
        for gallery in galleries:
            if _belong_together(gallery, tracklets):
                gallery.update(tracklets)
                break
        else:
            galleries.append(tracklets)
    everybody = _all_of(galleries)
    weights = {tracklet.model.weights_sha256 for tracklet in everybody}
    dims = {tracklet.vector.dim for tracklet in everybody}
    if len(weights) != 1 or len(dims) != 1:
        names = ", ".join(sorted(sha256[:8] for sha256 in weights))
        raise UsageError(
            "expected persons embedded by the same weights in all folders, "
            f"got {names or 'no person'}: replay the videos again with the same --weights"
        )
    return galleries


def _read_tracklets(folder: Path) -> dict[str, PersonEmbedding]:
    path = folder / PERSONS_FILE
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UsageError(
            f"{folder}: expected a folder that `streamproc replay` wrote, with {PERSONS_FILE} "
            f"({error.strerror}): run replay again"
        ) from error
    tracklets = {}
    for number, line in enumerate(lines, 1):
        try:
            tracklet = PersonEmbedding.from_json(line)
        except EventError as error:
            raise UsageError(f"{path}: line {number}: {error}") from error
        tracklets[tracklet.person_key] = tracklet
    return tracklets


def _belong_together(known: Tracklets, new: Tracklets) -> bool:
    """Return whether two folders are of one gallery, and have no video in two runs."""
    run_of = {tracklet.video_id: tracklet.run_id for tracklet in known.values()}
    if _gallery_ids(known) != _gallery_ids(new):
        return False
    return all(run_of.get(item.video_id, item.run_id) == item.run_id for item in new.values())


def _gallery_ids(tracklets: Tracklets) -> set[str]:
    return {tracklet.gallery_id for tracklet in tracklets.values()}


def _all_of(galleries: Iterable[Tracklets]) -> list[PersonEmbedding]:
    everybody: list[PersonEmbedding] = []
    for tracklets in galleries:
        everybody += tracklets.values()
    return everybody


# Labels from a text of who is where.


def labels_from_truth(
    folders: Sequence[Path], truths: Sequence[Path], galleries: Sequence[Tracklets]
) -> list[LabelledPair]:
    """Label the similar pairs within each folder by a MOT text of who is where in its video.

    Tracklets that lie on nobody are left out. Raises UsageError.
    """
    if len(folders) != len(truths):
        raise UsageError(
            f"expected one --truth for each of the {len(folders)} folders, got {len(truths)}"
        )
    labels: list[LabelledPair] = []
    for number, (folder, truth) in enumerate(zip(folders, truths, strict=True)):
        tracklets = _read_tracklets(folder)
        identity = _identities(folder, tracklets, truth)
        gallery = _gallery_with(galleries, tracklets)
        known = KnownGallery(tracklets, identity)
        pairs, _, same = known.similar_pairs(_least_similarity(tracklets))
        for (a, b), one_person in zip(pairs, same.tolist(), strict=True):
            people = (f"{number}/{identity[a]}", f"{number}/{identity[b]}")
            labels.append(LabelledPair(gallery, (a, b), one_person, people))
    return labels


def _identities(folder: Path, tracklets: Tracklets, truth: Path) -> dict[str, str]:
    """Return the person of each tracklet that lies on one."""
    if len({tracklet.video_id for tracklet in tracklets.values()}) > 1:
        raise UsageError(
            f"{folder}: expected the output of one video with --truth: "
            "give its subfolders, or --pairs"
        )
    try:
        people = read_tracks(truth).tracks
    except TracksError as error:
        raise UsageError(f"--truth {error}") from error
    found = owners([_track_of(tracklet) for tracklet in tracklets.values()], people)
    return {key: str(who) for key, who in zip(tracklets, found, strict=True) if who is not None}


def _track_of(tracklet: PersonEmbedding) -> Track:
    """Return where the person was when the embedded crops were cut."""
    crops = sorted({crop.frame_index: crop.box_xyxy for crop in tracklet.crops}.items())
    frames = np.array([frame for frame, _ in crops], np.int64)
    boxes = np.array([box for _, box in crops], np.float32).reshape(-1, 4)
    return Track(tracklet.person_id, frames, boxes, np.ones(len(crops), np.float32))


def _gallery_with(galleries: Sequence[Tracklets], tracklets: Tracklets) -> int:
    """Return the position of the gallery that has all of these tracklets."""
    for position, gallery in enumerate(galleries):
        if gallery.items() >= tracklets.items():
            return position
    raise AssertionError("read_galleries has put every folder into a gallery")


# Labels from what reviewers decided.


def labels_from_decisions(
    folders: Sequence[Path], galleries: Sequence[Tracklets]
) -> list[LabelledPair]:
    """Label the pairs that the decisions of the folders say something of, through others too.

    Tracks that are in conflict are left out. Raises UsageError or InputError.
    """
    labels: dict[tuple[int, tuple[str, str]], LabelledPair] = {}
    for folder in folders:
        decisions = read_decisions(folder / DECISIONS_NAME)
        tracklets = _read_tracklets(folder)
        number = _gallery_with(galleries, tracklets)
        statements = statements_of(decisions)
        gallery_ids = sorted(_gallery_ids(tracklets))
        identities = Identities(gallery_ids[0] if gallery_ids else "", tracklets, statements)
        for pair, same in identities.decided_pairs():
            people = tuple(f"{number}/{identities.of_key[key].identity_id}" for key in pair)
            label = LabelledPair(number, pair, same, (people[0], people[1]))
            labels[number, pair] = label
    if not labels:
        raise UsageError(
            f"expected decisions on pairs in {DECISIONS_NAME} of the folders, found none: "
            "decide with `streamproc review`"
        )
    _check_both_kinds([label.same for label in labels.values()])
    return list(labels.values())


def _check_both_kinds(same: Sequence[bool]) -> None:
    """Raise UsageError where all decided pairs are of one kind: a curve tells two kinds apart."""
    if len(set(same)) == 1:
        said, other = ("the same", "different") if same[0] else ("different", "the same")
        raise UsageError(
            f"all {len(same)} pairs that were decided are {said}, and a curve needs "
            f"{LEAST_OF_A_KIND} of each kind: decide on pairs that are {other} as well"
        )


# Labels from a text of pairs.


def labels_from_pairs(path: Path, galleries: Sequence[Tracklets]) -> list[LabelledPair]:
    """Read a text of pairs, a line each: person_key, person_key, 1 for one person or 0 for two.

    Raises UsageError.
    """
    labels: dict[tuple[str, str], bool] = {}
    gallery_of: dict[tuple[str, str], int] = {}
    for where, a, b, same in _lines_of(path):
        pair = (min(a, b), max(a, b))
        gallery_of[pair] = _gallery_of_pair(where, a, b, galleries)
        if labels.setdefault(pair, same) != same:
            raise UsageError(f"{where}: {a!r} and {b!r} are said to be one person and to be two")
    names = _names({(gallery_of[pair], pair) for pair, same in labels.items() if same})
    labelled = []
    for pair, same in labels.items():
        gallery = gallery_of[pair]
        a, b = pair
        people = (
            names.get((gallery, a), f"{gallery}/{a}"),
            names.get((gallery, b), f"{gallery}/{b}"),
        )
        if not same and people[0] == people[1]:
            raise UsageError(f"{path}: {a!r} and {b!r} are two persons, and by way of others one")
        labelled.append(LabelledPair(gallery, pair, same, people))
    return labelled


def _lines_of(path: Path) -> Iterator[tuple[str, str, str, bool]]:
    """Yield where a line is, its two keys, and its label."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = list(csv.reader(lines, skipinitialspace=True, strict=True))
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


def _gallery_of_pair(where: str, a: str, b: str, galleries: Sequence[Tracklets]) -> int:
    """Return the position of the gallery that has both; raises UsageError, in a line `where`."""
    for key in sorted((a, b)):
        if not any(key in tracklets for tracklets in galleries):
            raise UsageError(
                f"{where}: no person {key!r} in the folders: "
                f"expected a person_key of {PERSONS_FILE}"
            )
    found = [i for i, tracklets in enumerate(galleries) if a in tracklets and b in tracklets]
    if a != b and len(found) == 1:
        return found[0]
    if a == b:
        reason = "are the same"
    elif not found:
        reason = "are of different galleries"
    else:
        reason = "are in two galleries"
    raise UsageError(f"{where}: expected two persons of one gallery, but {a!r} and {b!r} {reason}")


def _names(same: set[tuple[int, tuple[str, str]]]) -> dict[tuple[int, str], str]:
    """Return a name for each tracklet (gallery and key), the same for all that are one person.

    `same` are the pairs that are one person; pairs that share a tracklet connect their others.
    """
    names: dict[tuple[int, str], str] = {}
    for gallery, (a, b) in sorted(same):
        name = names.setdefault((gallery, a), f"{gallery}/{a}")
        merged = names.setdefault((gallery, b), f"{gallery}/{b}")
        for tracklet, known in names.items():
            if known == merged:
                names[tracklet] = name
    return names


# The fit.


def calibrate(
    galleries: Sequence[Tracklets], labels: Sequence[LabelledPair], curves: Mapping[str, Curve]
) -> Calibrated:
    """Fit a curve on labelled pairs, pulled towards the one that `curves` has for their weights.

    Raises UsageError where there are too few pairs.
    """
    everybody = _all_of(galleries)
    weights = everybody[0].model.weights_sha256
    package = curves.get(weights)
    if package is not None and len(package.mean) != everybody[0].vector.dim:
        raise UsageError(
            f"expected vectors of {len(package.mean)} numbers, got {everybody[0].vector.dim}"
        )
    start = neutral_curve(everybody) if package is None else package
    prior_pairs = NO_CURVE_PAIRS if package is None else KNOWN_CURVE_PAIRS
    examples = _examples(start, galleries, labels)
    true_pairs = int(examples.same.sum())
    wrong_pairs = len(examples) - true_pairs
    if min(true_pairs, wrong_pairs) < LEAST_OF_A_KIND:
        raise UsageError(
            f"{true_pairs} true and {wrong_pairs} wrong pairs above the similarity threshold, "
            f"expected at least {LEAST_OF_A_KIND} of each: say of more persons who they are, "
            "or replay with a lower --threshold"
        )
    rng = np.random.default_rng(1)
    before = None if package is None else predict(package, examples)
    after = cross_validated(start, examples, prior_pairs=prior_pairs, rng=rng)
    return Calibrated(
        weights_sha256=weights,
        curve=refit(start, examples, prior_pairs=prior_pairs),
        label_count=len(labels),
        true_pairs=true_pairs,
        wrong_pairs=wrong_pairs,
        before=None if before is None else _metrics(before, examples, rng),
        after=_metrics(after, examples, rng),
        gain=None if before is None else _gain(before[1], after[1], examples, rng),
        same=examples.same,
        probabilities=(after[1],) if before is None else (after[1], before[1]),
    )


def _examples(
    curve: Curve, galleries: Sequence[Tracklets], labels: Sequence[LabelledPair]
) -> Examples:
    """Return the labelled pairs that are judged in use: above the threshold, with no veto."""
    names: set[str] = set()
    for label in labels:
        names.update(label.people)
    number_of = {name: number for number, name in enumerate(sorted(names))}
    similarity = [np.zeros(0)]
    features = [np.zeros((0, FEATURES))]
    used: list[LabelledPair] = []
    for position, tracklets in enumerate(galleries):
        # All similar pairs, labelled or not: each competes with those that share a tracklet.
        above = _pairs_above_threshold(tracklets)
        row_of = {pair: row for row, pair in enumerate(above)}
        own = [label for label in labels if label.gallery == position and label.pair in above]
        if own:
            rows = [row_of[label.pair] for label in own]
            similarity.append(np.array([above[label.pair] for label in own]))
            features.append(GalleryScorer(curve, tracklets).features(list(above))[rows])
            used += own
    people = [[number_of[name] for name in label.people] for label in used]
    return Examples(
        np.concatenate(similarity),
        np.concatenate(features),
        np.array([label.same for label in used], bool),
        np.array(people, np.int64).reshape(-1, 2),
    )


def _pairs_above_threshold(tracklets: Tracklets) -> dict[tuple[str, str], float]:
    """Return the similarity of each pair with no veto that is above both thresholds."""

    def threshold_of(pair: tuple[str, str]) -> float:
        return max(_threshold_of(tracklets[key]) for key in pair)

    pairs, cosines = similar_pairs(tracklets, _least_similarity(tracklets))
    return {
        pair: cosine
        for pair, cosine in zip(pairs, cosines.tolist(), strict=True)
        if cosine > threshold_of(pair)
    }


def _least_similarity(tracklets: Tracklets) -> float:
    """Return what float32 cosines must exceed so that none above a threshold is missed."""
    return min(map(_threshold_of, tracklets.values()), default=1.0) - FLOAT32_SLACK


def _threshold_of(tracklet: PersonEmbedding) -> float:
    if tracklet.similarity_threshold is None:
        return Clustering().similarity_threshold
    return tracklet.similarity_threshold


def _metrics(
    probabilities: tuple[Float64Array, Float64Array], examples: Examples, rng: np.random.Generator
) -> dict[str, Metrics]:
    """Return the metrics of the probabilities at arrival and when closed."""
    metrics = {}
    for when, probability in zip(("at arrival", "when closed"), probabilities, strict=True):
        metrics[when] = Metrics(
            float(log_losses(probability, examples.same).mean()),
            calibration_error(probability, examples.same),
            error_if_perfect(probability, rng),
        )
    return metrics


def _gain(
    before: Float64Array, after: Float64Array, examples: Examples, rng: np.random.Generator
) -> tuple[float, float, float]:
    """Return by how much the log loss falls; see `Calibrated`.

    The people are resampled and not the pairs, since pairs share people.
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
