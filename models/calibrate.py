"""Fit the calibration curve of re-identification weights.

`PYTHONPATH=. python models/calibrate.py DATA WEIGHTS...`.

WEIGHTS are files or names of the manifest; `osnet_x0_25_ours` is the package's own. Each gets its
entry, by sha256, in `models/calibration.json`, which the package carries (and which loses those
made by another method). DATA holds `reid/market1501_train.tar` (fitted on), and
`reid/market1501_test100`, `MOT17-mini`, `videos`, `gt`, `persons`: these are never fitted on, the
figures that are printed and the diagram (`--diagram`) are made of them.

What is fitted (`streamproc/gallery/calibration.py` says what is done with it): mean, and covariance
within persons over all their tracks, of the training identities; and logistic regressions on
galleries drawn at random from them, as one camera or as several see people, with 1 to 5 tracks
each, known negatives or without, some tracks cut short. The identities are cut in three: of a
gallery's identities none has a part in the mean and covariance that it is judged with, as in use.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from models.known_people import (
    KINDS,
    Tracks,
    draw,
    embed_all,
    gallery_of,
    mot_pictures,
    segment_means,
    test_pictures,
    train_pictures,
)
from streamproc.events import PersonEmbedding
from streamproc.gallery import Curve, GalleryScorer, load_curves
from streamproc.gallery.calibration.curve import (
    ALONE,
    FEATURES,
    METHOD,
    SIZE_COUNTS,
    STRAIGHT,
    curves_to_json,
)
from streamproc.gallery.calibration.fitting import (
    COSINES,
    KnownGallery,
    bent_towards,
    logistic,
    with_coefficients,
)
from streamproc.gallery.calibration.reliability import (
    Panel,
    calibration_error,
    diagram,
    error_if_perfect,
    swept_error,
)
from streamproc.gallery.calibration.scorer import Calibration, among_others
from streamproc.reid.embedder import Embedder, person_vector
from streamproc.reid.export import find_weights

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CURVES = Path(__file__).resolve().parent / "calibration.json"
DIRECTIONS = 128
"""Of the covariance within persons: 128 are as good as all 512, 64 are not."""
THRESHOLD = 0.70
"""Of pairs less similar nobody asks by default: no figures are made of them, and they are not fitted on, as the many
plainly different ones would bend the curve where it matters."""
GALLERIES = 360
"""Of each kind; with 120 the curve still depends on which ones were drawn."""
FIGURES_GALLERIES = 40
"""Of each kind drawn from the test identities: what one gallery is too small to show."""
SHORTENED = 0.5
"""In every other gallery so many tracks are cut short, so that what few crops mean is learned from many tracks."""
FOLDS = 3
DRAWN = "Market test100 in many galleries"


# Fitting.


def learned(tracks: Tracks, identities: set[str]) -> Curve:
    """Mean and covariances of some identities; the coefficients are still naught."""
    by_person: dict[str, list[np.ndarray]] = defaultdict(list)
    for (who, _, _), vectors in tracks.items():
        if who in identities:
            by_person[who].append(vectors)
    means = {
        who: np.stack([person_vector(v) for v in own]).astype(np.float64)
        for who, own in by_person.items()
    }
    apart = [m - m.mean(0) for m in means.values() if len(m) > 1]
    degrees = sum(len(m) - 1 for m in apart)
    residuals = np.concatenate(apart)
    values, vectors = np.linalg.eigh(residuals.T @ residuals / degrees)
    values = values / values.sum()
    parts = [
        segment_means(v)[0].astype(np.float64)
        for own in by_person.values()
        for v in own
        if len(v) > 1
    ]
    within = sum(float(((p - p.mean(0)) ** 2).sum()) for p in parts) / sum(
        len(p) - 1 for p in parts
    )
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
    """The similar pairs of a gallery: similarity (p,), features of the two alone (p, 6), who (p, 2), truth (p,)."""

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
                    judged = (
                        similarity,
                        scorer.alone(pairs),
                        scorer.places(pairs),
                        same.astype(float),
                    )
                    drawn.append(Drawn(kind, not shortened, count, *judged))
    weight, same = _weights(drawn), np.concatenate([one.same for one in drawn])
    # The odds of rivals are those that the two persons alone have, so these are fitted first.
    alone = tuple(
        logistic(np.concatenate([one.alone for one in drawn]), same, weight, rising=COSINES)
    )
    features = np.concatenate(
        [among_others(one.alone, one.places, alone, one.persons) for one in drawn]
    )
    # At arrival nothing is made of the number of crops, so the mix of them must be the usual one.
    usual = np.concatenate([np.full(len(one.same), one.whole) for one in drawn])
    similarity = np.concatenate([one.similarity for one in drawn])
    closed = logistic(features, same, weight, rising=COSINES)
    bent = bent_towards(features @ np.array(closed[1:]) + closed[0], same, weight)
    return with_coefficients(
        replace(learned(tracks, set(people)), alone=alone, bent=bent),
        logistic(similarity[usual, None], same[usual], weight[usual]),
        (*closed, SIZE_COUNTS),  # Market's pictures are of one size
    )


def _weights(drawn: Sequence[Drawn]) -> np.ndarray:
    """Of all pairs, (p,): each kind of galleries has its share, each pair of a kind counts alike."""
    of_kind = {kind: sum(len(one.same) for one in drawn if one.kind == kind) for kind in KINDS}
    return np.concatenate(
        [np.full(len(one.same), KINDS[one.kind][0] / of_kind[one.kind]) for one in drawn]
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
        return cls(
            *(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__slots__)
        )


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
            [(who, place, v) for (who, place, _), v in tracks.items()],
            np.zeros((len(tracks),) * 2),
            sha256,
        )

    tracks, rng = (
        embed_all(embedder, test_pictures(data, by_sequence=True)),
        np.random.default_rng(2),
    )
    people = {who for who, _, _ in tracks}
    return {
        "Market test100": [gallery(test_pictures(data, by_sequence=False))],
        DRAWN: [
            draw(tracks, people, rng, sha256, kind=kind)
            for kind in KINDS
            for _ in range(FIGURES_GALLERIES)
        ],
        "PETS09-S2L1": [pets_gallery(data, weights, sha256)],
        "MOT17-mini halves": [gallery(pictures) for pictures in mot_pictures(data).values()],
    }


def describe(
    name: str, judged: Judged, curve_settings: Calibration, rng: np.random.Generator
) -> str:
    """A line of figures."""
    same, close = judged.same, judged.at_close
    shown, likely = (
        close >= curve_settings.min_probability,
        close >= curve_settings.likely_probability,
    )
    raw, true_pairs = judged.similarity.clip(0, 1), same.sum()
    published, swept = (
        error(close[shown], same[shown]) if shown.any() else 0.0
        for error in (calibration_error, swept_error)
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
    return [
        Panel(name, pairs.same, (pairs.at_close, pairs.similarity.clip(0, 1)))
        for name, pairs in judged.items()
    ]


def known_curves(path: Path) -> dict[str, Curve]:
    """The curves there are; those of another method are of no use any more."""
    if not path.is_file() or any(
        c["method"] != METHOD for c in json.loads(path.read_bytes())["curves"].values()
    ):
        return {}
    return load_curves(path)


def main() -> None:
    """Fit, write, and print the figures of each weights file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", nargs="+")
    parser.add_argument("--out", type=Path, default=CURVES)
    parser.add_argument(
        "--diagram", type=Path, help="reliability diagrams of what was not fitted on, SVG"
    )
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
            diagram([(name, panels_of(judged)) for name, judged in rows.items()], legend),
            encoding="utf-8",
        )


if __name__ == "__main__":
    main()
