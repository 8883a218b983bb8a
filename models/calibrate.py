"""Fit the calibration curve of re-identification weights: `PYTHONPATH=. python models/calibrate.py DATA WEIGHTS...`.

WEIGHTS are files or names of the manifest; `osnet_x0_25_ours` is the package's own. Each gets its entry, by sha256, in
`models/calibration.json`, which the package carries (and which loses those made by another method). DATA holds
`reid/market1501_train.tar` (fitted on), and `reid/market1501_test100`, `MOT17-mini`, `videos`, `gt`, `persons`: these
are never fitted on, the figures that are printed and the diagram (`--diagram`) are made of them.

What is fitted (`streamproc/gallery/calibration.py` says what is done with it): mean, and covariance within persons over
all their tracks, of the training identities; and logistic regressions on galleries drawn at random from them, as one
camera or as several see people, with 1 to 5 tracks each, known negatives or without, some tracks cut short. The
identities are cut in three: of a gallery's identities none has a part in the mean and covariance that it is judged
with, as in use.
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
import tempfile
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from streamproc.events import CropInfo, ModelInfo, PersonEmbedding, Segments, Vector, person_key_of
from streamproc.gallery import Curve, GalleryScorer, load_curves
from streamproc.gallery.calibration import (
    ALONE,
    FEATURES,
    METHOD,
    STRAIGHT,
    Calibration,
    among_others,
    curves_to_json,
)
from streamproc.gallery.fitting import COSINES, KnownGallery, bent_towards, logistic, with_coefficients
from streamproc.gallery.reliability import Panel, calibration_error, diagram, error_if_perfect, swept_error
from streamproc.reid.embedder import Embedder, person_vector
from streamproc.reid.weights import find_weights

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CURVES = Path(__file__).resolve().parent / "calibration.json"
CROPS_A_TRACK = 8
CROPS_AT_ONCE = 512
SEGMENTS = 4
DIRECTIONS = 64
"""Of the covariance within persons: 64 were as good as all 512, 32 were not."""
THRESHOLD = 0.70
"""Of pairs less similar nobody asks by default: no figures are made of them, and they are not fitted on, as the many
plainly different ones would bend the curve where it matters."""
SIZE = (128, 256)
GALLERIES = 120
"""Of each kind."""
MOST_TRACKS = 5
"""Of a person, in galleries where it may have more than two."""
FIGURES_GALLERIES = 40
"""Of each kind drawn from the test identities: what one gallery is too small to show."""
SHORTENED = 0.5
"""In every other gallery so many tracks are cut short, so that what few crops mean is learned from many tracks."""
FOLDS = 3
DRAWN = "Market test100 in many galleries"

Tracks = dict[tuple[str, str, str], np.ndarray]
"""Unit crop vectors (k, dim) in time order, by identity, camera (or video) and sequence."""
Chosen = list[tuple[str, str, np.ndarray]]
"""Identity, camera, and vectors of the tracks of a gallery."""


# Pictures to tracks.


def as_crop(image: Image.Image) -> np.ndarray:
    """Scale to the network's input, uint8 (256, 128, 3)."""
    return np.asarray(image.convert("RGB").resize(SIZE, Image.Resampling.BILINEAR))


def embed_all(embedder: Embedder, pictures: Mapping[tuple[str, str, str], Sequence[np.ndarray]]) -> Tracks:
    """Vectors of up to 8 crops of each track, evenly spread."""
    chosen = {
        key: [crops[i] for i in np.unique(np.linspace(0, len(crops) - 1, CROPS_A_TRACK).round().astype(int))]
        for key, crops in pictures.items()
    }
    flat = [crop for crops in chosen.values() for crop in crops]
    parts = [embedder.embed(np.stack(flat[i : i + CROPS_AT_ONCE])) for i in range(0, len(flat), CROPS_AT_ONCE)]
    bounds = np.cumsum([len(crops) for crops in chosen.values()])[:-1]
    return dict(zip(chosen, np.split(np.concatenate(parts), bounds), strict=True))


def market_key(name: str, *, by_sequence: bool) -> tuple[str, str, str]:
    """`ID_cCAMERAsSEQ_FRAME_NN.jpg` to identity, camera and sequence ("" where a track is all of a camera)."""
    identity, place = name.split("_")[:2]
    return identity, place[:2], place[2:] if by_sequence else ""


def train_pictures(data: Path) -> dict[tuple[str, str, str], list[np.ndarray]]:
    """Market-1501's training identities, a track for each sequence of a camera."""
    found: dict[tuple[str, str, str], list[np.ndarray]] = defaultdict(list)
    with tarfile.open(data / "reid" / "market1501_train.tar") as tar:
        members = {Path(member.name).name: member for member in tar if member.name.endswith(".jpg")}
        for name in sorted(members):
            file = tar.extractfile(members[name])
            assert file is not None
            found[market_key(name, by_sequence=True)].append(as_crop(Image.open(io.BytesIO(file.read()))))
    return dict(found)


def test_pictures(data: Path, *, by_sequence: bool) -> dict[tuple[str, str, str], list[np.ndarray]]:
    """Market-1501's 100 test identities, a track for each camera: the first 8 crops, as in `evaluate.py`.

    `by_sequence`: a track for each sequence of a camera, all its crops, as the training identities have.
    """
    found: dict[tuple[str, str, str], list[np.ndarray]] = defaultdict(list)
    for path in sorted((data / "reid" / "market1501_test100").glob("*.jpg")):
        crops = found[market_key(path.name, by_sequence=by_sequence)]
        if by_sequence or len(crops) < CROPS_A_TRACK:
            crops.append(as_crop(Image.open(path)))
    return dict(found)


def mot_pictures(data: Path) -> dict[str, dict[tuple[str, str, str], list[np.ndarray]]]:
    """MOT17-mini, by sequence: both halves of each person's crops that show at least 30 % of them."""
    galleries = {}
    for folder in sorted((data / "MOT17-mini").iterdir()):
        rows = np.loadtxt(folder / "gt" / "gt.txt", delimiter=",")
        crops: dict[int, list[np.ndarray]] = defaultdict(list)
        for path in sorted((folder / "img1").iterdir()):
            image = Image.open(path).convert("RGB")
            for row in rows[rows[:, 0] == int(path.stem)]:
                x, y, width, height = row[2:6]
                if row[6] == 1 and row[7] == 1 and row[8] >= 0.3 and height >= 50:  # noqa: PLR2004 - people, seen
                    box = (max(x, 0), max(y, 0), min(x + width, image.width), min(y + height, image.height))
                    crops[int(row[1])].append(as_crop(image.crop(tuple(map(int, box)))))
        tracks = {}
        for person, own in crops.items():
            if len(own) >= SEGMENTS:
                half = len(own) // 2
                tracks[str(person), folder.name, "a"], tracks[str(person), folder.name, "b"] = own[:half], own[half:]
        galleries[folder.name] = tracks
    return galleries


# Galleries: the product's own events, so that what is fitted is what will run.


def segment_means(vectors: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Unit means of up to 4 consecutive parts, as the pipeline sends them."""
    parts = np.array_split(vectors, min(SEGMENTS, len(vectors)))
    return np.stack([person_vector(part) for part in parts]), [len(part) for part in parts]


def person_of(
    vectors: np.ndarray, *, video_id: str, person_id: int, seen_with: Sequence[int], sha256: str
) -> PersonEmbedding:
    """The event that a track with these crop vectors (k, dim) would give."""
    crop = CropInfo(frame_index=0, pts_seconds=0, box_xyxy=(0, 0, 1, 1), quality=1)
    return PersonEmbedding.make(
        gallery_id="g",
        video_id=video_id,
        run_id="r",
        submitted_at="2026-11-24T00:00:00Z",
        person_id=person_id,
        person_key=person_key_of(video_id, person_id),
        vector=Vector.of(person_vector(vectors)),
        model=ModelInfo(name="calibrated", weights_sha256=sha256),
        crops=[crop] * len(vectors),
        crop_count=len(vectors),
        segments=Segments.of(*segment_means(vectors)),
        first_frame_index=0,
        last_frame_index=0,
        first_seen_seconds=0,
        last_seen_seconds=0,
        frames_tracked=1,
        seen_with=list(seen_with),
    )


def gallery_of(tracks: Sequence[tuple[str, str, np.ndarray]], vetoed: np.ndarray, sha256: str) -> KnownGallery:
    """A gallery of (identity, camera, vectors); `vetoed` (n, n): seen apart, counts for other people of one camera."""
    persons, identity = {}, {}
    for i, (who, camera, vectors) in enumerate(tracks):
        beside = [j for j, (other, place, _) in enumerate(tracks) if vetoed[i, j] and other != who and place == camera]
        person = person_of(vectors, video_id=camera, person_id=i, seen_with=beside, sha256=sha256)
        persons[person.person_key], identity[person.person_key] = person, who
    return KnownGallery(persons, identity)


def draw(
    tracks: Tracks, identities: set[str], rng: np.random.Generator, sha256: str, *, kind: str, shortened: float = 0.0
) -> KnownGallery:
    """A gallery at random, of a kind of `KINDS`; `shortened`: the share of its tracks that are cut short."""
    own = [(*key, vectors) for key, vectors in tracks.items() if key[0] in identities]
    chosen = KINDS[kind][1](own, rng)
    chosen = [(who, camera, _shortened(v, rng) if rng.random() < shortened else v) for who, camera, v in chosen]
    share = rng.uniform(0, 0.7) * rng.integers(0, 2)
    vetoed = np.triu(rng.random((len(chosen), len(chosen))) < share, 1)
    return gallery_of(chosen, vetoed | vetoed.T, sha256)


def _shortened(vectors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A run of the track's crops, as when a person is soon lost."""
    length = rng.integers(1, len(vectors) + 1)
    start = rng.integers(0, len(vectors) - length + 1)
    return vectors[start : start + length]


def _pieces(most: int, rng: np.random.Generator) -> int:
    """In how many pieces a person is that is in more than one: half of them in two, a quarter in three, and so on."""
    return min(most, 1 + int(rng.geometric(0.5)), MOST_TRACKS)


def _one_camera(tracks: list[tuple[str, str, str, np.ndarray]], rng: np.random.Generator) -> Chosen:
    """People who pass one camera, some of them again and again."""
    camera = rng.choice(sorted({camera for _, camera, _, _ in tracks}))
    by_person: dict[str, list[np.ndarray]] = defaultdict(list)
    for who, place, _, vectors in tracks:
        if place == camera:
            by_person[who].append(vectors)
    twice = [who for who, own in by_person.items() if len(own) > 1]
    once = [who for who, own in by_person.items() if len(own) == 1]
    chosen: Chosen = []
    for who in rng.permutation(twice)[: rng.integers(1, 12)]:
        kept = rng.permutation(len(by_person[who]))[: _pieces(len(by_person[who]), rng)]
        chosen += [(who, camera, by_person[who][i]) for i in kept]
    others = max(int(rng.integers(8, 60)) - len(chosen), 0)
    return chosen + [(who, camera, by_person[who][0]) for who in rng.permutation(once)[:others]]


def _two_cameras(tracks: list[tuple[str, str, str, np.ndarray]], rng: np.random.Generator) -> Chosen:
    """People who each pass two of several cameras."""
    by_person: dict[str, dict[str, list[np.ndarray]]] = defaultdict(lambda: defaultdict(list))
    for who, camera, _, vectors in tracks:
        by_person[who][camera].append(vectors)
    seen_twice = [who for who, cameras in by_person.items() if len(cameras) > 1]
    return [
        (who, camera, np.concatenate(by_person[who][camera])[:CROPS_A_TRACK])
        for who in rng.permutation(seen_twice)[: rng.integers(5, 100)]
        for camera in rng.permutation(sorted(by_person[who]))[:2]
    ]


def _in_pieces(tracks: list[tuple[str, str, str, np.ndarray]], rng: np.random.Generator) -> Chosen:
    """People who pass several cameras, a share of them more than once: 2 to 5 tracks, of any camera."""
    by_person: dict[str, list[tuple[str, np.ndarray]]] = defaultdict(list)
    for who, camera, _, vectors in tracks:
        by_person[who].append((camera, vectors))
    chosen: Chosen = []
    share = rng.uniform(0.1, 1)
    for who in rng.permutation(sorted(by_person))[: rng.integers(5, 100)]:
        own = by_person[who]
        count = _pieces(len(own), rng) if rng.random() < share else 1
        chosen += [(who, *own[i]) for i in rng.permutation(len(own))[:count]]
    return chosen


KINDS = {"one camera": (0.5, _one_camera), "two cameras": (0.25, _two_cameras), "in pieces": (0.25, _in_pieces)}
"""How galleries are drawn, and by how much all of a kind weigh: the product's usual case is one video."""


# Fitting.


def learned(tracks: Tracks, identities: set[str]) -> Curve:
    """Mean and covariances of some identities; the coefficients are still naught."""
    by_person: dict[str, list[np.ndarray]] = defaultdict(list)
    for (who, _, _), vectors in tracks.items():
        if who in identities:
            by_person[who].append(vectors)
    means = {who: np.stack([person_vector(v) for v in own]).astype(np.float64) for who, own in by_person.items()}
    apart = [m - m.mean(0) for m in means.values() if len(m) > 1]
    degrees = sum(len(m) - 1 for m in apart)
    residuals = np.concatenate(apart)
    values, vectors = np.linalg.eigh(residuals.T @ residuals / degrees)
    values = values / values.sum()
    parts = [segment_means(v)[0].astype(np.float64) for own in by_person.values() for v in own if len(v) > 1]
    within = sum(float(((p - p.mean(0)) ** 2).sum()) for p in parts) / sum(len(p) - 1 for p in parts)
    return Curve(
        mean=np.concatenate(list(means.values())).mean(0).astype(np.float32),
        basis=vectors[:, -DIRECTIONS:].T.astype(np.float32),
        spread=values[-DIRECTIONS:].astype(np.float32),
        rest=float(values[:-DIRECTIONS].mean()),
        part_trace=within,
        arrival=(0.0, 0.0),
        alone=(0.0,) * (1 + ALONE),
        closed=(0.0,) * (1 + FEATURES),
        bent=STRAIGHT,
    )


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """The similar pairs of a gallery: similarity (p,), features of the two alone (p, 5), who (p, 2), truth (p,)."""

    kind: str
    whole: bool
    persons: int
    similarity: np.ndarray
    alone: np.ndarray
    places: np.ndarray
    same: np.ndarray


def fit(tracks: Tracks, sha256: str, rng: np.random.Generator) -> Curve:
    """The curve of these weights."""
    people = sorted({who for who, _, _ in tracks})
    drawn: list[Drawn] = []
    for fold in range(FOLDS):
        held = set(people[fold::FOLDS])
        unseen = learned(tracks, set(people) - held)
        for i in range(GALLERIES // FOLDS):
            for kind in KINDS:
                shortened = SHORTENED if i % 2 else 0.0
                gallery = draw(tracks, held, rng, sha256, kind=kind, shortened=shortened)
                pairs, similarity, same = gallery.similar_pairs(THRESHOLD)
                if pairs:
                    scorer, count = GalleryScorer(unseen, gallery.persons), len(gallery.persons)
                    judged = (similarity, scorer.alone(pairs), scorer.places(pairs), same.astype(float))
                    drawn.append(Drawn(kind, not shortened, count, *judged))
    weight, same = _weights(drawn), np.concatenate([one.same for one in drawn])
    # The odds of rivals are those that the two persons alone have, so these are fitted first.
    alone = tuple(logistic(np.concatenate([one.alone for one in drawn]), same, weight, rising=COSINES))
    features = np.concatenate([among_others(one.alone, one.places, alone, one.persons) for one in drawn])
    # At arrival nothing is made of the number of crops, so the mix of them must be the usual one.
    usual = np.concatenate([np.full(len(one.same), one.whole) for one in drawn])
    similarity = np.concatenate([one.similarity for one in drawn])
    closed = logistic(features, same, weight, rising=COSINES)
    bent = bent_towards(features @ np.array(closed[1:]) + closed[0], same, weight)
    return with_coefficients(
        replace(learned(tracks, set(people)), alone=alone, bent=bent),
        logistic(similarity[usual, None], same[usual], weight[usual]),
        closed,
    )


def _weights(drawn: Sequence[Drawn]) -> np.ndarray:
    """Of all pairs, (p,): each kind of galleries has its share."""
    # A large gallery has many more pairs and tells little more.
    of_kind = {kind: sum(len(one.same) ** 0.5 for one in drawn if one.kind == kind) for kind in KINDS}
    return np.concatenate(
        [np.full(len(one.same), KINDS[one.kind][0] / of_kind[one.kind] * len(one.same) ** -0.5) for one in drawn]
    )


# Figures, on what was not fitted on.


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """Pairs above the threshold with no veto: similarity, both probabilities, and the truth; each (p,)."""

    similarity: np.ndarray
    at_arrival: np.ndarray
    at_close: np.ndarray
    same: np.ndarray

    @classmethod
    def of(cls, galleries: Sequence[KnownGallery], curve: Curve, sha256: str) -> Judged:
        """Judge all galleries with `curve`."""
        calibration, rows = Calibration({sha256: curve}), []
        for gallery in galleries:
            pairs, cosines, same = gallery.similar_pairs(THRESHOLD)
            close = calibration.at_close(gallery.persons, pairs)
            for pair, cosine, truth in zip(pairs, cosines.tolist(), same.tolist(), strict=True):
                first = calibration.at_arrival(sha256, cosine)
                assert first is not None
                rows.append((cosine, first.probability, close[pair].probability, truth))
        columns = np.array(rows, np.float64).reshape(-1, 4)
        return cls(*columns.T[:3], columns[:, 3].astype(bool))

    @classmethod
    def together(cls, parts: Sequence[Judged]) -> Judged:
        """All pairs of several."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__slots__))


def pets_gallery(data: Path, weights: str, sha256: str) -> KnownGallery:
    """PETS09-S2L1 as `streamproc replay` sees it, with all defaults."""
    from streamproc import replay

    with tempfile.TemporaryDirectory() as out:
        replay(
            data / "videos" / "vtest.avi",
            persons=data / "persons" / "PETS09-S2L1.canonical_persons.npz",
            out=out,
            clustering__osnet_model=weights,
            animate=False,
        )
        lines = (Path(out) / "person_embeddings.jsonl").read_bytes().splitlines()
    seen = [PersonEmbedding.from_json(line) for line in lines]
    truth = json.loads((data / "gt" / "PETS09-S2L1.identity.json").read_text())["track_to_person"]
    assert {person.model.weights_sha256 for person in seen} == {sha256}
    return KnownGallery(
        {person.person_key: person for person in seen},
        {person.person_key: str(truth[str(person.person_id)]) for person in seen},
    )


def known_galleries(data: Path, embedder: Embedder, weights: str) -> dict[str, list[KnownGallery]]:
    """The galleries that figures are made of."""
    sha256 = embedder.weights_sha256

    def gallery(pictures: dict[tuple[str, str, str], list[np.ndarray]]) -> KnownGallery:
        tracks = embed_all(embedder, pictures)
        return gallery_of(
            [(who, place, v) for (who, place, _), v in tracks.items()], np.zeros((len(tracks),) * 2), sha256
        )

    tracks, rng = embed_all(embedder, test_pictures(data, by_sequence=True)), np.random.default_rng(2)
    people = {who for who, _, _ in tracks}
    return {
        "Market test100": [gallery(test_pictures(data, by_sequence=False))],
        DRAWN: [draw(tracks, people, rng, sha256, kind=kind) for kind in KINDS for _ in range(FIGURES_GALLERIES)],
        "PETS09-S2L1": [pets_gallery(data, weights, sha256)],
        "MOT17-mini halves": [gallery(pictures) for pictures in mot_pictures(data).values()],
    }


def describe(name: str, judged: Judged, curve_settings: Calibration, rng: np.random.Generator) -> str:
    """A line of figures."""
    same, close = judged.same, judged.at_close
    shown, likely = close >= curve_settings.min_probability, close >= curve_settings.likely_probability
    raw, true_pairs = judged.similarity.clip(0, 1), same.sum()
    published, swept = (
        error(close[shown], same[shown]) if shown.any() else 0.0 for error in (calibration_error, swept_error)
    )
    return (
        f"{name}: {len(same)} pairs, base rate {same.mean():.3f}; ECE cosine {calibration_error(raw, same):.3f}, "
        f"at arrival {calibration_error(judged.at_arrival, same):.3f}, at close {calibration_error(close, same):.3f} "
        f"(chance alone {error_if_perfect(close, rng):.3f}), of the {shown.sum()} published, "
        f"{same[shown].mean() if shown.any() else 0:.3f} of them right, {published:.3f} "
        f"(chance alone {error_if_perfect(close[shown], rng) if shown.any() else 0:.3f}; swept {swept:.3f}; "
        f"cosine {calibration_error(raw[shown], same[shown]) if shown.any() else 0:.3f}); "
        f"candidates recall {same[shown].sum() / true_pairs:.2f} "
        f"precision {same[shown].mean() if shown.any() else 1:.2f}; "
        f"likely recall {same[likely].sum() / true_pairs:.2f} "
        f"precision {same[likely].mean() if likely.any() else 1:.2f}"
    )


def panels_of(judged: Mapping[str, Judged]) -> list[Panel]:
    """A reliability diagram of each set of pairs."""
    return [Panel(name, pairs.same, (pairs.at_close, pairs.similarity.clip(0, 1))) for name, pairs in judged.items()]


def known_curves(path: Path) -> dict[str, Curve]:
    """The curves there are; those of another method are of no use any more."""
    if not path.is_file() or any(c["method"] != METHOD for c in json.loads(path.read_bytes())["curves"].values()):
        return {}
    return load_curves(path)


def main() -> None:
    """Fit, write, and print the figures of each weights file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", nargs="+")
    parser.add_argument("--out", type=Path, default=CURVES)
    parser.add_argument("--diagram", type=Path, help="reliability diagrams of what was not fitted on, SVG")
    parser.add_argument("--figures-only", action="store_true", help="of the curves as they are")
    args = parser.parse_args()
    curves = known_curves(args.out)
    pictures = None if args.figures_only else train_pictures(args.data)
    rows: dict[str, dict[str, Judged]] = {}
    for name in args.weights:
        with tempfile.TemporaryDirectory() as cache:
            embedder = Embedder(find_weights(name, cache_folder=Path(cache)))
        sha256, rng = embedder.weights_sha256, np.random.default_rng(1)
        if pictures is not None:
            curves[sha256] = fit(embed_all(embedder, pictures), sha256, rng)
            args.out.write_bytes(curves_to_json(curves))
        curve, settings = curves[sha256], Calibration()
        print(
            f"== {embedder.name} {sha256[:8]} {curve!r} arrival {curve.arrival} closed {curve.closed} bent {curve.bent}"
        )
        judged = {
            what: Judged.of(galleries, curve, sha256)
            for what, galleries in known_galleries(args.data, embedder, name).items()
        }
        once = Judged.together([judged["Market test100"], judged["PETS09-S2L1"]])
        often = Judged.together([judged[DRAWN], judged["PETS09-S2L1"]])
        both = {"Market test100 and PETS": once, f"{DRAWN}, and PETS": often}
        for what, pairs in {**judged, **both}.items():
            print(describe(what, pairs, settings, rng), flush=True)
        rows[embedder.name] = judged
    if args.diagram is not None:
        legend = ("calibrated, when the video is closed", "the cosine taken for a probability")
        args.diagram.write_text(
            diagram([(name, panels_of(judged)) for name, judged in rows.items()], legend), encoding="utf-8"
        )


if __name__ == "__main__":
    main()
